"""Average precision by pycocotools' own matching and accumulation, given the overlaps.

pycocotools visits every image for every category and size, 1.6 million visits for COCO's 5000 images, of which nearly
all have nothing to compare. Here it is asked for those that have, and gets their results as if they were all; this
changes no number, because it drops the empty ones itself.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from hqsam.metrics.instance_overlaps import LOWEST, Key, Matrix, Pairs
from hqsam.metrics.instance_records import ImageId, InstanceRecord, InstanceTruth, Score
from hqsam.rle import rle_area

Entries = dict[Key, list[dict[str, Any]]]
"""Image and category -> annotations or results as pycocotools wants them."""

SIZES = {"small": "s", "medium": "m", "large": "l"}


def order_images(truth: InstanceTruth) -> dict[ImageId, int]:
    """Image id -> its position among the sorted ids, in which order equal scores of different images rank."""
    return {number: position for position, number in enumerate(sorted(truth.images))}


def truth_entries(truth: InstanceTruth) -> list[dict[str, Any]]:
    """The instances as annotations. They are numbered from 1: pycocotools takes a match with number 0 for none."""
    position = order_images(truth)
    return [
        {
            "id": number,
            "image_id": position[item.image],
            "category_id": item.category,
            "segmentation": item.rle,
            "area": item.area,
            "iscrowd": int(item.crowd),
        }
        for number, item in enumerate(truth.instances, 1)
    ]


def detection_entries(
    records: Sequence[InstanceRecord],
    column: str,
    by: Score,
    truth: InstanceTruth,
    limit: int | None = None,
    counts: Mapping[ImageId, Collection[int]] | None = None,
) -> list[dict[str, Any]]:
    """The masks of a column as results, best score of each image first; equal scores in the order of the record.

    Args:
        records: of the images of one set.
        column: which masks.
        by: what ranks them.
        truth: the set.
        limit: only so many of each image.
        counts: image -> categories that count in it; of the best masks the others are dropped. None for all.
    """
    position = order_images(truth)
    entries: list[dict[str, Any]] = []
    for record in records:
        scores, masks = record.scores(column, by), record.masks[column]
        order = np.argsort([-score for score in scores], kind="mergesort")[:limit]
        for index in order.tolist():
            if counts is not None and record.categories[index] not in counts[record.image]:
                continue
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": position[record.image],
                    "category_id": record.categories[index],
                    "segmentation": masks[index],
                    "area": float(rle_area(masks[index])),  # one by one: pycocotools fails on more than 255 at once
                    "score": scores[index],
                }
            )
    return entries


def grouped(entries: Iterable[dict[str, Any]]) -> Entries:
    """Entries by image and category, in their order."""
    groups: Entries = {}
    for entry in entries:
        groups.setdefault((entry["image_id"], entry["category_id"]), []).append(entry)
    return groups


def paired(truth: Entries, detections: Entries, limit: int | None = None) -> dict[Key, Pairs]:
    """Where there are both masks and instances.

    Args:
        truth: instances.
        detections: masks, best score first.
        limit: only so many masks of an image and category.
    """
    return {
        key: Pairs(
            [entry["segmentation"] for entry in detections[key][:limit]],
            [entry["segmentation"] for entry in truth[key]],
            [bool(entry.get("iscrowd", 0)) for entry in truth[key]],
            [entry["id"] for entry in truth[key]],
        )
        for key in sorted(truth.keys() & detections.keys())
        if truth[key] and detections[key]
    }


class Unmatched:
    """Results where no overlap reaches the lowest threshold: they are the same for every metric of a column.

    With a hundred boxes an image most of its categories are such: something was found that is not there.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Key, tuple[float, float]], Any] = {}
        self._matched: set[Key] = set()

    def use(self, overlaps: Mapping[Key, Matrix]) -> None:
        """Take the overlaps of the next metric."""
        self._matched = {key for key, matrix in overlaps.items() if (matrix >= LOWEST).any()}

    def result(self, key: Key, area_range: tuple[float, float], visit: Callable[[], Any]) -> Any:
        """Of an image and category: the remembered one, or a new one."""
        if key in self._matched:
            return visit()
        if (key, area_range) not in self._known:
            self._known[key, area_range] = visit()
        return self._known[key, area_range]


