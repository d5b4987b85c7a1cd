"""What evaluators of instance masks have in common: the annotated sets, and one record for each image."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from hqsam.metrics.instance_records import ImageId, InstanceRecord, InstanceTruth
from hqsam.rle import Rle


class _OfImage(Protocol):
    @property
    def set(self) -> str: ...

    @property
    def image(self) -> ImageId: ...


class _Masks(_OfImage, Protocol):
    @property
    def masks(self) -> Mapping[str, Sequence[Rle]]: ...


class _Record(Protocol):
    @property
    def set(self) -> str: ...

    @property
    def image(self) -> ImageId: ...

    @property
    def key(self) -> tuple[str, ImageId]: ...

    @property
    def columns(self) -> Collection[str]: ...


Kept = TypeVar("Kept", bound=_Record)
Self = TypeVar("Self", bound="RecordStore[Any]")


class RecordStore(Generic[Kept]):
    """Keeps records and refuses what cannot be scored.

    Args:
        truths: set name -> its annotated instances.
    """

    def __init__(self, truths: Mapping[str, InstanceTruth]) -> None:
        self.truths = dict(truths)
        self._records: dict[tuple[str, ImageId], Kept] = {}

    def fresh(self: Self) -> Self:
        """The same evaluator without records; what it compares with is shared, not copied."""
        twin = copy.copy(self)
        twin._records = {}
        return twin

    def state(self) -> list[Kept]:
        """The records, sorted by their key."""
        return [self._records[key] for key in sorted(self._records)]

    def merge(self, states: Iterable[list[Kept]]) -> None:
        """Add the records of other evaluators.

        Raises:
            ValueError: a record that is here already, of an unknown set or image, with other columns than the records
                here, or that does not fit its image.
        """
        for record in (record for state in states for record in state):
            if record.key in self._records:
                raise ValueError(f"duplicate record: set, image = {record.key}")
            self.truth_of(record)
            first = next(iter(self._records.values()), record)
            if set(record.columns) != set(first.columns):
                raise ValueError(
                    f"every record needs the same columns: {record.set}, image {record.image} has "
                    f"{sorted(record.columns)}, {first.set}, image {first.image} has {sorted(first.columns)}"
                )
            self._check(record)
            self._records[record.key] = record

    def truth_of(self, record: _OfImage) -> InstanceTruth:
        """The annotated instances of the set that holds an image.

        Raises:
            ValueError: the set or the image is unknown.
        """
        truth = self.truths.get(record.set)
        if truth is None or record.image not in truth.images:
            known = f"the sets are {', '.join(self.truths)}" if truth is None else "the image is not in the set"
            raise ValueError(f"{record.set}, image {record.image}: {known}")
        return truth

    def records_of(self, name: str) -> list[Kept]:
        """The records of a set, one for every image of it, sorted by image.

        Raises:
            ValueError: an image has none: one without boxes would have a record with empty lists.
        """
        records = [record for record in self.state() if record.set == name]
        missing = self.truths[name].images.keys() - {record.image for record in records}
        if missing:
            raise ValueError(
                f"{name}: {len(missing)} of {len(self.truths[name].images)} images have no record, the first is "
                f"{min(missing, key=str)}; evaluate them all, or take the truth of those that were (of_images)"
            )
        return records

    def _check(self, record: Kept) -> None:
        raise NotImplementedError


def check_masks(record: InstanceRecord, truth: InstanceTruth, *, any_category: bool) -> None:
    """Refuse masks that do not fit their image, which is in the set.

    Raises:
        ValueError: an unknown category, unless categories mean nothing; masks of another size than their image.
    """
    if not any_category and (unknown := sorted(set(record.categories) - truth.categories.keys())):
        where = f"{record.set}, image {record.image}"
        raise ValueError(f"{where}: the set has no category {', '.join(map(str, unknown))}")
    check_sizes(record, truth)


def check_sizes(sample: _Masks, truth: InstanceTruth) -> None:
    """Refuse masks of another size than their image, which is in the set.

    Raises:
        ValueError: there is one.
    """
    size = truth.images[sample.image].size_hw
    if any(tuple(rle["size"]) != size for rles in sample.masks.values() for rle in rles):
        raise ValueError(
            f"{sample.set}, image {sample.image}: the masks must be of the image's size, "
            f"{size[0]} x {size[1]} (height x width)"
        )
