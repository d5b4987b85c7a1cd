"""COCO run-length encoding of binary masks, through pycocotools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray


class Rle(TypedDict):
    """A mask as COCO's tools read it from JSON."""

    size: list[int]  # [height, width]
    counts: str  # compressed run lengths, column by column


def encode_rle(mask: NDArray[Any]) -> Rle:
    """Encode a mask, (H, W) bool or integer; non-zero is inside.

    Raises:
        ValueError: the mask is not two-dimensional or is empty in a dimension.
    """
    from pycocotools import mask as coco

    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"a mask must have shape (H, W) with H, W >= 1, got {mask.shape}")
    encoded = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return Rle(size=[int(side) for side in encoded["size"]], counts=encoded["counts"].decode("ascii"))


def decode_rle(rle: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Decode to (H, W) bool.

    Args:
        rle: "size" as [height, width] and "counts" as compressed text or bytes, or as a list of run lengths.

    Raises:
        ValueError: a key is missing, or the runs do not fill the mask.
    """
    from pycocotools import mask as coco

    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"an RLE has the keys size [height, width] and counts, got {rle!r}") from error
    if isinstance(counts, list):
        if sum(counts) != height * width:
            raise ValueError(f"run lengths add up to {sum(counts)}, but a {height} x {width} mask has {height * width}")
        rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return np.asarray(coco.decode(rle), dtype=np.bool_)


def rle_area(rle: Rle) -> int:
    """Number of pixels inside."""
    from pycocotools import mask as coco

    return int(coco.area(rle))


def rle_box(rle: Rle) -> list[int]:
    """COCO's [x, y, width, height] in pixels; all zero for an empty mask."""
    from pycocotools import mask as coco

    return [int(value) for value in coco.toBbox(rle)]