def packed(
    truth: Entries,
    detections: Entries,
    categories: Sequence[int],
    ranges: Sequence[Any],
    visit: Callable[[int, int, Any], Any],
    unmatched: Unmatched,
) -> tuple[list[Any], int]:
    """Results in the layout that the evaluators read, category by area range by image, without the empty images.

    Every block is as long as the longest one: None fills it, as it stands for an image with nothing to compare. It
    also stands where every area is out of range: all would be ignored, and what is ignored changes neither precision
    nor recall.

    Args:
        truth: instances.
        detections: masks.
        categories: in order.
        ranges: area ranges, in order.
        visit: from image, category and area range to a result.
        unmatched: remembers results that no overlap takes part in.

    Returns:
        The results and the length of a block.
    """
    images: dict[int, list[int]] = {}
    areas: dict[Key, list[float]] = {}
    for image, category in sorted(truth.keys() | detections.keys()):
        images.setdefault(category, []).append(image)
        entries = (*truth.get((image, category), ()), *detections.get((image, category), ()))
        areas[image, category] = [entry["area"] for entry in entries]
    slots = max(map(len, images.values()), default=0)
    results: list[Any] = []
    for category in categories:
        for area_range in ranges:
            low, high = area_range
            row = [
                unmatched.result((image, category), (low, high), lambda: visit(image, category, area_range))  # noqa: B023
                for image in images.get(category, ())
                if any(low <= area <= high for area in areas[image, category])
            ]
            results += row + [None] * (slots - len(row))
    return results, slots


def mean_of_defined(values: NDArray[np.float64]) -> float | None:
    """Mean in percent of what is not -1, which marks categories without an instance; None if nothing is left."""
    defined = values[values > -1]
    return 100.0 * float(np.mean(defined)) if len(defined) else None


class CocoMatching:
    """COCO's rules: a crowd is no miss, and any number of masks may lie in it without being false.

    Args:
        truth: from `truth_entries`.
        detections: from `detection_entries`.
        categories: all that are averaged over.
        limit: masks of an image and category that count, best scores first.
    """

    def __init__(
        self,
        truth: Sequence[dict[str, Any]],
        detections: Sequence[dict[str, Any]],
        categories: Iterable[int],
        limit: int = 100,
    ) -> None:
        self._evaluator = COCOeval(iouType="segm")
        self._categories, self._limit = sorted(categories), limit
        self._unmatched = Unmatched()
        self._truth, self._detections = grouped(truth), grouped(detections)
        for entry in truth:
            entry["ignore"] = entry["iscrowd"]
        self._evaluator._gts = {key: self._truth.get(key, []) for key in self._keys}
        self._evaluator._dts = {key: self._detections.get(key, []) for key in self._keys}

    @property
    def _keys(self) -> set[Key]:
        return self._truth.keys() | self._detections.keys()

    def pairs(self) -> dict[Key, Pairs]:
        """What has to be compared."""
        return paired(self._truth, self._detections, self._limit)

    def evaluate(self, overlaps: Mapping[Key, Matrix]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Match by these overlaps.

        Returns:
            Precision (T, R, K, A): thresholds, recalls, categories, area ranges; and recall (T, K, A).
        """
        run = self._evaluator
        run.params = params = type(run.params)("segm")
        params.catIds, params.maxDets = self._categories, [self._limit]
        run.ious = {key: overlaps.get(key, []) for key in self._keys}
        self._unmatched.use(overlaps)
        run.evalImgs, slots = packed(
            self._truth,
            self._detections,
            self._categories,
            params.areaRng,
            lambda image, category, area_range: run.evaluateImg(image, category, area_range, self._limit),
            self._unmatched,
        )
        params.imgIds = list(range(slots))
        run._paramsEval = copy.deepcopy(params)
        with contextlib.redirect_stdout(io.StringIO()):  # it reports progress by print
            run.accumulate()
        return run.eval["precision"][..., 0], run.eval["recall"][..., 0]

    def average_precision(self, overlaps: Mapping[Key, Matrix]) -> dict[str, float]:
        """AP in percent: "", "50", "75" and the sizes "s", "m", "l"; what no instance defines is absent."""
        precision, _ = self.evaluate(overlaps)
        thresholds = self._evaluator.params.iouThrs
        labels = self._evaluator.params.areaRngLbl
        found = {
            "": mean_of_defined(precision[..., 0]),
            "50": mean_of_defined(precision[thresholds == 0.5, ..., 0]),
            "75": mean_of_defined(precision[thresholds == 0.75, ..., 0]),
            **{SIZES[label]: mean_of_defined(precision[..., labels.index(label)]) for label in SIZES},
        }
        return {name: value for name, value in found.items() if value is not None}
