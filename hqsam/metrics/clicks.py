"""Curves over prompts: mask IoU and boundary IoU after each click, each number of points, each level of noise.

What a step is called says what it was: "click3" the third click, "points5" five random points, "noise0.2" a box with
noise of scale 0.2, "point" the best-scored mask of a single point and "oracle" the best of its masks, "box" the true
box and "negative" a negative click after it, "corrected3" the third of the clicks after a box.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.boundary import DILATION_RATIO, boundary_region
from hqsam.metrics.collecting import Collected, common_columns, in_order
from hqsam.metrics.correlation import pearson, spearman
from hqsam.metrics.iou import check_pair, mask_iou

NOC_TARGETS = (0.85, 0.90)
"""Mask IoU that the number of clicks is counted to, as in the literature on interactive segmentation."""
_JUDGED = {"miou": {"sam": "sam", "own": "own"}, "mbiou": {"sam": "sam", "own_boundary": "own"}}
"""What is true -> the scores that are compared with it -> their names in the names of metrics."""
_CLICK = re.compile(r"click([1-9]\d*)")


class PromptSample(NamedTuple):
    """One object under several prompts: the masks that each column predicts, and the truth."""

    set: str
    image: str
    object: int
    prompt: str  # "clicks", "points", "boxes", "point", "negative" or "corrections"
    predictions: Mapping[str, Mapping[str, NDArray[np.bool_]]]  # column -> step -> (H, W) bool
    targets: Sequence[NDArray[np.bool_]]  # (H, W) bool each: annotations of the same object, the best of them counts
    scores: Mapping[str, Mapping[str, Mapping[str, float]]] = {}  # column -> step -> source -> the mask's score
    removed: Mapping[str, Mapping[str, float]] = {}  # column -> what a negative click took away, see `PromptRecord`


@dataclass(frozen=True)
class PromptRecord:
    """Scores of one object under several prompts, in [0, 1]; one line of `records.jsonl`.

    Attributes:
        set: name of the set that its mean counts in.
        image: image within the set.
        object: position of the object in its image.
        prompt: how the prompts were made.
        miou: column -> step -> mask IoU.
        mbiou: column -> step -> boundary IoU.
        scores: column -> step -> source ("sam", "own", "own_boundary") -> what it says of the mask; may be empty.
        removed: column -> "pixel" (1 where a negative click's own pixel left the mask, else 0) and "region" (which
            share of the surplus region around it did); without columns where nothing was to be removed.
    """

    set: str
    image: str
    object: int
    prompt: str
    miou: dict[str, dict[str, float]]
    mbiou: dict[str, dict[str, float]]
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    removed: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes a record unique."""
        return self.set, self.image, self.object, self.prompt

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it has.

        Raises:
            ValueError: its parts have different columns.
        """
        return common_columns(miou=self.miou, mbiou=self.mbiou)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return {name: value for name, value in asdict(self).items() if name not in ("scores", "removed") or value}


def score_prompts(sample: PromptSample, dilation_ratio: float = DILATION_RATIO) -> PromptRecord:
    """Score every step of every column; of several annotations the one with the highest IoU counts for each metric.

    Raises:
        ValueError: no prediction or no annotation, or masks that are no (H, W) bool arrays of one shape.
    """
    name = f"{sample.set}, {sample.image}, object {sample.object}"
    if not sample.predictions or not all(sample.predictions.values()):
        raise ValueError(f"no prediction for {name}")
    if not sample.targets:
        raise ValueError(f"no annotation of {name}")
    rings: list[NDArray[np.bool_]] = []
    miou: dict[str, dict[str, float]] = {}
    mbiou: dict[str, dict[str, float]] = {}
    for column, steps in sample.predictions.items():
        miou[column], mbiou[column] = {}, {}
        for step, pred in steps.items():
            for target in sample.targets:
                check_pair(pred, target)
            rings = rings or [boundary_region(target, dilation_ratio) for target in sample.targets]
            ring = boundary_region(pred, dilation_ratio)
            miou[column][step] = max(mask_iou(pred, target) for target in sample.targets)
            mbiou[column][step] = max(mask_iou(ring, target) for target in rings)
    scores = {column: {step: dict(by) for step, by in steps.items()} for column, steps in sample.scores.items()}
    removed = {column: dict(shares) for column, shares in sample.removed.items()}
    return PromptRecord(sample.set, sample.image, sample.object, sample.prompt, miou, mbiou, scores, removed)


class PromptScores(Collected[PromptRecord]):
    """Evaluator (see `hqsam.metrics.Evaluator`) of prompts of any kind.

    Args:
        dilation_ratio: ring width of the boundary IoU as a share of the image diagonal.
        noc_targets: mask IoU that the number of clicks is counted to.

    Raises:
        ValueError: a target outside (0, 1].
    """

    def __init__(self, dilation_ratio: float = DILATION_RATIO, noc_targets: Sequence[float] = NOC_TARGETS) -> None:
        super().__init__()
        wrong = [target for target in noc_targets if not 0 < target <= 1]
        if wrong:
            raise ValueError(f"clicks are counted to a mask IoU within (0, 1], got {wrong}")
        self.dilation_ratio = dilation_ratio
        self.noc_targets = tuple(noc_targets)

    def update(self, sample: PromptSample) -> PromptRecord:
        """Score a sample and keep the scores; the masks are not kept.

        Raises:
            ValueError: unusable masks, other columns than the samples before, or a sample that came before.
        """
        record = score_prompts(sample, self.dilation_ratio)
        self.merge([[record]])
        return record

    def compute(self) -> dict[str, dict[str, dict[str, float]]]:
        """Set name -> column -> metric; see `prompt_metrics`.

        Raises:
            ValueError: records of one kind of prompt with different steps.
        """
        return {
            name: {column: prompt_metrics(records, column, self.noc_targets) for column in in_order(records[0].columns)}
            for name, records in self.by_set().items()
        }


def prompt_metrics(
    records: Sequence[PromptRecord], column: str, noc_targets: Sequence[float] = NOC_TARGETS
) -> dict[str, float]:
    """Means over the objects of a set.

    Args:
        records: at least one; of each kind of prompt all with the same steps.
        column: which of their columns.
        noc_targets: mask IoU that the number of clicks is counted to.

    Returns:
        "miou_STEP" and "mbiou_STEP" in percent for each step. From clicks also "noc85" and "noc90", the mean number of
        clicks until the mask IoU is reached, where an object that never reaches it counts with all its clicks, and
        "nof85" and "nof90", how many of those there are. From negative clicks "removed_pixel" and "removed_region", in
        percent of the "n_negative" objects that had something to remove. Where scores were recorded,
        `score_correlations` of each step and of all steps together. "n" objects, whatever they were prompted with.

    Raises:
        ValueError: records of one kind of prompt with different steps.
    """
    scores: dict[str, float] = {}
    for prompt in sorted({record.prompt for record in records}):
        group = [record for record in records if record.prompt == prompt]
        steps = list(group[0].miou[column])
        other = next((record for record in group if set(record.miou[column]) != set(steps)), None)
        if other is not None:
            raise ValueError(
                f"every record of {prompt!r} needs the same steps: {other.key} has {list(other.miou[column])}, "
                f"{group[0].key} has {steps}"
            )
        for step in steps:
            scores[f"miou_{step}"] = _percent([record.miou[column][step] for record in group])
            scores[f"mbiou_{step}"] = _percent([record.mbiou[column][step] for record in group])
            scores |= {f"{name}_{step}": value for name, value in score_correlations(group, column, [step]).items()}
        curves = [_clicks(record.miou[column]) for record in group]
        for target in noc_targets if curves[0] else ():
            name = f"{100 * target:g}"
            needed = [clicks_to_reach(curve, target) for curve in curves]
            scores[f"noc{name}"] = math.fsum(count or len(curves[0]) for count in needed) / len(needed)
            scores[f"nof{name}"] = sum(count is None for count in needed)
    gone = [record.removed[column] for record in records if column in record.removed]
    for name in ("pixel", "region") if gone else ():
        scores[f"removed_{name}"] = _percent([shares[name] for shares in gone])
    if gone:
        scores["n_negative"] = len(gone)
    scores |= score_correlations(records, column)
    scores["n"] = len({(record.image, record.object) for record in records})
    return scores


def score_correlations(
    records: Sequence[PromptRecord], column: str, steps: Sequence[str] | None = None
) -> dict[str, float]:
    """How well the scores of masks go with their quality.

    Args:
        records: with or without scores.
        column: which of their columns.
        steps: which of their steps; None: all of them.

    Returns:
        "pearson_sam_miou": the correlation, in -1..1, of SAM's score and the true mask IoU; the same with "spearman",
        "own" and "mbiou", for which "own" is the predicted boundary IoU. What is not defined, because there are fewer
        than two masks or all numbers are equal, is absent.
    """
    found: dict[str, float] = {}
    for truth, sources in _JUDGED.items():
        for source, name in sources.items():
            pairs = [
                (by[source], getattr(record, truth)[column][step])
                for record in records
                for step, by in record.scores.get(column, {}).items()
                if source in by and (steps is None or step in steps)
            ]
            given, true = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            for kind, correlation in (("pearson", pearson), ("spearman", spearman)):
                value = correlation(given, true)
                if value is not None:
                    found[f"{kind}_{name}_{truth}"] = value
    return found


def clicks_to_reach(curve: Sequence[float], target: float) -> int | None:
    """The first click, counted from 1, after which the IoU is at least the target; None if there is none."""
    return next((k for k, iou in enumerate(curve, start=1) if iou >= target), None)


def _clicks(steps: Mapping[str, float]) -> list[float]:
    """The IoU after each click, in order; empty for other prompts."""
    found = {int(match[1]): iou for step, iou in steps.items() if (match := _CLICK.fullmatch(step))}
    return [found[number] for number in sorted(found)]


def _percent(values: Sequence[float]) -> float:
    return 100.0 * math.fsum(values) / len(values)
