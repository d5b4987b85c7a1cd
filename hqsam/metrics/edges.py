"""Boundary detection scored as by the BSDS500 benchmark: ODS, OIS, AP, R50.

A soft boundary map is thresholded, thinned and matched with each annotator's boundaries in turn
(`hqsam.metrics.edge_matching`). A predicted pixel is right if any annotator matches it; recall counts the boundary
pixels of all annotators (Arbelaez et al., PAMI 2011). ODS is the best F of one threshold for the whole set, between
two thresholds interpolated; OIS takes the best threshold of each image; AP is the area under precision over recall; R50
is the recall at 50 % precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.collecting import Collected, common_columns, in_order
from hqsam.metrics.edge_matching import TOLERANCE, TrueEdges, thin_mask

THRESHOLDS = 99
"""How many thresholds the benchmark takes: 0.01, 0.02, ... 0.99."""
_BETWEEN = 100
"""Steps between two thresholds on the way to the best F."""

Floats = NDArray[np.float64]


class EdgeSample(NamedTuple):
    """One image: the boundary map of each column, and the boundaries that people drew."""

    set: str
    image: str
    maps: Mapping[str, NDArray[Any]]  # column -> (H, W): floating in [0, 1], or uint8 in 0..255
    truths: NDArray[np.bool_]  # (K, H, W), one annotator each, thin


@dataclass(frozen=True)
class EdgeRecord:
    """Pixel counts of one image at every threshold; one line of `records.jsonl`.

    Attributes:
        set: name of the set.
        image: image within the set.
        annotators: how many people annotated it.
        true_pixels: boundary pixels of all of them.
        recalled: column -> for each threshold, how many of `true_pixels` are matched.
        correct: column -> for each threshold, how many of `predicted` match any annotator.
        predicted: column -> for each threshold, pixels of the thinned map.
    """

    set: str
    image: str
    annotators: int
    true_pixels: int
    recalled: dict[str, list[int]]
    correct: dict[str, list[int]]
    predicted: dict[str, list[int]]

    @property
    def key(self) -> tuple[str, str]:
        """What makes a record unique."""
        return self.set, self.image

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it has.

        Raises:
            ValueError: its parts have different columns.
        """
        return common_columns(recalled=self.recalled, correct=self.correct, predicted=self.predicted)

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return asdict(self)


def edge_thresholds(count: int = THRESHOLDS) -> Floats:
    """The benchmark's thresholds: evenly spread within 0 and 1, both left out.

    Raises:
        ValueError: fewer than one.
    """
    if count < 1:
        raise ValueError(f"at least one threshold is needed, got {count}; the benchmark takes {THRESHOLDS}")
    steps: Floats = np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count)
    return steps


def score_edges(
    sample: EdgeSample, thresholds: int = THRESHOLDS, tolerance: float = TOLERANCE, *, thin: bool = True
) -> EdgeRecord:
    """Count the matched pixels of every column at every threshold.

    Args:
        sample: maps and annotations.
        thresholds: how many.
        tolerance: largest distance of a matched pair as a share of the image diagonal.
        thin: thin each thresholded map, as the benchmark does.

    Raises:
        ValueError: no column or no annotator, other shapes or kinds of arrays, or values that are NaN or outside
            [0, 1].
    """
    name = f"{sample.set}, {sample.image}"
    truths = sample.truths
    if not isinstance(truths, np.ndarray) or truths.dtype != np.bool_ or truths.ndim != 3 or not len(truths):
        raise ValueError(f"{name}: the annotations must be a (K, H, W) bool array, K at least 1")
    if not sample.maps:
        raise ValueError(f"{name}: no boundary map")
    levels = edge_thresholds(thresholds)
    maps = {column: _checked_map(values, truths.shape[1:], name) for column, values in sample.maps.items()}
    targets = [TrueEdges(truth, tolerance) for truth in truths]
    counts = {column: _count(values, targets, levels, thin) for column, values in maps.items()}
    parts = [{column: count[k] for column, count in counts.items()} for k in range(3)]
    return EdgeRecord(sample.set, sample.image, len(truths), sum(target.count for target in targets), *parts)


def _checked_map(values: NDArray[Any], shape: tuple[int, ...], name: str) -> Floats:
    kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
    if not isinstance(values, np.ndarray) or values.shape != shape:
        raise ValueError(f"{name}: a boundary map must have the annotations' shape {shape}, got {np.shape(values)}")
    if values.dtype == np.uint8:
        return values / 255.0
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{name}: a boundary map must be floating in [0, 1] or uint8 in 0..255, got {kind}")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"{name}: a boundary map must lie within [0, 1], got {values.min()} .. {values.max()}")
    return values.astype(np.float64)


def _count(
    values: Floats, targets: Sequence[TrueEdges], levels: Floats, thin: bool
) -> tuple[list[int], list[int], list[int]]:
    """For each threshold: matched true pixels, matched predicted pixels, predicted pixels."""
    rows: list[tuple[int, int, int]] = []
    size = -1
    for level in levels:
        mask = values >= level
        before, size = size, int(np.count_nonzero(mask))
        if size == before:  # each mask holds the next one: as many pixels are the same pixels
            rows.append(rows[-1])
            continue
        pixels = np.flatnonzero(thin_mask(mask) if thin else mask)
        correct, recalled = np.zeros(len(pixels), dtype=np.bool_), 0
        for target in targets:
            matched, pairs = target.match(pixels)
            correct |= matched
            recalled += pairs
        rows.append((recalled, int(np.count_nonzero(correct)), len(pixels)))
    recalls, corrects, predicted = zip(*rows, strict=True)
    return list(recalls), list(corrects), list(predicted)


