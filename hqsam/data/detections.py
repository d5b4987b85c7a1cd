"""Boxes to prompt with: those of any detector, as a JSON file of COCO results, or those of the annotated instances."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.data.annotation_files import listing
from hqsam.errors import DataError
from hqsam.metrics.instance_records import ImageId, InstanceTruth
from hqsam.rle import rle_box

logger = logging.getLogger(__name__)


class ImageBoxes(NamedTuple):
    """The boxes of one image.

    Attributes:
        boxes: (N, 4) float64 XYXY in pixels of the original image.
        categories: (N,) category ids.
        scores: (N,) scores, at least 0.
    """

    boxes: NDArray[np.float64]
    categories: list[int]
    scores: list[float]


@dataclass(frozen=True)
class Detections:
    """Boxes of the images of a set.

    Attributes:
        source: where they are from, for reports.
        images: image id -> boxes, in the order of the file; images without boxes have an empty entry.
        left_out: how many boxes were left out: "zero_size", "outside", "beyond_top_k".
    """

    source: str
    images: dict[ImageId, ImageBoxes]
    left_out: dict[str, int]

    def describe(self) -> dict[str, Any]:
        """What a report says about them."""
        counts = [len(found.scores) for found in self.images.values()]
        return {
            "source": self.source,
            "boxes": sum(counts),
            "images_without_boxes": counts.count(0),
            "left_out": self.left_out,
            "digest": self.digest(),
        }

    def digest(self) -> str:
        """16 hexadecimal digits that differ where any box, score or category does."""
        found = hashlib.sha256()
        for number, (boxes, categories, scores) in self.images.items():
            found.update(f"{number!r} {categories} {scores}".encode())
            found.update(np.ascontiguousarray(boxes).tobytes())
        return found.hexdigest()[:16]


class _Rows:
    """Numbers of millions of results: as Python objects they would need many times the size of the file."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.categories: list[Any] = []
        self.numbers = array("d")  # x, y, width, height, score

    def take(self, value: dict[str, Any]) -> Any:
        """Keep one result and leave a mark in its place; whatever else is in the file stays as it is."""
        if "bbox" not in value:
            return value
        self.numbers.extend(_numbers(value, len(self.images)))
        self.images.append(value.get("image_id"))
        self.categories.append(value.get("category_id"))
        return _TAKEN


_TAKEN = "result"


def read_detections(
    file: Path, truth: InstanceTruth, *, top_k: int | None = None, class_agnostic: bool = False
) -> Detections:
    """Read a detector's boxes.

    A list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}; other keys do not matter. Boxes that
    have no area or lie wholly outside their image cannot prompt anything: they are left out and counted. Those that
    stick out are kept as they are.

    Args:
        file: JSON.
        truth: the set that they belong to.
        top_k: only the best boxes of each image; equal scores in the order of the file. None for all.
        class_agnostic: categories are not looked at; every box is of category 1.

    Raises:
        DataError: the file is malformed; a box of an unknown image or category, with a negative width or height, or
            with numbers that are not finite; a score that is negative or not finite.
    """
    rows = _read_rows(file)
    unknown = sorted({str(number) for number in set(rows.images) - truth.images.keys()})
    if unknown:
        raise DataError(f"{file} has boxes of {len(unknown)} images that are not in the set: {listing(unknown)}")
    if not class_agnostic and (strange := sorted(map(str, set(rows.categories) - truth.categories.keys()))):
        raise DataError(
            f"{file} has boxes of {len(strange)} categories that the set does not have: {listing(strange)}; without "
            "categories evaluate class-agnostic"
        )
    values = np.frombuffer(rows.numbers, dtype=np.float64).reshape(-1, 5) if rows.images else np.zeros((0, 5))
    of_image: dict[ImageId, list[int]] = {number: [] for number in truth.images}
    for row, number in enumerate(rows.images):
        of_image[number].append(row)
    left_out = {"zero_size": 0, "outside": 0, "beyond_top_k": 0}
    images, beyond = {}, 0
    for number, found in of_image.items():
        picked = values[found]
        usable = _usable(picked, truth.images[number].size_hw, left_out)
        beyond += _count_beyond(picked[usable], truth.images[number].size_hw)
        best = usable[np.argsort(-picked[usable, 4], kind="stable")[:top_k]] if top_k is not None else usable
        left_out["beyond_top_k"] += len(usable) - len(best)
        best.sort()
        categories = [1 if class_agnostic else rows.categories[found[k]] for k in best.tolist()]
        images[number] = ImageBoxes(_corners(picked[best]), categories, picked[best, 4].tolist())
    _report(file, left_out, beyond, len(values))
    return Detections(file.name, images, left_out)


