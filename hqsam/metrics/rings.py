"""Boundary rings of run-length encoded masks, each in the window of its own mask.

An image of 480 x 640 pixels has 300 000 of them, an object on it a few thousand: decoding, eroding and comparing happen
in the object's box, and where two boxes overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.rle import Rle, read_runs


class Window(NamedTuple):
    """The box around a mask, transposed as run lengths are: one row of `pixels` for each column of the image."""

    x: int  # of the left column
    y: int  # of the upper row
    pixels: NDArray[np.bool_]  # (width, height) of the box; (0, 0) for an empty mask


class RingMask:
    """The rings of one mask, one for each width.

    Args:
        rle: the mask.
        widths: ring widths in pixels, see `hqsam.metrics.boundary.ring_width`.
    """

    def __init__(self, rle: Rle, widths: Sequence[int]) -> None:
        self.x, self.y, pixels = decode_window(rle)
        self.rings = window_rings(pixels, widths)
        self.areas = [int(np.count_nonzero(ring)) for ring in self.rings]

    def overlaps(self, other: RingMask) -> list[float]:
        """Intersection over union of the rings of two masks of one image, for each width; empty rings have none."""
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        own_w, own_h = self.rings[0].shape
        their_w, their_h = other.rings[0].shape
        x1, y1 = min(self.x + own_w, other.x + their_w), min(self.y + own_h, other.y + their_h)
        if x1 <= x0 or y1 <= y0:
            return [0.0] * len(self.rings)
        here = np.s_[x0 - self.x : x1 - self.x, y0 - self.y : y1 - self.y]
        there = np.s_[x0 - other.x : x1 - other.x, y0 - other.y : y1 - other.y]
        found = []
        for own, theirs, area, their_area in zip(self.rings, other.rings, self.areas, other.areas, strict=True):
            common = int(np.count_nonzero(own[here] & theirs[there]))
            found.append(common / (area + their_area - common))
        return found


def decode_window(rle: Rle) -> Window:
    """Decode a mask inside its box alone.

    Raises:
        ValueError: its counts are no compressed run lengths, or do not fill its size.
    """
    height, width = rle["size"]
    ends = read_runs(rle["counts"]).cumsum()
    if len(ends) == 0 or ends[-1] != height * width:
        raise ValueError(f"run lengths add up to {ends[-1] if len(ends) else 0}, but the mask is {height} x {width}")
    starts, stops = ends[:-1:2], ends[1::2]
    if (starts == stops).any():  # legal, but nobody's encoder writes them
        keep = starts < stops
        starts, stops = starts[keep], stops[keep]
    if len(starts) == 0:
        return Window(0, 0, np.zeros((0, 0), dtype=np.bool_))
    columns, last_columns = starts // height, (stops - 1) // height
    x0, x1 = int(columns[0]), int(last_columns[-1]) + 1
    if (columns != last_columns).any():
        y0, y1 = 0, height
    else:
        y0, y1 = int((starts - columns * height).min()), int((stops - columns * height).max())
    # np.repeat over the runs from the first column of the box to its last one; outside and inside in turn
    bounds = np.empty(2 * len(starts) + 2, dtype=np.int64)
    bounds[0], bounds[1:-1:2], bounds[2:-1:2], bounds[-1] = x0 * height, starts, stops, x1 * height
    inside = np.zeros(len(bounds) - 1, dtype=np.bool_)
    inside[1::2] = True
    pixels = inside.repeat(bounds[1:] - bounds[:-1]).reshape(x1 - x0, height)
    if (y0, y1) == (0, height):
        rows = np.flatnonzero(pixels.any(axis=0))
        y0, y1 = int(rows[0]), int(rows[-1]) + 1
    return Window(x0, y0, np.ascontiguousarray(pixels[:, y0:y1]))


def window_rings(pixels: NDArray[np.bool_], widths: Sequence[int]) -> list[NDArray[np.bool_]]:
    """The mask minus its erosion by each width.

    Args:
        pixels: (w, h) bool, a mask within its box: what surrounds it is background.
        widths: in pixels.

    Returns:
        One (w, h) bool array for each width, in their order.
    """
    import cv2

    rings: dict[int, NDArray[np.bool_]] = {}
    core, done = pixels.view(np.uint8), 0
    for width in sorted(set(widths)):
        if min(pixels.shape) <= 2 * width:  # too narrow for a pixel that far from the outside
            rings[width] = pixels
            continue
        # Erosions by squares add up, so that a wide ring goes on where a narrow one ended.
        side = 2 * (width - done) + 1
        square = np.ones((side, side), dtype=np.uint8)
        core, done = cv2.erode(core, square, borderType=cv2.BORDER_CONSTANT, borderValue=0), width
        rings[width] = pixels & (core == 0)
    return [rings[width] for width in widths]
