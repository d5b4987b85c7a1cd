"""Mask IoU and boundary IoU of predicted masks, averaged over the objects of each set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.boundary import DILATION_RATIO, boundary_region
from hqsam.metrics.evaluator import SetScores
from hqsam.metrics.iou import check_pair, mask_iou


class MaskSample(NamedTuple):
    """One prompted object: the masks that each column predicts for it, and the truth."""

    set: str
    image: str
    object: int
    prompt: str
    predictions: Mapping[str, NDArray[np.bool_]]  # column -> (H, W) bool
    target: NDArray[np.bool_]  # (H, W) bool


@dataclass(frozen=True)
class MaskRecord:
    """Scores of one prompted object, in [0, 1]; one line of `records.jsonl`.

    Attributes:
        set: name of the set that its mean counts in.
        image: image within the set.
        object: position of the object in its image.
        prompt: which prompt, "box" for instance.
        miou: column -> mask IoU.
        mbiou: column -> boundary IoU.
        pixels: of the true mask; None where a file of before does not say.
    """

    set: str
    image: str
    object: int
    prompt: str
    miou: dict[str, float]
    mbiou: dict[str, float]
    pixels: int | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes a record unique."""
        return self.set, self.image, self.object, self.prompt

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return asdict(self)


def score_masks(sample: MaskSample, dilation_ratio: float = DILATION_RATIO) -> MaskRecord:
    """Score every column of one object; the ring of the truth is computed once.

    Raises:
        ValueError: masks that are no (H, W) bool arrays of one shape, or no prediction at all.
    """
    if not sample.predictions:
        raise ValueError(f"no prediction for {sample.set}, {sample.image}, object {sample.object}")
    miou, mbiou, target_ring = {}, {}, None
    for column, pred in sample.predictions.items():
        check_pair(pred, sample.target)
        if target_ring is None:
            target_ring = boundary_region(sample.target, dilation_ratio)
        miou[column] = mask_iou(pred, sample.target)
        mbiou[column] = mask_iou(boundary_region(pred, dilation_ratio), target_ring)
    pixels = int(np.count_nonzero(sample.target))
    return MaskRecord(sample.set, sample.image, sample.object, sample.prompt, miou, mbiou, pixels)


class MaskScores:
    """Evaluator (see `hqsam.metrics.Evaluator`) of mIoU and boundary mIoU.

    Args:
        dilation_ratio: ring width of the boundary IoU as a share of the image diagonal.
    """

    def __init__(self, dilation_ratio: float = DILATION_RATIO) -> None:
        self.dilation_ratio = dilation_ratio
        self._records: dict[tuple[str, str, int, str], MaskRecord] = {}

    def update(self, sample: MaskSample) -> MaskRecord:
        """Score a sample and keep the scores; the masks are not kept.

        Raises:
            ValueError: unusable masks, other columns than the samples before, or a sample that came before.
        """
        record = score_masks(sample, self.dilation_ratio)
        self.merge([[record]])
        return record

    def state(self) -> list[MaskRecord]:
        """The records, sorted by their key."""
        return [self._records[key] for key in sorted(self._records)]

    def merge(self, states: Iterable[list[MaskRecord]]) -> None:
        """Add the records of other evaluators.

        Raises:
            ValueError: a record that is here already, or whose columns differ from the records here.
        """
        for record in (record for state in states for record in state):
            if record.key in self._records:
                raise ValueError(f"duplicate record: set, image, object, prompt = {record.key}")
            first = next(iter(self._records.values()), record)
            if record.miou.keys() != first.miou.keys() or record.mbiou.keys() != first.miou.keys():
                raise ValueError(
                    f"every record needs the same columns: {record.key} has {sorted(record.miou)}, "
                    f"{first.key} has {sorted(first.miou)}"
                )
            self._records[record.key] = record

    def compute(self) -> dict[str, SetScores]:
        """Set name -> column -> metric, sets sorted by name: means over the records of a set, in percent.

        The sum is exact before it is rounded, so the order in which records came does not matter.
        """
        groups: dict[str, list[MaskRecord]] = {}
        for record in self.state():
            groups.setdefault(record.set, []).append(record)
        return {name: mean_of_records(records) for name, records in groups.items()}


def mean_of_records(records: list[MaskRecord]) -> SetScores:
    """Column -> {"miou", "mbiou" in percent, "n"} over records with the same columns; empty for no records."""
    return {
        column: {
            "miou": _percent([record.miou[column] for record in records]),
            "mbiou": _percent([record.mbiou[column] for record in records]),
            "n": len(records),
        }
        for column in (records[0].miou if records else ())
    }


def _percent(values: list[float]) -> float:
    return 100.0 * math.fsum(values) / len(values)