class EdgeScores(Collected[EdgeRecord]):
    """Evaluator (see `hqsam.metrics.Evaluator`) of boundary maps.

    Args:
        thresholds: how many.
        tolerance: see `score_edges`.
        thin: see `score_edges`.
    """

    def __init__(self, thresholds: int = THRESHOLDS, tolerance: float = TOLERANCE, *, thin: bool = True) -> None:
        super().__init__()
        self.levels = edge_thresholds(thresholds)
        self.tolerance = tolerance
        self.thin = thin

    def update(self, sample: EdgeSample) -> EdgeRecord:
        """Match a sample and keep the counts.

        Raises:
            ValueError: as `score_edges`; other columns than the samples before, or a sample that came before.
        """
        record = score_edges(sample, len(self.levels), self.tolerance, thin=self.thin)
        self.merge([[record]])
        return record

    def compute(self) -> dict[str, dict[str, dict[str, float]]]:
        """Set name -> column -> metric, see `edge_metrics`.

        Raises:
            ValueError: a record with another number of thresholds.
        """
        return {
            name: {column: edge_metrics(records, column, self.levels) for column in in_order(records[0].columns)}
            for name, records in self.by_set().items()
        }


def edge_metrics(records: Sequence[EdgeRecord], column: str, levels: Floats) -> dict[str, float]:
    """The benchmark's numbers over the images of a set.

    Args:
        records: at least one.
        column: which of their columns.
        levels: the thresholds that they were made with.

    Returns:
        "ods", "ods_precision", "ods_recall", "ois", "ap", "r50" in percent, "ods_threshold" in [0, 1], "n" images.
        If nobody drew a boundary, only "n". Maps without grey values have one point on the curve and so no "ap", unless
        they find nothing at all, which is 0. "r50" is 0 where no threshold reaches 50 % precision.

    Raises:
        ValueError: a record with another number of thresholds.
    """
    counts = np.array([[r.recalled[column], r.correct[column], r.predicted[column]] for r in records], dtype=np.int64)
    if counts.shape[2] != len(levels):
        raise ValueError(f"the records have {counts.shape[2]} thresholds, this evaluation {len(levels)}")
    true_pixels = np.array([record.true_pixels for record in records], dtype=np.int64)
    scores: dict[str, float] = {"n": len(records)}
    if not true_pixels.any():
        return scores
    recall, precision = _ratios(counts.sum(axis=0), true_pixels.sum())
    threshold, best_recall, best_precision = _best_on_curve(levels, recall, precision)
    best = np.argmax(_f(*_ratios(counts.transpose(1, 0, 2), true_pixels[:, None])), axis=1)
    chosen = counts[np.arange(len(records)), :, best].sum(axis=0)
    scores |= {
        "ods": 100 * float(_f(best_recall, best_precision)),
        "ods_threshold": float(threshold),
        "ods_precision": 100 * float(best_precision),
        "ods_recall": 100 * float(best_recall),
        "ois": 100 * float(_f(*_ratios(chosen, true_pixels.sum()))),
        "r50": 100 * _recall_at(0.5, recall, precision),
    }
    area = _area(recall, precision)
    return scores if area is None else scores | {"ap": 100 * area}


def precision_recall(records: Sequence[EdgeRecord], column: str) -> tuple[Floats, Floats]:
    """The curve of a set: recall and precision at every threshold, in [0, 1], counts summed over the images.

    Args:
        records: at least one, all with the same number of thresholds.
        column: which of their columns.
    """
    counts = np.array([[r.recalled[column], r.correct[column], r.predicted[column]] for r in records], dtype=np.int64)
    return _ratios(counts.sum(axis=0), sum(record.true_pixels for record in records))


def _ratios(counts: NDArray[np.int64], true_pixels: Any) -> tuple[Floats, Floats]:
    """Recall and precision of (recalled, correct, predicted); 0 where there is nothing to divide by."""
    recalled, correct, predicted = counts
    return recalled / np.maximum(true_pixels, 1), correct / np.maximum(predicted, 1)


def _f(recall: Any, precision: Any) -> Any:
    total = recall + precision
    return 2 * recall * precision / np.where(total > 0, total, 1)


def _best_on_curve(levels: Floats, recall: Floats, precision: Floats) -> Floats:
    """(threshold, recall, precision) of the best F on the lines between neighbouring thresholds."""
    points = np.stack([levels, recall, precision])
    if len(levels) > 1:
        share = np.linspace(0, 1, _BETWEEN)
        points = (points[:, 1:, None] * share + points[:, :-1, None] * (1 - share)).reshape(3, -1)
    best: Floats = points[:, np.argmax(_f(points[1], points[2]))]
    return best


def _area(recall: Floats, precision: Floats) -> float | None:
    """Area under precision over recall in hundredths of recall, as the benchmark sums it: nothing outside the curve."""
    recalls, first = np.unique(recall, return_index=True)
    if len(recalls) == 1:
        return None if recalls[0] > 0 else 0.0
    steps = np.linspace(0, 1, 101)
    return float(np.interp(steps, recalls, precision[first], left=0.0, right=0.0).sum() * 0.01)


def _recall_at(wanted: float, recall: Floats, precision: Floats) -> float:
    """Recall at a precision, on the lines between the curve's points sorted by precision."""
    precisions, first = np.unique(precision, return_index=True)  # of equal precisions the lowest threshold's
    if precisions[-1] < wanted:
        return 0.0
    return float(np.interp(wanted, precisions, recall[first]))
