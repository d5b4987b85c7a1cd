"""Region similarity J and contour accuracy F of video object segmentation (DAVIS: Perazzi 2016, Pont-Tuset 2017).

| number | of an object's frames | of a set |
|---|---|---|
| J, F | mean | mean over objects |
| recall | share of frames above 0.5 | mean over objects |
| decay | mean of the first quarter - mean of the last | mean over objects |
| J&F | | (J + F) / 2 |

The rules are those of the published evaluation programs, including what they do with empty masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.iou import check_mask, check_pair, mask_iou

TOLERANCE = 0.008
"""How far a matching boundary pixel may lie, as a share of the image diagonal."""
RECALL_ABOVE = 0.5

ScoredFrames = Literal["inner", "all"]
"""Which frames of a video count: "inner": all but its first and its last, as DAVIS 2016 and the semi-supervised
evaluation of DAVIS 2017 do; "all": every frame, as the unsupervised evaluation of DAVIS 2017 does."""

_QUARTERS = 4
_SMALL_DISC = 16
"""Up to this radius dilation is faster than a distance transform, whose cost does not grow with it."""


def boundary_map(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Boundary pixels of a mask, one pixel thin: those that differ from the pixel to the right, below, or both.

    A contour between two pixels lies on the upper or left one. The edge of the image is no boundary.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: the mask is no (H, W) bool array.
    """
    check_mask("mask", mask)
    right = np.concatenate([mask[:, 1:], mask[:, -1:]], axis=1)
    here = (mask != right) | (mask != np.concatenate([mask[1:], mask[-1:]]))
    result: NDArray[np.bool_] = here | (mask != np.concatenate([right[1:], right[-1:]]))
    return result