def true_boxes(truth: InstanceTruth) -> Detections:
    """The tight boxes (inclusive pixels) of the annotated masks, all of score 1; crowds and empty masks have none."""
    found: dict[ImageId, list[tuple[list[float], int]]] = {number: [] for number in truth.images}
    left_out = {"crowd": 0, "zero_size": 0}
    for item in truth.instances:
        x, y, width, height = rle_box(item.rle)
        if item.crowd or width == 0:
            left_out["crowd" if item.crowd else "zero_size"] += 1
            continue
        found[item.image].append(([x, y, x + width - 1, y + height - 1], item.category))
    images = {
        number: ImageBoxes(
            np.array([box for box, _ in boxes], dtype=np.float64).reshape(-1, 4),
            [category for _, category in boxes],
            [1.0] * len(boxes),
        )
        for number, boxes in found.items()
    }
    return Detections("tight boxes of the annotated masks", images, left_out)


def _read_rows(file: Path) -> _Rows:
    rows = _Rows()
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_hook=rows.take)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"boxes cannot be read: {file} ({error})") from error
    if not isinstance(content, list):
        raise DataError(f"{file} must hold a list of results with image_id, category_id, bbox and score")
    if strange := [position for position, entry in enumerate(content) if entry is not _TAKEN]:
        raise DataError(f"{file}: {len(strange)} entries have no bbox: number {listing(strange)}")
    if len(rows.images) != len(content):
        raise DataError(f"{file}: a result must not hold other results with a bbox")
    return rows


def _numbers(value: Mapping[str, Any], position: int) -> list[float]:
    """x, y, width, height, score of a result.

    Raises:
        DataError: they are not what they should be.
    """
    number, box, score = value.get("image_id"), value["bbox"], value.get("score")
    where = f"box {position} (image {number})"
    if type(number) not in (int, str):
        raise DataError(f"{where}: image_id must be a number or text, got {number!r}")
    if type(value.get("category_id", 1)) is not int:
        raise DataError(f"{where}: category_id must be a whole number, got {value.get('category_id')!r}")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        raise DataError(f"{where}: bbox must be four finite numbers, x, y, width, height, got {str(box)[:80]}")
    if box[2] < 0 or box[3] < 0:
        raise DataError(f"{where}: width and height of a bbox cannot be negative, got {box}; is it x0, y0, x1, y1?")
    if not _is_finite(score) or score < 0:  # type: ignore[operator]
        raise DataError(f"{where}: score must be a finite number, 0 or more, got {score!r}")
    return [*box, score]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _usable(values: NDArray[np.float64], size_hw: tuple[int, int], left_out: dict[str, int]) -> NDArray[np.intp]:
    """Rows of the boxes that can be prompted with; counts the others."""
    corners = _corners(values)
    empty = (values[:, 2] == 0) | (values[:, 3] == 0)
    height, width = size_hw
    outside = (corners[:, :2] >= [width, height]).any(axis=1) | (corners[:, 2:] <= 0).any(axis=1)
    left_out["zero_size"] += int(empty.sum())
    left_out["outside"] += int((outside & ~empty).sum())
    return np.flatnonzero(~(empty | outside))


def _corners(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([values[:, :2], values[:, :2] + values[:, 2:4]], axis=1)


def _count_beyond(values: NDArray[np.float64], size_hw: tuple[int, int]) -> int:
    """Boxes that end more than a tenth of the image beyond it."""
    height, width = size_hw
    return int((_corners(values)[:, 2:] > [1.1 * width, 1.1 * height]).any(axis=1).sum())


def _report(file: Path, left_out: Mapping[str, int], beyond: int, total: int) -> None:
    for reason in ("zero_size", "outside"):
        if left_out[reason]:
            what = "without an area" if reason == "zero_size" else "wholly outside their image"
            logger.warning("%s: %d of %d boxes are %s and are left out", file, left_out[reason], total, what)
    if beyond > total / 4:
        logger.warning(
            "%s: %d of %d boxes end far outside their image; a bbox is x, y, width, height, not x0, y0, x1, y1",
            file,
            beyond,
            total,
        )
