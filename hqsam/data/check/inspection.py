"""Looking at one image and its masks, exactly as training will read them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqsam.boxes import mask_to_box
from hqsam.data.augment import OBJECT_THRESHOLD
from hqsam.data.check.findings import Finding, Verdict
from hqsam.data.check.mask_files import COLOURED, IN_ALPHA, SOFT, ZERO_ONE, StoredMask, describe_mask_file
from hqsam.data.check.photo_hash import photo_hashes
from hqsam.data.masks import load_object_masks
from hqsam.data.records import ANY_LABEL, ImageRecord, ObjectRecord
from hqsam.data.segmentations import Segmentation
from hqsam.errors import DataError
from hqsam.images import read_image

TINY_PIXELS, TINY_SHARE = 10, 1e-4
FULL_SHARE = 0.995
_INVERTED_SHARE, _INVERTED_BORDER = 0.5, 0.9
_MANY = 100
_LEAST_SIDE, _LONGEST = 32, 8
_AT_ONCE = 16
Target = Path | Segmentation
"""Where the pixels of an object come from: a mask file, or a row of an annotation file."""
_PICTURES = frozenset({".png", ".bmp", ".tif", ".tiff"})


def inspect_record(record: ImageRecord, *, use_alpha: bool = False) -> Verdict:
    """Decode an image and all its masks, and say what is wrong or strange about them.

    The image is decoded in full: a header or a reduced decode does not show that a file is truncated.

    Args:
        record: from `open_dataset`.
        use_alpha: mattes are the targets where there are some, as in training.
    """
    from PIL import Image

    try:
        image = read_image(record.image)
    except (DataError, Image.DecompressionBombError) as error:
        text = str(error) if isinstance(error, DataError) else f"image is too large to be opened: {record.image}"
        return Verdict((Finding("image_unreadable", str(record.image), text, record.key),))
    findings = list(_shape_findings(record, image.shape[:2]))
    targets = [obj.alpha if use_alpha and obj.alpha is not None else obj.mask for obj in record.objects]
    files = [target for target in targets if isinstance(target, Path) and target.suffix.lower() in _PICTURES]
    stored: dict[Target, StoredMask | None] = {path: describe_mask_file(path) for path in dict.fromkeys(files)}
    alone = [path for obj, path in zip(record.objects, targets, strict=True) if _holds_one(obj, path)]
    kinds: dict[str, int] = {}
    for path in dict.fromkeys(alone):
        if (description := stored.get(path)) is not None:
            kinds[description.kind] = kinds.get(description.kind, 0) + 1
            if description.kind == ZERO_ONE:
                text = f"{path} stores the object as 1: it is read as 255 here, other programs may see nothing"
                findings.append(Finding("zero_one", str(path), text, record.key))
    for start in range(0, len(record.objects), _AT_ONCE):
        chosen = range(start, min(start + _AT_ONCE, len(record.objects)))
        for number, mask in zip(chosen, _read(record, chosen, image.shape[:2], use_alpha), strict=True):
            path = targets[number]
            if isinstance(mask, DataError):
                known = stored.get(path)
                kind = _reason(path, known, image.shape[:2])
                text = str(mask) + (_turned(record.image, known) if kind == "size_mismatch" else "")
                findings.append(Finding(kind, str(path), text, record.key, number))
                continue
            findings += [
                Finding(kind, str(path), f"{path}: {text}", record.key, number)
                for kind, text in _mask_findings(mask, record.objects[number], path, stored.get(path))
            ]
    return Verdict(tuple(findings), kinds, photo_hashes(image))


def _holds_one(obj: ObjectRecord, path: Target) -> bool:
    if isinstance(path, Segmentation):
        return False
    return path == obj.alpha or obj.label is None or obj.label == ANY_LABEL


def _shape_findings(record: ImageRecord, size_hw: tuple[int, ...]) -> Iterator[Finding]:
    height, width = size_hw
    size = f"{record.image} is {width} x {height} pixels"
    if min(size_hw) < _LEAST_SIDE:
        yield Finding("small_image", str(record.image), size, record.key)
    if max(size_hw) > _LONGEST * min(size_hw):
        yield Finding("long_image", str(record.image), size, record.key)


def _read(
    record: ImageRecord, chosen: range, size_hw: tuple[int, ...], use_alpha: bool
) -> list[NDArray[np.uint8] | DataError]:
    """The masks, or in their place why they cannot be read."""
    height, width = size_hw
    objects = [record.objects[number] for number in chosen]
    try:
        return [*load_object_masks(objects, (height, width), record.image, use_alpha=use_alpha)]
    except DataError as error:
        if len(objects) == 1:
            return [error]
    # one bad file must not hide the others
    return [_read(record, range(number, number + 1), size_hw, use_alpha)[0] for number in chosen]


def _reason(target: Target, stored: StoredMask | None, size_hw: tuple[int, ...]) -> str:
    if isinstance(target, Segmentation):
        return "size_mismatch" if target.size_hw not in ((0, 0), tuple(size_hw)) else "mask_unusable"
    if stored is None:
        return "mask_unreadable"
    if stored.hw != tuple(size_hw):
        return "size_mismatch"
    return {COLOURED: "mask_coloured", IN_ALPHA: "mask_in_alpha"}.get(stored.kind, "mask_unusable")


def _turned(image: Path, stored: StoredMask | None) -> str:
    """An explanation where the mask fits the image as it is stored and not as a viewer shows it."""
    from PIL import Image

    with Image.open(image) as file:
        lies = (file.height, file.width)
        orientation = file.getexif().get(274, 1)
    if stored is None or orientation == 1 or stored.hw != lies:
        return ""
    return f". The image's EXIF orientation ({orientation}) turns it; the mask was drawn on the unturned pixels"


def _mask_findings(
    mask: NDArray[np.uint8], obj: ObjectRecord, path: Target, stored: StoredMask | None
) -> Iterator[tuple[str, str]]:
    inside = mask > OBJECT_THRESHOLD
    area, share = int(np.count_nonzero(inside)), float(inside.mean())
    name = f"object {obj.label}" if obj.label not in (None, ANY_LABEL) and path != obj.alpha else "the object"
    if area == 0:
        highest = int(mask.max()) if mask.size else 0
        levels = "; if it numbers several objects, list them in an index.json" if 1 < highest < 64 else ""
        yield (
            "empty_object",
            f"{name} has no pixel above {OBJECT_THRESHOLD} of 255, its highest value is {highest}{levels}",
        )
        return
    if area < TINY_PIXELS or share < TINY_SHARE:
        yield "tiny_object", f"{name} has {area} pixels, {100 * share:.2g} % of the image"
    if share >= FULL_SHARE:
        yield "fills_image", f"{name} covers {100 * share:.4g} % of the image"
    elif share > _INVERTED_SHARE and _border_share(inside) > _INVERTED_BORDER:
        yield "looks_inverted", f"{name} covers {100 * share:.3g} % of the image and almost all of its border"
    if stored is not None and stored.kind == SOFT and obj.label == ANY_LABEL and path != obj.alpha:
        yield "soft_as_binary", 'soft edges count as inside, since the index calls the mask "binary" (mask > 0)'
    parts, holes = _count_parts(inside)
    if parts > _MANY:
        yield "many_parts", f"{name} has {parts} separate parts"
    if holes > _MANY:
        yield "many_holes", f"{name} has {holes} holes"


def _border_share(inside: NDArray[np.bool_]) -> float:
    return float(np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).mean())


def _count_parts(inside: NDArray[np.bool_]) -> tuple[int, int]:
    """Parts (8-connected) and holes (4-connected background that does not reach the border)."""
    import cv2

    box = mask_to_box(inside)
    if box is None:
        return 0, 0
    x0, y0, x1, y1 = (int(value) for value in box)
    # a margin joins everything outside to one region
    part = np.pad(inside[y0 : y1 + 1, x0 : x1 + 1], 1).view(np.uint8)
    outlines, hierarchy = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = int(np.count_nonzero(np.asarray(hierarchy)[0, :, 3] < 0))
    return outer, len(outlines) - outer
