"""COCO run-length encoding of binary masks, through pycocotools."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

_RUN_TEXT = re.compile(rb"(?:[P-o]*[0-O])*")
""" "P" to "o": another character follows; "0" to "O": the last one of a number."""
_NO_RUNS = "run lengths must be a list of numbers or COCO's compressed text, and this is neither"


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


def encode_window(window: NDArray[np.bool_], x: int, y: int, size_hw: tuple[int, int]) -> Rle:
    """Encode a mask that lies within a window of its image: the same as `encode_rle` of the whole, without making it.

    Args:
        window: (h, w) bool.
        x: left column of the window in the image.
        y: its upper row.
        size_hw: (H, W) of the image.

    Raises:
        ValueError: the window is not within the image.
    """
    (height, width), (rows, columns) = size_hw, window.shape
    if not (0 <= x <= x + columns <= width and 0 <= y <= y + rows <= height):
        raise ValueError(f"a window of {rows} x {columns} at x {x}, y {y} is not within {height} x {width}")
    # Column by column: where inside begins and ends, each column between two pixels outside.
    padded = np.zeros((columns, rows + 2), dtype=np.int8)
    padded[:, 1:-1] = window.T
    column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
    flips = (x + column) * height + y + row
    # A run that reaches the bottom of a column and goes on at the top of the next ends and begins at one place.
    same = np.flatnonzero(flips[1:] == flips[:-1])
    flips = np.delete(flips, np.concatenate((same, same + 1)))
    runs = np.diff(flips, prepend=0, append=height * width)
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]  # the mask fills the last pixel
    return Rle(size=[height, width], counts=compress_runs(runs.tolist(), height, width))


def encode_masks(masks: NDArray[np.bool_]) -> list[Rle]:
    """Encode masks of one image, (N, H, W) bool, each within the box of its pixels."""
    size = (int(masks.shape[1]), int(masks.shape[2]))
    found = []
    for mask in masks:
        rows = np.flatnonzero(mask.any(axis=1))
        if len(rows) == 0:
            found.append(encode_window(np.zeros((0, 0), dtype=np.bool_), 0, 0, size))
            continue
        band = mask[rows[0] : rows[-1] + 1]
        columns = np.flatnonzero(band.any(axis=0))
        inside = band[:, columns[0] : columns[-1] + 1]
        found.append(encode_window(inside, int(columns[0]), int(rows[0]), size))
    return found


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
    if not isinstance(data, bytes):
        raise ValueError(_NO_RUNS)
    codes = np.frombuffer(data, dtype=np.uint8) - np.uint8(48)  # what is below 48 becomes large
    if not len(codes):
        return np.zeros(0, dtype=np.int64)
    if codes.max() > 63 or codes[-1] > 31:
        raise ValueError(_NO_RUNS)
    ends = (codes < 32).nonzero()[0]
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    lengths = ends - starts
    longest = int(lengths.max())
    if longest > 6:
        raise ValueError("a run length has more than 35 bits")
    codes = codes.astype(np.int64)
    values = codes[starts] & 31
    for place in range(1, longest + 1):  # two or three as a rule
        longer = (lengths >= place).nonzero()[0]
        values[longer] += (codes[starts[longer] + place] & 31) << (5 * place)
    values -= (codes[ends] & 16) << (5 * lengths + 1)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
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


def checked_rle(counts: bytes, height: int, width: int) -> Rle:
    """A mask of compressed run lengths.

    Raises:
        ValueError: they are none, or do not fill a mask of this size.
    """
    _check_runs(read_runs(counts), height, width)
    return Rle(size=[height, width], counts=counts.decode("ascii"))


def decode_polygons(polygons: Sequence[Sequence[float]], height: int, width: int) -> NDArray[np.bool_]:
    """The union of polygons as COCO draws them, (H, W) bool; see `polygons_rle`."""
    from pycocotools import mask as coco

    return np.asarray(coco.decode(polygons_rle(polygons, height, width)), dtype=np.bool_)


def polygons_rle(polygons: Sequence[Sequence[float]], height: int, width: int) -> Rle:
    """The union of polygons as COCO draws them.

    Args:
        polygons: each x0, y0, x1, y1, ... in pixels, three corners at least.
        height: of the mask.
        width: of the mask.
    """
    from pycocotools import mask as coco

    parts = coco.frPyObjects([list(polygon) for polygon in polygons], height, width)
    return Rle(size=[height, width], counts=coco.merge(parts)["counts"].decode("ascii"))


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
