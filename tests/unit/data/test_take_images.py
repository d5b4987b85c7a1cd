"""A number of images: the same everywhere, each part inside the larger ones, sources as in the whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hqsam.data import ImageRecord, ObjectRecord, select_records
from hqsam.data.records import take_images


def make(source: str, number: int) -> ImageRecord:
    mask = ObjectRecord(mask=Path("m.png"))
    path = Path(f"{source}{number}.png")
    return ImageRecord(key=f"set/{path}", set_name="set", source=source, image=path, objects=(mask,))


CHOSEN = ["set/a7.png", "set/b23.png", "set/c1.png"]  # by hashlib and arithmetic alone
RECORDS = [make("a", k) for k in range(60)] + [make("b", k) for k in range(30)] + [make("c", k) for k in range(10)]


def test_parts_are_nested_and_keep_the_sources() -> None:
    parts = [take_images(RECORDS, count) for count in range(1, 101)]
    for count, part in enumerate(parts, start=1):
        assert len(part) == count and part == [record for record in RECORDS if record in part]
    assert all(set(small) < set(large) for small, large in zip(parts[:-1], parts[1:], strict=True))
    assert Counter(record.source for record in parts[19]) == {"a": 12, "b": 6, "c": 2}


def test_the_choice_is_that_of_the_hash() -> None:
    assert [record.key for record in take_images(RECORDS, 3)] == CHOSEN
    backwards = take_images(RECORDS[::-1], 3)
    assert sorted(record.key for record in backwards) == sorted(CHOSEN)


def test_more_than_there_are_is_all() -> None:
    assert take_images(RECORDS, 1000) == RECORDS
    assert select_records(RECORDS, sources=["c"], max_images=1000) == RECORDS[90:]


def test_fewer_than_sources() -> None:
    assert {record.source for record in take_images(RECORDS, 3)} == {"a", "b", "c"}
    assert len({record.source for record in take_images(RECORDS, 2)}) == 2


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="max_images must be at least 1 or None, got 0"):
        select_records(RECORDS, max_images=0)
