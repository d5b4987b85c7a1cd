"""How mask files store an object: what a reader that takes the numbers as they are would get."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SOFT = "soft"
ZERO_ONE = "0/1"
COLOURED = "colour"
IN_ALPHA = "alpha channel"
_INTERCHANGEABLE = {"1 bit": "0/255", SOFT: "0/255", "equal colour channels": "0/255"}


class StoredMask(NamedTuple):
    """The way a mask file stores its object, and its upright size."""

    kind: str
    hw: tuple[int, int]


def describe_mask_file(path: Path) -> StoredMask | None:
    """One of "1 bit", "0/1", "0/255", "soft", "grey values", "palette", "16 bit", "float", "equal colour channels",
    "colour", "alpha channel"; None if the file cannot be decoded.

    "soft" has both ends of 0..255 and values between; "grey values" has values of 2..254 without 255.
    """  # noqa: D205
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            values = np.asarray(upright)
            mode = upright.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return StoredMask(_kind(mode, values), (values.shape[0], values.shape[1]))


def _kind(mode: str, values: NDArray[Any]) -> str:
    if mode == "1":
        return "1 bit"
    if mode in ("P", "PA"):
        return "palette"
    if mode == "F":
        return "float"
    if mode == "I" or mode.startswith("I;16"):
        return "16 bit"
    if mode in ("L", "LA"):
        return _grey_kind(values if values.ndim == 2 else values[..., 0])
    red = values[..., 0]
    if not all(np.array_equal(red, values[..., channel]) for channel in (1, 2)):
        return COLOURED
    if mode == "RGBA" and np.ptp(red) == 0 and np.ptp(values[..., 3]) > 0:
        return IN_ALPHA
    return "equal colour channels"


def _grey_kind(values: NDArray[Any]) -> str:
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    if present.size == 0 or present[-1] == 0:
        return "0/255"  # an empty mask is empty in every way of storing it
    if present[-1] == 1:
        return ZERO_ONE
    if present[-1] < 255:
        return "grey values"
    return "0/255" if present.size == 1 or present[-2] == 0 else SOFT


def ways_of_storing(kinds: set[str]) -> set[str]:
    """Kinds without those that any reader sees in the same way as another, and those that are errors anyway."""
    return {_INTERCHANGEABLE.get(kind, kind) for kind in kinds - {COLOURED, IN_ALPHA}}
