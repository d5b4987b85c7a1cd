"""One JSON file for each image, as SA-1B and `hqsam auto` have it: `image` and `annotations` with run lengths."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from hqsam.data.annotation_files import (
    keep_objects,
    listing,
    object_records,
    read_annotation_file,
    stated_size,
    warn_left_out,
)
from hqsam.data.records import ImageRecord
from hqsam.errors import DataError


def read_sa1b_folder(images: Path, annotations: Path, files: dict[str, Path], set_name: str) -> list[ImageRecord]:
    """One record for each image with objects, sorted by its path.

    Args:
        images: folder of the images.
        annotations: folder of the JSON files; may be the same.
        files: the JSON files by their path inside that folder without suffix, sorted.
        set_name: name of the set, first part of each key.

    Raises:
        DataError: a file is not of this kind, its image is missing, or no object is left.
    """
    records, empty, total = [], 0, 0
    for file in files.values():
        place = file.parent.relative_to(annotations)
        record, left_out, count = read_sa1b(file, read_annotation_file(file), images, place, set_name)
        empty, total = empty + left_out, total + count
        if record is not None:
            records.append(record)
    if not records:
        raise DataError(f"data set {set_name}: none of {len(files)} JSON files in {annotations} has an object")
    warn_left_out(empty, total, annotations)
    counts = Counter(record.key for record in records)
    if twice := sorted(key for key, count in counts.items() if count > 1):
        raise DataError(f"data set {set_name}: several JSON files are about {listing(twice)}")
    return sorted(records, key=lambda record: record.key)


def read_sa1b(
    file: Path, content: dict[str, Any], images: Path, place: Path, set_name: str
) -> tuple[ImageRecord | None, int, int]:
    """The image of one JSON file, or None if it has no object; annotations without an area; all annotations.

    Args:
        file: the JSON file.
        content: of it, from `read_annotation_file`.
        images: folder of the images.
        place: sub-folder of it that the image is in.
        set_name: first part of the key.

    Raises:
        DataError: the file is not of this kind, or its image is missing.
    """
    image = content.get("image")
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        raise DataError(f"{file} has neither images (COCO) nor an image with a file_name (SA-1B)")
    name = place / image["file_name"]
    path = images / name
    if not path.is_file():
        raise DataError(
            f"{file} is about an image that is not there: {path}; write IMAGES:{file.name} if it is elsewhere"
        )
    size = stated_size(image, str(file))
    kept, empty = keep_objects(content["annotations"], file)
    if not kept:
        return None, empty, len(content["annotations"])
    objects = object_records(kept, file, lambda _: size, lambda _: "")
    key = f"{set_name}/{name.as_posix()}"
    record = ImageRecord(key=key, set_name=set_name, source=set_name, image=path, objects=tuple(objects))
    return record, empty, len(content["annotations"])
