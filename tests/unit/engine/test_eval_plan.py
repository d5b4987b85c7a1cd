"""Set names, limits and shards of an evaluation; ranking of its cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqsam.data import ImageRecord, ObjectRecord
from hqsam.engine.evaluation.masks import crumb_slices
from hqsam.engine.evaluation.pictures import rank_cases
from hqsam.engine.evaluation.plan import is_thin, plan_items, shard
from hqsam.errors import DataError
from hqsam.metrics import MaskRecord


def image(pack: str, source: str, name: str, objects: int = 1, thin: float | None = None) -> ImageRecord:
    return ImageRecord(
        key=f"{pack}/images/{name}.jpg",
        set_name=pack,
        source=source,
        image=Path(f"{name}.jpg"),
        objects=(ObjectRecord(mask=Path(f"{name}.png"), thin=thin),) * objects,
    )


def test_a_set_is_a_source() -> None:
    items = plan_items([image("pack", "horses", "b"), image("pack", "dogs", "a", 2)])
    assert [(item.set, item.image, item.objects) for item in items] == [
        ("horses", "images/b.jpg", (0,)),
        ("dogs", "images/a.jpg", (0, 1)),
    ]


def test_sources_that_clash_are_prefixed() -> None:
    items = plan_items([image("one", "horses", "a"), image("two", "horses", "a"), image("two", "dogs", "b")])
    assert [item.set for item in items] == ["one/horses", "two/horses", "dogs"]


def test_limit_takes_the_first_objects_of_each_source() -> None:
    records = [image("p", "x", "c", 2), image("p", "y", "b", 1), image("p", "x", "a", 4), image("p", "x", "d", 1)]
    items = plan_items(records, max_per_source=3)
    assert [(item.set, item.image, item.objects) for item in items] == [
        ("x", "images/c.jpg", (0, 1)),
        ("y", "images/b.jpg", (0,)),
        ("x", "images/a.jpg", (0,)),
    ]


def test_refused_plans() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        plan_items([])
    with pytest.raises(DataError, match=r"1 images come twice, 'p/images/a\.jpg' among them"):
        plan_items([image("p", "x", "a"), image("p", "y", "a")])
    with pytest.raises(ValueError, match="at least 1 or None, got 0"):
        plan_items([image("p", "x", "a")], max_per_source=0)


@given(st.integers(0, 40), st.integers(1, 7))
def test_shards_hold_everything_once_in_order(count: int, size: int) -> None:
    parts = [shard(range(count), rank, size) for rank in range(size)]
    assert [k for part in parts for k in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("thin", "expected"), [(None, False), (0.049, False), (0.05, True), (1.0, True)])
def test_thin(thin: float | None, expected: bool) -> None:
    assert is_thin(plan_items([image("p", "x", "a", thin=thin)])[0], 0) is expected


def scores(k: int, **mbiou: float) -> MaskRecord:
    return MaskRecord("x", "a.jpg", k, "box", mbiou, mbiou)


def test_objects_of_a_few_pixels_are_a_slice_of_their_own() -> None:
    tiny, small, unknown = (replace(scores(k, sam=k / 4), pixels=n) for k, n in ((0, 9), (2, 10), (4, None)))
    assert crumb_slices([tiny, small, unknown]) == {
        "pixels >= 10": {"sam": {"miou": 75.0, "mbiou": 75.0, "n": 2}},
        "pixels < 10": {"sam": {"miou": 0.0, "mbiou": 0.0, "n": 1}},
    }
    assert crumb_slices([small, unknown]) == crumb_slices([tiny]) == {}


def test_ranking_by_the_best_column() -> None:
    records = [scores(0, sam=0.9, sum=0.5), scores(1, sam=0.1, sum=0.7), scores(2, sam=0.6, sum=0.65)]
    cases = rank_cases(records, 2)
    assert [r.object for r in cases["worst"]] == [0, 2]
    assert [r.object for r in cases["gain"]] == [1, 2]
    assert [r.object for r in rank_cases(records, 3)["gain"]] == [1, 2]  # what HQ made worse is no gain
    assert [r.object for r in rank_cases(records, 3)["decline"]] == [0]


def test_ranking_without_hq() -> None:
    records = [scores(0, sam=0.9), scores(1, sam=0.1)]
    assert {kind: [r.object for r in cases] for kind, cases in rank_cases(records, 5).items()} == {"worst": [1, 0]}
    assert rank_cases([], 5) == {}
