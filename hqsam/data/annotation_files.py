"""Annotation files (JSON): what those of COCO and of SA-1B have in common.

Every annotation is made small as soon as the parser has seen its end: coordinates as Python numbers would need several
times the size of the file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hqsam.data.records import ObjectRecord
from hqsam.data.segmentations import Segmentation, SegmentationTable, pack_segmentation
from hqsam.errors import DataError

logger = logging.getLogger(__name__)

Size = tuple[int, int]
_NAMED, _LARGE = 5, 10**8


class Annotation(NamedTuple):
    """One entry of "annotations".

    Attributes:
        id: number or text.
        image_id: of its image; None where the file is about one image.
        category_id: as the file has it.
        area: pixels, exactly as the file states it.
        is_crowd: whether it outlines many objects at once.
        size_hw: (height, width) that its run lengths state.
        packed: its segmentation, from `pack_segmentation`; empty if there is nothing inside, or if it is a crowd and
            those were not asked for.
    """

    id: int | str
    image_id: int | str | None
    category_id: Any
    area: float | None
    is_crowd: bool
    size_hw: Size | None
    packed: bytes


def read_annotation_file(file: Path, *, crowds: bool = False) -> dict[str, Any]:
    """The content of a JSON file, where "annotations" is a list of `Annotation`.

    Args:
        file: the JSON file.
        crowds: whether the segmentations of crowds are wanted, too.

    Raises:
        DataError: the file cannot be read, is no object with annotations, or one of them is malformed; names it.
    """
    if file.is_file() and (size := file.stat().st_size) >= _LARGE:
        logger.info("%s: reading %d MB of annotations", file, size // 10**6)
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_hook=partial(_compact, crowds=crowds))
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"annotation file cannot be read: {file} ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise DataError(
            f"{file} must hold a list of entries (a pack), or an object with a list of annotations and with images "
            "(COCO) or an image (SA-1B)"
        )
    try:
        found = content["annotations"]
        annotations = [item if isinstance(item, Annotation) else _annotation(item, crowds) for item in found]
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return {**content, "annotations": annotations}


def keep_objects(annotations: Sequence[Annotation], file: Path) -> tuple[list[Annotation], int]:
    """Those that are an object, and how many have nothing inside; crowds are in neither.

    Raises:
        DataError: two annotations have the same id.
    """
    seen: set[int | str] = set()
    twice = [item.id for item in annotations if item.id in seen or seen.add(item.id)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"{file}: {len(twice)} ids of annotations occur more than once: {listing(twice)}")
    objects = [item for item in annotations if not item.is_crowd]
    kept = [item for item in objects if item.packed and item.area != 0]
    return kept, len(objects) - len(kept)


def object_records(
    annotations: Sequence[Annotation],
    file: Path,
    size_of: Callable[[Annotation], Size | None],
    name_of: Callable[[Annotation], str],
) -> list[ObjectRecord]:
    """Records of annotations, in the same order, with one table for their segmentations.

    Args:
        annotations: from `keep_objects`.
        file: they are from.
        size_of: (height, width) of an annotation's image, as the file states it.
        name_of: an annotation's class.

    Raises:
        DataError: run lengths of another size than their image.
    """
    sizes = []
    for item in annotations:
        stated = size_of(item)
        if stated and item.size_hw and stated != item.size_hw:
            raise DataError(
                f"{file}: annotation {item.id} is drawn on {item.size_hw[1]} x {item.size_hw[0]}, but its image is "
                f"{stated[1]} x {stated[0]} (width x height)"
            )
        sizes.append(item.size_hw or stated or (0, 0))
    table = SegmentationTable(file, [item.id for item in annotations], sizes, [item.packed for item in annotations])
    return [
        ObjectRecord(mask=Segmentation(table, row), name=name_of(item), area=_whole(item.area))
        for row, item in enumerate(annotations)
    ]


def stated_size(image: dict[str, Any], where: str) -> Size | None:
    """(height, width) of an entry about an image; None where it has neither.

    Raises:
        DataError: they are not positive whole numbers.
    """
    sides = image.get("height"), image.get("width")
    if sides == (None, None):
        return None
    if not all(type(side) is int and side > 0 for side in sides):
        raise DataError(f"{where}: height and width must be positive whole numbers, got {sides[0]!r} and {sides[1]!r}")
    return sides  # type: ignore[return-value]


def warn_left_out(count: int, total: int, where: Path) -> None:
    """Say how many annotations have nothing inside, if any."""
    if count:
        logger.warning("%s: %d of %d annotations have no area and are left out", where, count, total)


def listing(items: Sequence[object]) -> str:
    """The first five, and how many more there are."""
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(str(item) for item in items[:_NAMED]) + more


def _whole(area: float | None) -> int | None:
    return None if area is None else max(round(area), 1 if area > 0 else 0)


def _compact(value: dict[str, Any], *, crowds: bool) -> dict[str, Any] | Annotation:
    return _annotation(value, crowds) if "segmentation" in value else value


def _annotation(value: Any, crowds: bool) -> Annotation:
    if not isinstance(value, dict) or type(value.get("id")) not in (int, str):
        raise DataError(f"an annotation must have an id, a number or text, got {str(value)[:80]}")
    number, area, is_crowd = value["id"], value.get("area"), value.get("iscrowd", 0)
    if type(value.get("image_id")) not in (int, str, type(None)):
        raise DataError(f"annotation {number}: image_id must be a number or text, got {value['image_id']!r}")
    if area is not None and (isinstance(area, bool) or not isinstance(area, int | float) or not 0 <= area < 1e12):
        raise DataError(f"annotation {number}: area must be a number of pixels, got {area!r}")
    try:
        wanted = crowds or not is_crowd
        packed, size_hw = pack_segmentation(value.get("segmentation")) if wanted else (b"", None)
    except ValueError as error:
        raise DataError(f"annotation {number}: {error}") from error
    return Annotation(number, value.get("image_id"), value.get("category_id"), area, bool(is_crowd), size_hw, packed)
