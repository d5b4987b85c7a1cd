"""Reading masks: whatever a file stores, an object becomes (H, W) uint8 with 255 inside and soft edges in between.

| file | object |
|---|---|
| 1 bit, or values 0 and 1 only | 0 / 255 (as 0/1 every `> 128` test would fail) |
| 8-bit grey | as it is |
| 16-bit grey | value / 257; as it is when no value exceeds 255 |
| palette | every index > 0; the colours are for display |
| RGB, RGBA with equal colour channels | that channel |
| floating point 0..1 | value * 255 |

A record with a label asks for the pixels that equal it (-1: that are not zero), whatever the depth. Polygons and run
lengths of annotation files become 0 / 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hqsam.data.records import ANY_LABEL, ObjectRecord
from hqsam.data.segmentations import Segmentation
from hqsam.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

_TRANSPOSING_ORIENTATIONS = (5, 6, 7, 8)
_EXIF_ORIENTATION = 274


def load_object_mask(
    obj: ObjectRecord, size_hw: tuple[int, int], image: Path, *, use_alpha: bool = False
) -> NDArray[np.uint8]:
    """Read one object's mask.

    Args:
        obj: which file, and which pixels of it.
        size_hw: (height, width) of the upright image.
        image: the image file, for error messages.
        use_alpha: prefer the object's matte where it has one.

    Returns:
        (H, W) uint8, 0..255; an object that is not in the file gives zeros.

    Raises:
        DataError: the mask is missing, unreadable, of another size than the image, or coloured.
    """
    return load_object_masks([obj], size_hw, image, use_alpha=use_alpha)[0]


def load_object_masks(
    objects: Sequence[ObjectRecord], size_hw: tuple[int, int], image: Path, *, use_alpha: bool = False
) -> list[NDArray[np.uint8]]:
    """Read the masks of several objects of one image, each file once; see `load_object_mask`."""
    files: dict[Path, tuple[NDArray[Any], bool]] = {}
    masks = []
    for obj in objects:
        matte = use_alpha and obj.alpha is not None
        path = obj.alpha if matte and obj.alpha is not None else obj.mask
        if isinstance(path, Segmentation):
            masks.append(path.decode(size_hw, image))
            continue
        if path not in files:
            files[path] = _read_values(path, size_hw, image)
        values, is_palette = files[path]
        masks.append(_select(values, None if matte else obj.label, is_palette, path))
    return masks


def upright_hw(path: Path) -> tuple[int, int]:
    """(height, width) of an image after its EXIF orientation, from the header alone.

    Raises:
        DataError: the file is missing or not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _TRANSPOSING_ORIENTATIONS
    except FileNotFoundError as error:
        raise DataError(f"image not found: {path}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"not an image, or in a format that cannot be read: {path} ({error})") from error
    return (width, height) if turned else (height, width)


def _read_values(path: Path, size_hw: tuple[int, int], image: Path) -> tuple[NDArray[Any], bool]:
    """The stored numbers of an image's mask, and whether they are palette indices."""
    if not path.is_file():
        raise DataError(f"mask not found: {path} (image {image})")
    values, is_palette = read_stored(path)
    if values.shape != size_hw:
        raise DataError(
            f"mask and image differ in size: {path} is {values.shape[1]} x {values.shape[0]}, "
            f"{image} is {size_hw[1]} x {size_hw[0]} (width x height, upright)"
        )
    return values, is_palette


def read_stored(path: Path) -> tuple[NDArray[Any], bool]:
    """The numbers that a mask file stores, upright (H, W), and whether they are palette indices.

    Raises:
        DataError: the file is missing, unreadable or coloured.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            file.load()
            upright = ImageOps.exif_transpose(file)
            is_palette = upright.mode in ("P", "PA")
            values = _one_channel(upright, path)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"mask not found: {path}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"mask is not an image, or in a format that cannot be read: {path}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"mask cannot be decoded (truncated or damaged): {path} ({error})") from error
    return values, is_palette


def _one_channel(file: Image, path: Path) -> NDArray[Any]:
    if file.mode in ("1", "L", "P", "I", "F") or file.mode.startswith("I;16"):
        return np.asarray(file)
    if file.mode in ("LA", "PA"):
        return np.asarray(file)[..., 0]
    if file.mode in ("RGB", "RGBA"):
        values = np.asarray(file)
        red = values[..., 0]
        if not (np.array_equal(red, values[..., 1]) and np.array_equal(red, values[..., 2])):
            raise DataError(f"mask is a colour image: {path}. Save it as grey (0..255), palette or label PNG.")
        if file.mode == "RGBA" and np.ptp(red) == 0 and np.ptp(values[..., 3]) > 0:
            raise DataError(f"mask has one colour and is drawn in its alpha channel: {path}. Save it as grey (0..255).")
        return red
    raise DataError(f"mask has pixel format {file.mode}: {path}. Save it as grey (0..255), palette or label PNG.")


def _select(values: NDArray[Any], label: int | None, is_palette: bool, path: Path) -> NDArray[np.uint8]:
    if label is not None and label != ANY_LABEL:
        return np.where(values == label, np.uint8(255), np.uint8(0))
    if label == ANY_LABEL or is_palette or values.dtype == np.bool_:
        return np.where(values != 0, np.uint8(255), np.uint8(0))
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if np.issubdtype(values.dtype, np.floating):
        if not (low >= 0.0 and high <= 1.0):
            raise DataError(f"floating-point mask must be within 0..1, {path} has {low:g}..{high:g}")
        return np.rint(values * 255.0).astype(np.uint8)
    if low < 0 or high > 65535:
        raise DataError(f"grey mask must be 8 or 16 bit, {path} has values {low:g}..{high:g}")
    if high <= 1:
        return values.astype(np.uint8) * np.uint8(255)
    return values.astype(np.uint8) if high <= 255 else np.rint(values / 257.0).astype(np.uint8)
