"""Outlines drawn with the VGG Image Annotator (VIA): one JSON file about many images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hqsam.data.annotation_files import Annotation, listing, object_records, warn_left_out
from hqsam.data.records import ImageRecord
from hqsam.data.segmentations import pack_segmentation
from hqsam.errors import DataError

_SHAPES = ("polygon", "polyline")
"""Both are closed: NDD20's outlines are drawn with the second one."""


def read_via(file: Path, images: Path, set_name: str) -> list[ImageRecord]:
    """One record for each image that has an outline, sorted by its name.

    The file says nothing of sizes: outlines are drawn on the image as it is. Those of fewer than three corners are left
    out, with a warning that counts them. An object is named by its attribute `species`, if it has one.

    Args:
        file: JSON of VIA 1 or 2, an export of annotations or a project.
        images: folder of the images.
        set_name: name of the set, first part of each key.

    Raises:
        DataError: the file is not of this kind, has a shape that is no outline, is about an image twice or about one
            that is not there, or no outline is left.
    """
    shapes = _read_shapes(file)
    if missing := sorted(name for name in shapes if not (images / name).is_file()):
        raise DataError(f"{file} is about {len(missing)} images that are not in {images}: {listing(missing)}")
    found = [item for name in sorted(shapes) for item in shapes[name]]
    kept = [item for item in found if item.packed]
    if not kept:
        raise DataError(f"{file} has no outline ({len(shapes)} images, {len(found)} of fewer than three corners)")
    warn_left_out(len(found) - len(kept), len(found), file)
    objects = object_records(kept, file, lambda _: None, lambda item: item.category_id)
    of_image: dict[str, list[Any]] = {}
    for item, obj in zip(kept, objects, strict=True):
        of_image.setdefault(str(item.image_id), []).append(obj)
    return [
        ImageRecord(
            key=f"{set_name}/{name}", set_name=set_name, source=set_name, image=images / name, objects=tuple(own)
        )
        for name, own in of_image.items()
    ]


def _read_shapes(file: Path) -> dict[str, list[Annotation]]:
    """Image name -> its outlines, in the order of the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"annotation file cannot be read: {file} ({error})") from error
    found: dict[str, list[Annotation]] = {}
    try:
        for entry in content.get("_via_img_metadata", content).values():
            name, regions = str(entry["filename"]), entry["regions"]
            if name in found:
                raise DataError(f"{file} is about {name} more than once")
            listed = regions.values() if isinstance(regions, dict) else regions
            found[name] = [_outline(region, name, number, file) for number, region in enumerate(listed)]
    except KeyError as error:
        raise DataError(f"{file} is no file of the VGG Image Annotator: an entry lacks {error}") from error
    except (AttributeError, TypeError) as error:
        raise DataError(f"{file} is no file of the VGG Image Annotator: {error}") from error
    return found


def _outline(region: dict[str, Any], name: str, number: int, file: Path) -> Annotation:
    shape = region["shape_attributes"]
    if shape["name"] not in _SHAPES:
        raise DataError(f"{file}: {name}, region {number} is a {shape['name']}; outlines are {' or '.join(_SHAPES)}")
    xs, ys = shape["all_points_x"], shape["all_points_y"]
    if len(xs) != len(ys):
        raise DataError(f"{file}: {name}, region {number} has {len(xs)} x and {len(ys)} y")
    try:
        packed, _ = pack_segmentation([[value for corner in zip(xs, ys, strict=True) for value in corner]])
    except ValueError as error:
        raise DataError(f"{file}: {name}, region {number}: {error}") from error
    species = str(region.get("region_attributes", {}).get("species", ""))
    return Annotation(f"{name}, region {number}", name, species, None, False, None, packed)
