"""COCO run-length encoding of binary masks, through pycocotools."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

_RUN_TEXT = re.compile(rb"(?:[P-o]*[0-O])*")
""" "P" to "o": another character follows; "0" to "O": the last one of a number."""


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
        counts = compress_runs(counts, height, width)
    else:
        # pycocotools reads beyond damaged text, and leaves memory as it was behind runs that are too short
        _check_runs(read_runs(counts), height, width)
    return np.asarray(coco.decode({"size": [height, width], "counts": counts}), dtype=np.bool_)


def read_runs(counts: str | bytes) -> NDArray[np.int64]:
    """Run lengths out of their compressed text, outside and inside in turn, column by column.

    The text holds numbers of 5 bits a character, lowest first, each character 48 more than its 5 bits and a bit that
    says whether another one follows; from the fourth run on it is the difference to the run before the last.

    Raises:
        ValueError: it is no such text.
    """
    data = counts.encode() if isinstance(counts, str) else counts
    if not isinstance(data, bytes) or not is_run_text(data):
        raise ValueError("run lengths must be a list of numbers or COCO's compressed text, and this is neither")
    if not data:
        return np.zeros(0, dtype=np.int64)
    codes = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    is_last = codes < 32
    starts = np.flatnonzero(np.concatenate(([True], is_last[:-1])))
    lengths = np.diff(starts, append=len(codes))
    if lengths.max() > 7:
        raise ValueError("a run length has more than 35 bits")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[is_last] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def is_run_text(data: bytes) -> bool:
    """Whether these are compressed run lengths, going by their characters alone."""
    return _RUN_TEXT.fullmatch(data) is not None


def compress_runs(runs: Sequence[int], height: int, width: int) -> str:
    """Run lengths as compressed text.

    Raises:
        ValueError: they do not fill a mask of this size.
    """
    from pycocotools import mask as coco

    _check_runs(runs, height, width)
    compressed: bytes = coco.frPyObjects({"size": [height, width], "counts": list(runs)}, height, width)["counts"]
    return compressed.decode("ascii")


def decode_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.bool_]:
    """The union of polygons as COCO draws them, (H, W) bool.

    Args:
        polygons: each x0, y0, x1, y1, ... in pixels, three corners at least.
        height: of the mask.
        width: of the mask.
    """
    from pycocotools import mask as coco

    parts = coco.frPyObjects([list(polygon) for polygon in polygons], height, width)
    return np.asarray(coco.decode(coco.merge(parts)), dtype=np.bool_)


def rle_area(rle: Rle) -> int:
    """Number of pixels inside."""
    from pycocotools import mask as coco

    return int(coco.area(rle))


def rle_box(rle: Rle) -> list[int]:
    """COCO's [x, y, width, height] in pixels; all zero for an empty mask."""
    from pycocotools import mask as coco

    return [int(value) for value in coco.toBbox(rle)]


def _check_runs(runs: Sequence[int] | NDArray[np.int64], height: int, width: int) -> None:
    try:
        lengths = np.asarray(runs, dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"run lengths must be whole numbers ({error})") from error
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(
            f"run lengths add up to {lengths.sum()}, but a {height} x {width} mask has {height * width}; "
            "none may be negative"
        )
