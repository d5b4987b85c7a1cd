"""COCO and LVIS instance annotations: one JSON file with `images`, `annotations` and, for names, `categories`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from hqsam.data.annotation_files import (
    Annotation,
    Size,
    keep_objects,
    listing,
    object_records,
    stated_size,
    warn_left_out,
)
from hqsam.data.records import ImageRecord, ObjectRecord
from hqsam.errors import DataError

_NO_NAMES = frozenset({"_annotations.coco", "annotations", "coco", "instances", "instances_default", "labels"})
"""What tools call a file or its folder whatever is in it; the folder above names the set then."""


class ImageEntry(NamedTuple):
    """One entry of "images".

    Attributes:
        names: where it may lie, relative to the folder of images.
        size_hw: (height, width) as the file states it.
    """

    names: tuple[str, ...]
    size_hw: Size | None


def read_coco(file: Path, content: dict[str, Any], images: Path | None = None) -> list[ImageRecord]:
    """One record for each image that has objects, sorted by its path; objects in the order of the file.

    Args:
        file: the JSON file.
        content: of it, from `read_annotation_file`.
        images: folder of the images; None: it is looked for, see `find_images`.

    Raises:
        DataError: an id occurs twice or is unknown, a segmentation is malformed or of another size than its image, an
            image file is missing, or no object is left.
    """
    entries = read_image_entries(file, content["images"])
    kept, empty = keep_objects(content["annotations"], file)
    if unknown := [item.id for item in content["annotations"] if item.image_id not in entries]:
        raise DataError(f"{file}: {len(unknown)} annotations are of images that are not listed: {listing(unknown)}")
    if not kept:
        count = len(content["annotations"])
        raise DataError(f"{file} lists no object ({count} annotations, {empty} of them without an area)")
    warn_left_out(empty, len(content["annotations"]), file)
    names = _category_names(content.get("categories"))
    objects = object_records(
        kept, file, lambda item: entries[item.image_id].size_hw, lambda item: names.get(item.category_id, "")
    )
    return _records(file, entries, kept, objects, images)


def find_images(file: Path, names: tuple[str, ...]) -> Path:
    """The folder of the images, going by one of them.

    Looked for in this order: beside the file, in `images` beside it, one folder up, in `images` there; then in the
    sub-folders of these, where the name of one that occurs in the file's name is preferred (`annotations/
    instances_val2017.json` and `val2017`).

    Raises:
        DataError: it is in none, or in several sub-folders.
    """
    beside = file.absolute().parent
    bases = [beside, beside / "images", beside.parent, beside.parent / "images"]
    for base in bases:
        if locate_image(base, names):
            return base
    inside = {sub for base in bases if base.is_dir() for sub in base.iterdir() if sub.is_dir()}
    holders = sorted(folder for folder in inside if locate_image(folder, names))
    for found in ([folder for folder in holders if folder.name in file.stem], holders):
        if len(found) == 1:
            return found[0]
    if holders:
        raise DataError(f"{file}: {names[0]} is in {listing(holders)}; say which as IMAGES:{file.name}")
    looked = f"{listing(bases)} and in their sub-folders"
    raise DataError(f"{file}: image {names[0]} not found, looked for in {looked}; write IMAGES:{file.name}")


def _records(
    file: Path,
    entries: dict[int | str | None, ImageEntry],
    kept: list[Annotation],
    objects: list[ObjectRecord],
    folder: Path | None,
) -> list[ImageRecord]:
    of_image: dict[int | str | None, list[ObjectRecord]] = {}
    for item, obj in zip(kept, objects, strict=True):
        of_image.setdefault(item.image_id, []).append(obj)
    order = sorted(of_image, key=lambda number: entries[number].names[0])
    folder = folder or find_images(file, entries[order[0]].names)
    set_name = coco_set_name(file)
    records, missing = [], []
    for number in order:
        names = entries[number].names
        path = locate_image(folder, names)
        if path is None:
            missing.append(names[0])
            continue
        key = f"{set_name}/{names[0]}"
        records.append(
            ImageRecord(key=key, set_name=set_name, source=set_name, image=path, objects=tuple(of_image[number]))
        )
    if missing:
        raise DataError(f"{file} names {len(missing)} images that are not in {folder}: {listing(missing)}")
    return records


def read_image_entries(file: Path, images: Any) -> dict[int | str | None, ImageEntry]:
    """The images of a file by their ids.

    Raises:
        DataError: an image without id or name, or two of one id or name.
    """
    if not isinstance(images, list):
        raise DataError(f"{file}: images must be a list, got {type(images).__name__}")
    entries: dict[int | str | None, ImageEntry] = {}
    for position, image in enumerate(images):
        number = image.get("id") if isinstance(image, dict) else None
        if type(number) not in (int, str):
            raise DataError(f"{file}: image {position} of the list must have an id, a number or text")
        if number in entries:
            raise DataError(f"{file}: two images have the id {number}")
        names = _image_names(image)
        if not names:
            raise DataError(f"{file}: image {number} has neither file_name nor coco_url")
        entries[number] = ImageEntry(names, stated_size(image, f"{file}: image {number}"))
    if twice := [name for name, count in Counter(entry.names[0] for entry in entries.values()).items() if count > 1]:
        raise DataError(f"{file} lists {len(twice)} images more than once: {listing(sorted(twice))}")
    return entries


def _image_names(image: dict[str, Any]) -> tuple[str, ...]:
    """LVIS has `coco_url` alone, whose last two parts are folder and file of the COCO image."""
    name, url = image.get("file_name"), image.get("coco_url")
    names = [name] if isinstance(name, str) and name else []
    if isinstance(url, str) and url:
        parts = url.split("/")
        names += ["/".join(parts[-2:]), parts[-1]]
    return tuple(names)


def _category_names(categories: Any) -> dict[Any, str]:
    if not isinstance(categories, list):
        return {}
    known = [item for item in categories if isinstance(item, dict) and type(item.get("id")) in (int, str)]
    return {item["id"]: str(item.get("name", "")) for item in known}


def locate_image(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these names that is a file below the folder."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def coco_set_name(file: Path) -> str:
    """What a set is called after its file, or after a folder above one that tools always call the same."""
    absolute = file.absolute()
    candidates = [absolute.stem, *(folder.name for folder in absolute.parents if folder.name)]
    return next((name for name in candidates if name not in _NO_NAMES), absolute.stem)
