"""The overlap that instances are matched by: mask IoU, or the smaller one of mask IoU and boundary IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.boundary import ring_width
from hqsam.metrics.rings import RingMask
from hqsam.rle import Rle

MASK = "ap"
"""Metric of plain mask IoU."""
BOUNDARY = {"ap_b": 0.02, "ap_b_strict": 0.01}
"""Metrics whose overlap is the smaller one of mask IoU and boundary IoU -> ring width as a share of the diagonal."""
METRICS = (MASK, *BOUNDARY)
LOWEST = 0.5
"""Lowest threshold of AP and AR: an overlap below matches nothing, whatever it is exactly."""

Key = tuple[int, int]
"""Position of the image, category."""
Matrix = NDArray[np.float64]  # (detections, instances)


class Pairs(NamedTuple):
    """Masks and instances of one image and one category."""

    detections: Sequence[Rle]  # in the order of their scores
    truth: Sequence[Rle]
    crowd: Sequence[bool]
    ids: Sequence[int]  # of the instances, unique within the image


@dataclass
class Overlaps:
    """Metric -> image and category -> overlaps, as far as there are both masks and instances."""

    metrics: Sequence[str]
    of: dict[str, dict[Key, Matrix]] = field(init=False)

    def __post_init__(self) -> None:
        self.of = {metric: {} for metric in self.metrics}


def overlaps_of_columns(
    pairs: Mapping[str, Mapping[Key, Pairs]], sizes_hw: Sequence[tuple[int, int]], metrics: Sequence[str]
) -> dict[str, Overlaps]:
    """Overlaps of all columns, image by image: the rings of an instance serve every column, and are kept no longer.

    Args:
        pairs: column -> image and category -> what is compared.
        sizes_hw: (height, width) of each image.
        metrics: of `METRICS`.
    """
    of_images: dict[int, list[tuple[str, Key]]] = {}
    for column, found in pairs.items():
        for key in found:
            of_images.setdefault(key[0], []).append((column, key))
    tables = {column: Overlaps(metrics) for column in pairs}
    ratios = [BOUNDARY[metric] for metric in metrics if metric in BOUNDARY]
    for image, keys in of_images.items():
        rings = _TrueRings([ring_width(sizes_hw[image], ratio) for ratio in ratios])
        for column, key in keys:
            matrices = _matrices(pairs[column][key], rings, metrics)
            for metric, matrix in zip(metrics, matrices, strict=True):
                tables[column].of[metric][key] = matrix
    return tables


def plain_overlaps(pairs: Pairs) -> Matrix:
    """(detections, instances) mask IoU as pycocotools has it: of a crowd, the share of the mask that lies in it."""
    from pycocotools import mask as coco

    matrix = coco.iou(list(pairs.detections), list(pairs.truth), [int(crowd) for crowd in pairs.crowd])
    return np.asarray(matrix, dtype=np.float64).reshape(len(pairs.detections), len(pairs.truth))


class _TrueRings:
    """Rings of the instances of one image, each computed when it is first needed."""

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = widths
        self._known: dict[int, RingMask] = {}

    def of(self, number: int, rle: Rle) -> RingMask:
        """Rings of one instance."""
        if number not in self._known:
            self._known[number] = RingMask(rle, self.widths)
        return self._known[number]


def _matrices(pairs: Pairs, rings: _TrueRings, metrics: Sequence[str]) -> list[Matrix]:
    """One matrix for each metric; crowds have no boundary that a single mask could match, so theirs is mask IoU."""
    plain = plain_overlaps(pairs)
    boundary = [plain.copy() for _ in rings.widths]
    possible = (plain >= LOWEST) & ~np.asarray(pairs.crowd, dtype=np.bool_)
    for row in np.flatnonzero(possible.any(axis=1)).tolist() if boundary else ():
        own = RingMask(pairs.detections[row], rings.widths)
        for column in np.flatnonzero(possible[row]).tolist():
            found = own.overlaps(rings.of(pairs.ids[column], pairs.truth[column]))
            for matrix, overlap in zip(boundary, found, strict=True):
                matrix[row, column] = min(plain[row, column], overlap)
    rest = iter(boundary)
    return [plain if metric == MASK else next(rest) for metric in metrics]
