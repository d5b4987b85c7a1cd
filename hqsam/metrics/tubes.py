"""Tube Mask AP (Yang et al. 2019, YouTube-VIS) and Tube Boundary AP (Ke et al. 2022, HQ-YTVIS) of video instances.

A tube is the masks of one object in all frames of a video. Two tubes overlap by the sum over frames of their
intersections, divided by the sum over frames of their unions: a wrong association counts as a wrong mask. For the
boundary version the masks are replaced by their boundary rings (`hqsam.metrics.boundary`), and the overlap is the
smaller one of that of the rings and that of the masks.

Matching, precision and recall are those of pycocotools' `COCOeval`, a video taking the place of an image; overlaps are
computed here. With videos of one frame the numbers are those of COCO.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from hqsam.metrics.boundary import DILATION_RATIO, boundary_region
from hqsam.metrics.tube_precision import AREA_BORDERS, Category, Detection, Truth, average_precision
from hqsam.rle import Rle, decode_rle, encode_rle, rle_area

Masks = Sequence[Rle | None]
"""One mask for each frame; None where the object is not there, which is the same as an empty mask."""


class Tube(NamedTuple):
    """One object of a video.

    Attributes:
        category: number or name.
        masks: for each frame of the video, in order.
        score: of a prediction, any finite number; ignored in a true tube.
        is_crowd: whether a true tube outlines many objects at once; ignored in a prediction.
        area: mean area of a true tube as its data set states it, in pixels; None: that of its masks. Only small,
            medium and large objects depend on it.
    """

    category: Category
    masks: Masks
    score: float = 1.0
    is_crowd: bool = False
    area: float | None = None


class TubeSample(NamedTuple):
    """All true and all predicted tubes of a video; no prediction is an empty list, for each column."""

    set: str
    video: str
    truths: Sequence[Tube]
    predictions: Mapping[str, Sequence[Tube]]  # column -> tubes


@dataclass(frozen=True)
class TubeRecord:
    """What the numbers need of a video; one line of `records.jsonl`.

    Attributes:
        set: name of the set that it counts in.
        video: name within the set.
        truths: {"category", "area", "is_crowd"} of each true tube.
        predictions: column -> {"category", "score", "area", "overlap", "overlap_b"} of each prediction; the last two
            are lists with a number in [0, 1] for each true tube of the same category, in order.
    """

    set: str
    video: str
    truths: list[dict[str, Any]]
    predictions: dict[str, list[dict[str, Any]]]

    @property
    def key(self) -> tuple[str, str]:
        """What makes a record unique."""
        return self.set, self.video

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return asdict(self)


def tube_overlap(pred: Masks, target: Masks, is_crowd: bool = False) -> float:
    """Sum of the intersections of all frames over the sum of their unions.

    Args:
        pred: one mask, or None, for each frame.
        target: of the same frames.
        is_crowd: `target` outlines many objects: the area of `pred` takes the place of the union, as in COCO.

    Returns:
        A number in [0, 1]; 0.0 where there is nothing in any frame.

    Raises:
        ValueError: tubes of different lengths, or masks of different sizes.
    """
    check_tubes([pred, target], "the two tubes")
    shared, ours, theirs = 0, 0, 0
    for p, t in zip(pred, target, strict=True):
        ours += 0 if p is None else rle_area(p)
        theirs += 0 if t is None else rle_area(t)
        shared += 0 if p is None or t is None else _intersection(p, t)
    whole = ours if is_crowd else ours + theirs - shared
    return shared / whole if whole else 0.0


def tube_rings(masks: Masks, dilation_ratio: float = DILATION_RATIO) -> list[Rle | None]:
    """The boundary rings of a tube, frame by frame; see `boundary_region`."""
    return [None if mask is None else encode_rle(boundary_region(decode_rle(mask), dilation_ratio)) for mask in masks]


def tube_area(masks: Masks) -> float:
    """Mean area of the frames in which there is something, in pixels; 0.0 if there is nothing in any."""
    areas = [area for area in (rle_area(mask) for mask in masks if mask is not None) if area]
    return math.fsum(areas) / len(areas) if areas else 0.0


def check_tubes(tubes: Sequence[Masks], where: str) -> None:
    """Refuse tubes that cannot be of one video.

    Raises:
        ValueError: different numbers of frames, or masks of different sizes.
    """
    lengths = Counter(len(masks) for masks in tubes)
    if len(lengths) > 1:
        raise ValueError(
            f"{where}: every tube needs a mask or None for each frame of the video, got lengths {sorted(lengths)}"
        )
    sizes = Counter(tuple(mask["size"]) for masks in tubes for mask in masks if mask is not None)
    if len(sizes) > 1:
        raise ValueError(f"{where}: the masks of a video have one size, got (height, width) {sorted(sizes)}")


def score_tubes(sample: TubeSample, dilation_ratio: float = DILATION_RATIO) -> TubeRecord:
    """Compute what every prediction overlaps of the true tubes of its category; masks are not kept.

    Raises:
        ValueError: no column, a score that is not finite, tubes of different lengths, masks of different sizes.
    """
    if not sample.predictions:
        raise ValueError(f"no column of predictions for {sample.set}, {sample.video}; no prediction is an empty list")
    everything = [*sample.truths, *(tube for tubes in sample.predictions.values() for tube in tubes)]
    check_tubes([tube.masks for tube in everything], f"{sample.set}, {sample.video}")
    rings = [tube_rings(tube.masks, dilation_ratio) for tube in sample.truths]
    return TubeRecord(
        sample.set,
        sample.video,
        truths=[
            {
                "category": tube.category,
                "area": tube_area(tube.masks) if tube.area is None else float(tube.area),
                "is_crowd": bool(tube.is_crowd),
            }
            for tube in sample.truths
        ],
        predictions={
            column: [_score_prediction(tube, sample, rings, dilation_ratio) for tube in tubes]
            for column, tubes in sample.predictions.items()
        },
    )


def _score_prediction(tube: Tube, sample: TubeSample, rings: Sequence[Masks], dilation_ratio: float) -> dict[str, Any]:
    if not math.isfinite(tube.score):
        raise ValueError(f"{sample.set}, {sample.video}: the score of a prediction must be finite, got {tube.score}")
    truths = [pair for pair in zip(sample.truths, rings, strict=True) if pair[0].category == tube.category]
    overlap = [tube_overlap(tube.masks, truth.masks, truth.is_crowd) for truth, _ in truths]
    own = tube_rings(tube.masks, dilation_ratio) if truths else []
    smaller = [
        both if truth.is_crowd else min(both, tube_overlap(own, ring))
        for both, (truth, ring) in zip(overlap, truths, strict=True)
    ]
    return {
        "category": tube.category,
        "score": float(tube.score),
        "area": tube_area(tube.masks),
        "overlap": overlap,
        "overlap_b": smaller,
    }


class TubeScores:
    """Evaluator (see `hqsam.metrics.Evaluator`) of Tube Mask AP and Tube Boundary AP.

    Args:
        dilation_ratio: ring width of the boundary version as a share of the image diagonal.
        area_borders: pixels up to which an object is small, and up to which it is medium, by its mean area; those of
            YouTube-VIS's evaluation program. COCO's are (32**2, 96**2).
    """

    def __init__(
        self, dilation_ratio: float = DILATION_RATIO, area_borders: tuple[float, float] = AREA_BORDERS
    ) -> None:
        self.dilation_ratio = dilation_ratio
        self.area_borders = area_borders
        self._records: dict[tuple[str, str], TubeRecord] = {}

    def update(self, sample: TubeSample) -> TubeRecord:
        """Score a video.

        Raises:
            ValueError: as in `score_tubes`, other columns than the videos before, or a video that came before.
        """
        record = score_tubes(sample, self.dilation_ratio)
        self.merge([[record]])
        return record

    def state(self) -> list[TubeRecord]:
        """The records, sorted by their key."""
        return [self._records[key] for key in sorted(self._records)]

    def merge(self, states: Iterable[list[TubeRecord]]) -> None:
        """Add the records of other evaluators.

        Raises:
            ValueError: a record that is here already, or whose columns differ from the records here.
        """
        for record in (record for state in states for record in state):
            if record.key in self._records:
                raise ValueError(f"duplicate record: set, video = {record.key}")
            first = next(iter(self._records.values()), record)
            if record.predictions.keys() != first.predictions.keys():
                raise ValueError(
                    f"every record needs the same columns: {record.key} has {sorted(record.predictions)}, "
                    f"{first.key} has {sorted(first.predictions)}"
                )
            self._records[record.key] = record

    def compute(self) -> dict[str, dict[str, dict[str, float]]]:
        """Set -> column -> metric.

        In percent: "ap", "ap50", "ap75", "aps", "apm", "apl", "ar1", "ar10", "ar100", and the same of the boundary
        version: "ap_b", "ap_b50", ..., "ar_b1", ... What is not defined, for want of true tubes, is absent. Counts: "n"
        true tubes that are no crowds, "n_videos", "n_predictions" of the column.
        """
        groups: dict[str, list[TubeRecord]] = {}
        for record in self.state():
            groups.setdefault(record.set, []).append(record)
        return {name: self._of_set(records) for name, records in groups.items()}

    def _of_set(self, records: list[TubeRecord]) -> dict[str, dict[str, float]]:
        truths = [[Truth(**truth) for truth in record.truths] for record in records]
        count = sum(not truth.is_crowd for video in truths for truth in video)
        scores: dict[str, dict[str, float]] = {}
        for column in records[0].predictions:
            predictions = [record.predictions[column] for record in records]
            scores[column] = {}
            for infix, overlap in (("", "overlap"), ("_b", "overlap_b")):
                detections = [
                    [Detection(item["category"], item["score"], item["area"], item[overlap]) for item in video]
                    for video in predictions
                ]
                for kind, rest, value in average_precision(truths, detections, self.area_borders):
                    scores[column][f"{kind}{infix}{rest}"] = 100 * value
            counts = {"n": count, "n_videos": len(records), "n_predictions": sum(map(len, predictions))}
            scores[column].update(counts)
        return scores


def _intersection(one: Rle, other: Rle) -> int:
    from pycocotools import mask as coco

    return int(coco.area(coco.merge([one, other], intersect=True)))