def region_similarity(pred: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """J of one frame: intersection over union, 1.0 for two empty masks; errors as in `mask_iou`."""
    return mask_iou(pred, target)


def contour_accuracy(pred: NDArray[np.bool_], target: NDArray[np.bool_], tolerance: float = TOLERANCE) -> float:
    """F of one frame: how well the boundaries match, as the harmonic mean of precision and recall.

    A boundary pixel matches if the other mask has one within ceil(tolerance * diagonal) pixels (Euclidean distance).

    Args:
        pred: (H, W) bool.
        target: (H, W) bool.
        tolerance: as a share of the image diagonal.

    Returns:
        A number in [0, 1]. Neither mask has a boundary (both empty, or filling the image): 1.0. One of them: 0.0.

    Raises:
        ValueError: another dtype or number of dimensions, two different shapes, or a tolerance that is not positive.
    """
    check_pair(pred, target)
    if not (tolerance > 0 and math.isfinite(tolerance)):
        raise ValueError(f"tolerance must be a positive number, got {tolerance}; DAVIS uses {TOLERANCE}")
    radius = math.ceil(tolerance * math.sqrt(pred.shape[0] ** 2 + pred.shape[1] ** 2))
    window = _window(pred | target)
    ours, theirs = boundary_map(pred[window]), boundary_map(target[window])
    counts = int(np.count_nonzero(ours)), int(np.count_nonzero(theirs))
    if 0 in counts:
        return 1.0 if counts == (0, 0) else 0.0
    precision = np.count_nonzero(_near(theirs, radius) & ours) / counts[0]
    recall = np.count_nonzero(_near(ours, radius) & theirs) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _window(inside: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The box of all pixels inside and one pixel around it: every boundary lies in there."""
    columns = np.flatnonzero(inside.any(axis=0))
    if columns.size == 0:
        return np.s_[:1, :1]
    rows = np.flatnonzero(inside.any(axis=1))
    return np.s_[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]


def _near(boundary: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Pixels within a distance of the boundary, which has one at least: dilation by a disc."""
    import cv2

    if radius <= _SMALL_DISC:
        squares = np.arange(-radius, radius + 1) ** 2
        disc = (squares[:, None] + squares <= radius**2).astype(np.uint8)
        dilated = cv2.dilate(boundary.view(np.uint8), disc)
        return np.asarray(dilated, dtype=np.bool_)
    away = np.logical_not(boundary).view(np.uint8)
    distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squared distances are whole numbers: half-way to the next one, float32 cannot decide otherwise than exact ones.
    result: NDArray[np.bool_] = distance < math.sqrt(radius**2 + 0.5)
    return result


class Statistics(NamedTuple):
    """Of one measure over the frames of one object, in [0, 1]; decay in [-1, 1]."""

    mean: float
    recall: float
    decay: float


def sequence_statistics(values: Sequence[float]) -> Statistics:
    """Mean, recall and decay of one object's values, one for each frame that counts.

    The quarters of the decay share their border frames: with n values, quarter k begins at frame k (n - 1) / 4, rounded
    half up, and ends at the beginning of the next one, both inclusive.

    Raises:
        ValueError: no value.
    """
    count = len(values)
    if count == 0:
        raise ValueError("no frame to take the statistics of")
    starts = [(k * (count - 1) + 2) // _QUARTERS for k in range(_QUARTERS + 1)]
    first, last = values[: starts[1] + 1], values[starts[-2] :]
    recall = sum(value > RECALL_ABOVE for value in values) / count
    return Statistics(_mean(values), recall, _mean(first) - _mean(last))


class DavisSample(NamedTuple):
    """One object in all frames of a video.

    Each frame is (predictions, target) as in `score_frame`; predictions is None where the truth was given to the model.
    """

    set: str
    video: str
    object: int
    frames: Iterable[tuple[Mapping[str, NDArray[np.bool_]] | None, NDArray[np.bool_]]]


@dataclass(frozen=True)
class DavisRecord:
    """J and F of one object in every frame of a video, in [0, 1]; one line of `records.jsonl`.

    Attributes:
        set: name of the set that it counts in.
        video: name within the set.
        object: number of the object in its video.
        j: column -> J of each frame, the first and the last included; None where the truth was given.
        f: column -> F of each frame.
    """

    set: str
    video: str
    object: int
    j: dict[str, list[float | None]]
    f: dict[str, list[float | None]]

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes a record unique."""
        return self.set, self.video, self.object

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return asdict(self)


FrameScores = dict[str, tuple[float, float]]
"""Column -> J and F of one object in one frame, in [0, 1]."""


def score_frame(predictions: Mapping[str, NDArray[np.bool_]], target: NDArray[np.bool_]) -> FrameScores:
    """J and F of every column.

    Args:
        predictions: column -> (H, W) bool.
        target: (H, W) bool, the truth.

    Raises:
        ValueError: masks that are no (H, W) bool arrays of one shape.
    """
    return {
        column: (region_similarity(pred, target), contour_accuracy(pred, target))
        for column, pred in predictions.items()
    }


class ObjectScorer:
    """Collects the scores of one object of a video as its frames come; no mask is kept.

    Args:
        set_name: name of the set that it counts in.
        video: name within the set.
        number: of the object in its video.
    """

    def __init__(self, set_name: str, video: str, number: int) -> None:
        self._key = set_name, video, number
        self._frames: list[FrameScores | None] = []
        self._columns: set[str] | None = None

    def add(self, scores: FrameScores | None) -> None:
        """Take the scores of the next frame.

        Args:
            scores: from `score_frame`; None where the truth was given to the model, which does not count.

        Raises:
            ValueError: other columns than in the frames before.
        """
        if scores is not None:
            self._columns = self._columns or set(scores)
            if not scores or scores.keys() != self._columns:
                raise ValueError(
                    f"set, video, object = {self._key}: every frame needs the same columns, frame {len(self._frames)} "
                    f"has {sorted(scores) or 'none'}, another {sorted(self._columns) or 'none'}"
                )
        self._frames.append(scores)

    def record(self) -> DavisRecord:
        """The scores of all frames so far.

        Raises:
            ValueError: nothing was predicted in any of them.
        """
        scored = next((frame for frame in self._frames if frame is not None), None)
        if scored is None:
            raise ValueError(
                f"set, video, object = {self._key}: nothing is predicted in any of {len(self._frames)} frames"
            )
        j, f = (
            {column: [None if frame is None else frame[column][which] for frame in self._frames] for column in scored}
            for which in (0, 1)
        )
        return DavisRecord(*self._key, j=j, f=f)


def score_object(sample: DavisSample) -> DavisRecord:
    """Score every column of one object in all frames; errors as in `score_frame` and `ObjectScorer`."""
    scorer = ObjectScorer(sample.set, sample.video, sample.object)
    for predictions, target in sample.frames:
        scorer.add(None if predictions is None else score_frame(predictions, target))
    return scorer.record()


class DavisScores:
    """Evaluator (see `hqsam.metrics.Evaluator`) of J, F and J&F.

    Args:
        frames: which frames count, see `ScoredFrames`. Those whose truth was given never do.

    Raises:
        ValueError: `frames` is something else.
    """

    def __init__(self, frames: ScoredFrames = "inner") -> None:
        if frames not in get_args(ScoredFrames):
            raise ValueError(f"frames must be 'inner' or 'all', got {frames!r}")
        self.frames = frames
        self._records: dict[tuple[str, str, int], DavisRecord] = {}

    def update(self, sample: DavisSample) -> DavisRecord:
        """Score one object; its masks are not kept.

        Raises:
            ValueError: unusable masks, other columns than before, an object that came before, or no frame that counts.
        """
        record = score_object(sample)
        self.merge([[record]])
        return record

    def state(self) -> list[DavisRecord]:
        """The records, sorted by their key."""
        return [self._records[key] for key in sorted(self._records)]

    def merge(self, states: Iterable[list[DavisRecord]]) -> None:
        """Add the records of other evaluators.

        Raises:
            ValueError: a record that is here already, whose columns differ from the records here, or without a frame
                that counts.
        """
        for record in (record for state in states for record in state):
            if record.key in self._records:
                raise ValueError(f"duplicate record: set, video, object = {record.key}")
            first = next(iter(self._records.values()), record)
            if not record.j or record.j.keys() != first.j.keys() or record.f.keys() != first.j.keys():
                raise ValueError(
                    f"every record needs the same columns: {record.key} has {sorted(record.j)}, "
                    f"{first.key} has {sorted(first.j)}"
                )
            for values in (*record.j.values(), *record.f.values()):
                if not self._counted(values):
                    raise ValueError(
                        f"no frame of {record.key} counts: it has {len(values)}, frames={self.frames!r} leaves "
                        f"{'the first, the last and ' if self.frames == 'inner' else ''}those with a given truth out"
                    )
            self._records[record.key] = record

    def compute(self) -> dict[str, dict[str, dict[str, float]]]:
        """Set -> column -> metric, in percent: "jf"; "j", "j_recall", "j_decay", the same of "f"; and "n" objects."""
        groups: dict[str, list[DavisRecord]] = {}
        for record in self.state():
            groups.setdefault(record.set, []).append(record)
        return {name: self._of_set(records) for name, records in groups.items()}

    def of_videos(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """Set -> video -> column -> the metrics of `compute`, over the objects of each video."""
        groups: dict[str, dict[str, list[DavisRecord]]] = {}
        for record in self.state():
            groups.setdefault(record.set, {}).setdefault(record.video, []).append(record)
        return {
            name: {video: self._of_set(records) for video, records in videos.items()} for name, videos in groups.items()
        }

    def _of_set(self, records: list[DavisRecord]) -> dict[str, dict[str, float]]:
        scores = {}
        for column in records[0].j:
            metrics: dict[str, float] = {}
            for name in ("j", "f"):
                values = [getattr(record, name)[column] for record in records]
                objects = [sequence_statistics(self._counted(frames)) for frames in values]
                metrics[name] = 100 * _mean([item.mean for item in objects])
                metrics[f"{name}_recall"] = 100 * _mean([item.recall for item in objects])
                metrics[f"{name}_decay"] = 100 * _mean([item.decay for item in objects])
            scores[column] = {"jf": (metrics["j"] + metrics["f"]) / 2, **metrics, "n": len(records)}
        return scores

    def _counted(self, values: Sequence[float | None]) -> list[float]:
        frames = values[1:-1] if self.frames == "inner" else values
        return [value for value in frames if value is not None]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
