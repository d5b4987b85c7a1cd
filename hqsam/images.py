"""Reading and writing image files, and checking image arrays.

Every file becomes upright 8-bit RGB: EXIF orientation applied, grayscale repeated, palettes resolved, alpha dropped
(the colour under it is kept), 16-bit scaled by 1/257.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hqsam.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Extent = tuple[float, float, float, float]
"""XYXY in pixels of an image that was read at a reduced size."""
_JPEG_REDUCTIONS = (1, 2, 4, 8)
_EXIF_ORIENTATION = 274
_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""EXIF orientation: axes swapped, then mirrored left to right, then top to bottom."""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB, upright.

    Raises:
        DataError: the file is missing, empty, truncated or not an image; the message names it.
    """
    return read_reduced(path, 1.0)[0]


def read_reduced(path: str | Path, factor: float) -> tuple[NDArray[np.uint8], Extent]:
    """Read an image that will be made smaller anyway: a JPEG is decoded at 1/2, 1/4 or 1/8, which is faster.

    Args:
        path: the file.
        factor: the largest reduction that is allowed; under 2 everything is read at its own size, as are other formats.

    Returns:
        (h, w, 3) uint8 RGB, upright; and where in it the whole image lies, as XYXY in pixels. A side that the reduction
        does not divide ends, or with an EXIF orientation begins, within a pixel.

    Raises:
        DataError: as in `read_image`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise DataError(f"image not found: {path}")
    if path.stat().st_size == 0:
        raise DataError(f"image file is empty (0 bytes): {path}")
    try:
        with Image.open(path) as image:
            covered = _reduce(image, factor)
            image.load()
            extent = _turned(covered, image.size, image.getexif().get(_EXIF_ORIENTATION, 1))
            return _to_rgb(ImageOps.exif_transpose(image)), extent
    except UnidentifiedImageError as error:
        raise DataError(f"not an image, or in a format that cannot be read: {path}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"image cannot be decoded (truncated or damaged): {path} ({error})") from error


def _reduce(image: Image, factor: float) -> tuple[float, float]:
    """Prepare an image that is not loaded yet; the width and height in reduced pixels that it covers."""
    width, height = image.size
    step = max(size for size in _JPEG_REDUCTIONS if size <= max(factor, 1))
    drafted = image.draft(None, (max(width // step, 1), max(height // step, 1))) if step > 1 else None
    return (width, height) if drafted is None else drafted[1][2:]


def _turned(covered: tuple[float, float], stored_wh: tuple[int, int], orientation: int) -> Extent:
    """Where what was covered from the stored top left corner lies after turning upright."""
    transposed, mirrored, upside_down = _TURNS.get(orientation, (False, False, False))
    (across, down), (width, height) = covered, stored_wh
    if transposed:
        across, down, width, height = down, across, height, width
    left, top = width - across if mirrored else 0.0, height - down if upside_down else 0.0
    return left, top, left + across, top + down


def _to_rgb(image: Image) -> NDArray[np.uint8]:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F":
            raise ValueError("floating-point images have no defined range; save them as 8 or 16 bit")
        gray = np.clip(np.rint(values / 257.0), 0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def as_rgb_uint8(image: Any, image_format: str = "RGB") -> NDArray[np.uint8]:
    """Check an image array and return it as (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 in `image_format` order; (H, W), (H, W, 1) grayscale and (H, W, 4) with alpha are
            converted, alpha is dropped.
        image_format: "RGB" or "BGR", the channel order of `image`.

    Raises:
        ValueError: another shape or dtype. Floats and 16 bit are refused, since their range would be a guess.
    """
    if image_format not in ("RGB", "BGR"):
        raise ValueError(f"image_format must be 'RGB' or 'BGR', got {image_format!r}")
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f"the image must be uint8 with values 0..255, got {array.dtype}; convert it first")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4) or 0 in array.shape:
        raise ValueError(f"the image must have shape (H, W, 3) with H, W >= 1, got {array.shape}")
    array = array[..., :3]
    return np.ascontiguousarray(array[..., ::-1] if image_format == "BGR" else array)


def write_image(path: str | Path, array: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) RGB or (H, W) grayscale uint8 in the format of the file's suffix; folders are created."""
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
