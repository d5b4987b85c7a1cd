"""Average precision from overlaps that are known already: pycocotools' matching, with the overlap replaced."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Category = int | str

AREA_BORDERS = (128.0**2, 256.0**2)
"""Small up to, medium up to, in pixels: of YouTube-VIS's evaluation program."""
_LARGEST = 1e10
_MAX_DETECTIONS = (1, 10, 100)
_AP50, _AP75 = 0, 5
"""Positions of 0.50 and 0.75 among the ten thresholds from 0.50 to 0.95."""


class Truth(NamedTuple):
    """A true object."""

    category: Category
    area: float
    is_crowd: bool


class Detection(NamedTuple):
    """A prediction; `overlap` has a number for each true object of the same category in its video, in order."""

    category: Category
    score: float
    area: float
    overlap: Sequence[float]


def average_precision(
    truths: Sequence[Sequence[Truth]],
    detections: Sequence[Sequence[Detection]],
    area_borders: tuple[float, float] = AREA_BORDERS,
) -> Iterator[tuple[str, str, float]]:
    """AP and AR as COCO defines them.

    Args:
        truths: of each video, or image.
        detections: of each of them.
        area_borders: pixels up to which an object is small, and up to which it is medium.

    Yields:
        ("ap" or "ar", what distinguishes it: "", "50", "s", "100", ..., number in [0, 1]) for all that are defined.

    Raises:
        ValueError: a detection whose overlaps are not as many as there are true objects of its category.
    """
    evaluation = _evaluate(truths, detections, area_borders)
    precision, recall = evaluation["precision"], evaluation["recall"]  # (T, R, K, A, M), (T, K, A, M)
    every, most = slice(None), len(_MAX_DETECTIONS) - 1
    rows: list[tuple[str, str, NDArray[np.float64]]] = [
        ("ap", "", precision[..., 0, most]),
        ("ap", "50", precision[_AP50, ..., 0, most]),
        ("ap", "75", precision[_AP75, ..., 0, most]),
        *(("ap", size, precision[..., area, most]) for area, size in enumerate("sml", start=1)),
        *(("ar", str(count), recall[every, every, 0, m]) for m, count in enumerate(_MAX_DETECTIONS)),
    ]
    for kind, rest, values in rows:
        defined = values[values > -1]  # pycocotools' mark of a category without a true object
        if defined.size:
            yield kind, rest, float(defined.mean())


def _evaluate(
    truths: Sequence[Sequence[Truth]], detections: Sequence[Sequence[Detection]], area_borders: tuple[float, float]
) -> dict[str, Any]:
    from pycocotools.cocoeval import COCOeval

    class KnownOverlaps(COCOeval):  # type: ignore[misc]
        """The overlaps are read from the detections, in the order that the matching expects."""

        def computeIoU(self, image: int, category: int) -> Any:
            rows = sorted(self._dts[image, category], key=lambda item: -item["score"])[: self.params.maxDets[-1]]
            count = len(self._gts[image, category])
            return np.array([item["overlap"] for item in rows], dtype=np.float64).reshape(len(rows), count)

    known = {truth.category for video in truths for truth in video}
    ids = {category: k for k, category in enumerate(sorted(known, key=lambda c: (isinstance(c, str), c)), start=1)}
    small, medium = area_borders
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        true = _table(_truth_rows(truths, ids), len(truths), ids)
        found = _table(_detection_rows(detections, truths, ids), len(truths), ids)
        evaluator = KnownOverlaps(true, found, iouType="bbox")
        evaluator.params.areaRng = [[0, _LARGEST], [0, small], [small, medium], [medium, _LARGEST]]
        evaluator.params.maxDets = list(_MAX_DETECTIONS)
        evaluator.evaluate()
        evaluator.accumulate()
    result: dict[str, Any] = evaluator.eval
    return result


def _truth_rows(truths: Sequence[Sequence[Truth]], ids: dict[Category, int]) -> Iterator[dict[str, Any]]:
    for video, items in enumerate(truths, start=1):
        for truth in items:
            place = {"image_id": video, "category_id": ids[truth.category]}
            yield {**place, "area": truth.area, "iscrowd": int(truth.is_crowd)}


def _detection_rows(
    detections: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Truth]], ids: dict[Category, int]
) -> Iterator[dict[str, Any]]:
    """Those of categories without a true object in the whole set are left out: COCO's mean leaves them out too."""
    for video, (items, true) in enumerate(zip(detections, truths, strict=True), start=1):
        for item in items:
            expected = sum(truth.category == item.category for truth in true)
            if len(item.overlap) != expected:
                raise ValueError(
                    f"video {video - 1}: a detection of category {item.category!r} has {len(item.overlap)} overlaps, "
                    f"there are {expected} true objects"
                )
            if item.category in ids:
                place = {"image_id": video, "category_id": ids[item.category], "area": item.area}
                yield {**place, "score": item.score, "overlap": list(item.overlap), "iscrowd": 0}


def _table(rows: Iterator[dict[str, Any]], videos: int, ids: dict[Category, int]) -> Any:
    """A COCO index. Ids count from 1: its matching takes an object of id 0 for none."""
    from pycocotools.coco import COCO

    table = COCO()
    table.dataset = {
        "images": [{"id": video} for video in range(1, videos + 1)],
        "categories": [{"id": number} for number in ids.values()],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, start=1)],
    }
    table.createIndex()
    return table
