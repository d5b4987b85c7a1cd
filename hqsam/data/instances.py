"""COCO, LVIS and UVO annotations as the truth of an evaluation: with crowds, exact areas and images without objects."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqsam.data.annotation_files import Annotation, listing, read_annotation_file
from hqsam.data.coco import ImageEntry, coco_set_name, find_images, locate_image, read_image_entries
from hqsam.data.segmentations import packed_rle
from hqsam.errors import DataError
from hqsam.metrics.instance_records import ImageId, InstanceTruth, TrueImage, TrueInstance
from hqsam.rle import rle_area

logger = logging.getLogger(__name__)

_FREQUENCIES = ("r", "c", "f")


@dataclass(frozen=True)
class InstanceSet:
    """A set of images whose instances are annotated.

    Attributes:
        name: of the set.
        truth: its annotated instances.
        images: image id -> file.
    """

    name: str
    truth: InstanceTruth
    images: dict[ImageId, Path]

    def first(self, count: int | None) -> InstanceSet:
        """The same set with the first images alone, in the order of their ids; None for all."""
        kept = sorted(self.images)[:count]
        return InstanceSet(self.name, self.truth.of_images(kept), {number: self.images[number] for number in kept})


def read_instance_set(
    file: Path, images: Path | None = None, *, name: str | None = None, class_agnostic: bool = False
) -> InstanceSet:
    """Read an annotation file for evaluation.

    Unlike `open_dataset` it keeps what an evaluation counts: crowds, images without objects, annotations without a
    pixel (misses, counted in a warning), the order of the file, and areas as they are stated. An area that is not
    stated is the mask's. Of LVIS's images the categories that were looked for in vain or not annotated exhaustively
    are kept.

    Args:
        file: JSON with images, annotations and categories.
        images: folder of the images; None: it is looked for, see `hqsam.data.coco.find_images`.
        name: of the set; None takes it from the file.
        class_agnostic: every annotation is of one category, number 1; the file needs no categories.

    Raises:
        DataError: an id occurs twice or is unknown, a segmentation is damaged or of another size than its image, an
            image has no size or no file.
    """
    content = read_annotation_file(file, crowds=True)
    if not isinstance(content.get("images"), list):
        raise DataError(f"{file}: an annotation file for evaluation has a list of images (COCO, LVIS, UVO)")
    entries: dict[Any, ImageEntry] = dict(read_image_entries(file, content["images"]))
    if unsized := [number for number, entry in entries.items() if entry.size_hw is None]:
        raise DataError(f"{file}: {len(unsized)} images have no height and width: {listing(unsized)}")
    _check_ids(file, content["annotations"], entries)
    categories = {1: ""} if class_agnostic else _categories(file, content.get("categories"))
    lists = {} if class_agnostic else {image["id"]: image for image in content["images"]}
    truth = {
        number: TrueImage(
            entry.size_hw or (0, 0),
            _category_list(file, lists.get(number, {}), "neg_category_ids"),
            _category_list(file, lists.get(number, {}), "not_exhaustive_category_ids"),
        )
        for number, entry in entries.items()
    }
    instances = _instances(file, content["annotations"], truth, None if class_agnostic else categories)
    try:
        checked = InstanceTruth(truth, categories, instances)
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error
    return InstanceSet(name or coco_set_name(file), checked, _locate_all(file, entries, images))


def _check_ids(file: Path, annotations: list[Annotation], entries: dict[Any, ImageEntry]) -> None:
    if twice := [number for number, count in Counter(item.id for item in annotations).items() if count > 1]:
        raise DataError(f"{file}: {len(twice)} ids of annotations occur more than once: {listing(twice)}")
    if unknown := [item.id for item in annotations if item.image_id not in entries]:
        raise DataError(f"{file}: {len(unknown)} annotations are of images that are not listed: {listing(unknown)}")


def _categories(file: Path, categories: Any) -> dict[int, str]:
    if not isinstance(categories, list) or not categories:
        raise DataError(f"{file}: there is no list of categories; a set without classes is evaluated class-agnostic")
    found: dict[int, str] = {}
    for entry in categories:
        number = entry.get("id") if isinstance(entry, dict) else None
        if type(number) is not int or number in found:
            raise DataError(f"{file}: categories need whole numbers as ids, each once, got {str(entry)[:80]}")
        frequency = entry.get("frequency", "")
        if frequency not in ("", *_FREQUENCIES):
            raise DataError(f"{file}: category {number}: frequency is r, c or f, got {frequency!r}")
        found[number] = frequency
    return found


def _category_list(file: Path, image: dict[str, Any], key: str) -> frozenset[int]:
    values = image.get(key, [])
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise DataError(f"{file}: image {image.get('id')}: {key} must be a list of category ids, got {values!r}")
    return frozenset(values)


def _instances(
    file: Path, annotations: list[Annotation], images: dict[Any, TrueImage], categories: dict[int, str] | None
) -> tuple[TrueInstance, ...]:
    """In the order of the file; `categories` None makes everything number 1."""
    if categories is not None and (unknown := [a.id for a in annotations if a.category_id not in categories]):
        raise DataError(f"{file}: {len(unknown)} annotations are of categories that are not listed: {listing(unknown)}")
    found, empty = [], 0
    for item in annotations:
        size = images[item.image_id].size_hw
        if item.size_hw is not None and item.size_hw != size:
            raise DataError(
                f"{file}: annotation {item.id} is drawn on {item.size_hw[1]} x {item.size_hw[0]}, but its image is "
                f"{size[1]} x {size[0]} (width x height)"
            )
        try:
            rle = packed_rle(item.packed, size)
        except ValueError as error:
            raise DataError(f"{file}: annotation {item.id} is damaged: {error}") from error
        empty += not item.packed
        area = rle_area(rle) if item.area is None else item.area
        category = 1 if categories is None else item.category_id
        found.append(TrueInstance(item.image_id, category, rle, float(area), item.is_crowd))  # type: ignore[arg-type]
    if empty:
        logger.warning("%s: %d of %d annotations have no pixel; they count as missed", file, empty, len(annotations))
    return tuple(found)


def _locate_all(file: Path, entries: dict[Any, ImageEntry], folder: Path | None) -> dict[ImageId, Path]:
    folder = folder or find_images(file, next(iter(entries.values())).names)
    found = {number: locate_image(folder, entry.names) for number, entry in entries.items()}
    if missing := [entries[number].names[0] for number, path in found.items() if path is None]:
        raise DataError(f"{file} names {len(missing)} images that are not in {folder}: {listing(missing)}")
    return {number: path for number, path in found.items() if path is not None}
