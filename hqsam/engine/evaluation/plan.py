"""Which objects are evaluated, under which set name, and which process evaluates them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from hqsam.data import ImageRecord
from hqsam.errors import DataError

THIN = 0.05
"""From this share of area lost under a small opening an object counts as thin, where its data set states the share."""

T = TypeVar("T")


@dataclass(frozen=True)
class EvalItem:
    """One image and the objects on it that are evaluated.

    Attributes:
        set: name of the set in the results.
        image: path of the image inside its data set.
        record: the image and its objects.
        objects: positions in `record.objects`.
    """

    set: str
    image: str
    record: ImageRecord
    objects: tuple[int, ...]


def plan_items(records: Sequence[ImageRecord], max_per_source: int | None = None) -> list[EvalItem]:
    """Name the set of every image and keep the first objects of each.

    A set is a record's source; where two data sets have a source of the same name, it is prefixed with theirs.

    Args:
        records: of one or several data sets.
        max_per_source: objects of each set to keep, the first in the order of `records`; None for all.

    Raises:
        DataError: no record, or two images of the same key (a data set given twice, two of the same name).
        ValueError: `max_per_source` is below 1.
    """
    if max_per_source is not None and max_per_source < 1:
        raise ValueError(f"max_per_source must be at least 1 or None, got {max_per_source}")
    if not records:
        raise DataError("nothing to evaluate: no image")
    twice = [key for key, count in Counter(record.key for record in records).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} images come twice, {twice[0]!r} among them: the same data set was given twice, "
            "or two of the same name; evaluate them in two runs"
        )
    owners = Counter(source for source, _ in {(record.source, record.set_name) for record in records})
    left: dict[str, int] = {}
    items = []
    for record in records:
        name = record.source if owners[record.source] == 1 else f"{record.set_name}/{record.source}"
        count = len(record.objects)
        if max_per_source is not None:
            count = min(count, left.setdefault(name, max_per_source))
            left[name] -= count
        if count:
            image = record.key.removeprefix(f"{record.set_name}/")
            items.append(EvalItem(name, image, record, tuple(range(count))))
    return items


def shard(items: Sequence[T], rank: int, size: int) -> Sequence[T]:
    """The contiguous part of one process: every item in exactly one part, sizes differing by at most one."""
    return items[len(items) * rank // size : len(items) * (rank + 1) // size]


def is_thin(item: EvalItem, position: int) -> bool:
    """Whether the data set calls an object thin."""
    thin = item.record.objects[position].thin
    return thin is not None and thin >= THIN
