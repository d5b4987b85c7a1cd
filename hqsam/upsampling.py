"""SAM's upsampling on a CPU: as banded matrices, and only where a mask can be.

Both of SAM's bilinear steps and the cut between them are linear and act on each axis alone, so together they are one
matrix for each axis. Its rows have a handful of neighbouring entries: cut into bands, a product costs less than the two
steps, and no picture of S x S is made. A bilinear value never exceeds the largest of those it comes from, so bands in
which no logit reaches the lowest threshold need not be computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BAND = 64
"""Output pixels in a band: short bands multiply fewer zeros, long ones need fewer calls."""


def axis_matrix(grid: int, image_size: int, content: int, size: int) -> Tensor:
    """The matrix of SAM's upsampling along one axis.

    Args:
        grid: low-resolution logits on this axis (4h).
        image_size: S.
        content: pixels of the S that show the resized image.
        size: pixels of the original image.

    Returns:
        (size, grid) float32, rows of non-negative numbers that sum to one.
    """
    # What is kept for the process must not depend on the defaults of one moment.
    units = torch.eye(grid, dtype=torch.float32, device="cpu")[None]
    full = F.interpolate(units, image_size, mode="linear", align_corners=False)[..., :content]
    return F.interpolate(full, size, mode="linear", align_corners=False)[0].T.contiguous()


class _Band(NamedTuple):
    start: int  # first output pixel
    stop: int
    first: int  # first logit that the band depends on
    last: int  # one past the last
    weights: Tensor  # (stop - start, last - first)


@lru_cache(maxsize=16)
def _axis_bands(grid: int, image_size: int, content: int, size: int) -> list[_Band]:
    """The matrix of an axis in bands; images of one size have the same two, and square ones two equal ones."""
    matrix, bands = axis_matrix(grid, image_size, content, size), []
    for start in range(0, len(matrix), BAND):
        rows = matrix[start : start + BAND]
        used = rows.any(dim=0).nonzero()[:, 0]
        first, last = int(used[0]), int(used[-1]) + 1
        bands.append(_Band(start, start + len(rows), first, last, rows[:, first:last].clone()))
    return bands


class Window(NamedTuple):
    """The part of an upsampled mask that can be inside."""

    x: slice
    y: slice
    logits: Tensor  # (x, y)
    beside: Tensor  # (C, x, y), what else was asked for


class WindowUpscaler:
    """Upsample single masks of one image size.

    Args:
        grid: side of the square of logits (4h).
        input_hw: (height, width) of the resized image inside the S x S frame.
        original_hw: (H, W) of the image.
        image_size: S.
    """

    def __init__(self, grid: int, input_hw: tuple[int, int], original_hw: tuple[int, int], image_size: int) -> None:
        axes = zip(input_hw, original_hw, strict=True)
        self._rows, self._columns = (_axis_bands(grid, image_size, *sizes) for sizes in axes)

    def __call__(self, logits: Tensor, floor: float) -> Window | None:
        """Upsample where logits can be above `floor`.

        Args:
            logits: (4h, 4w) float32 on the CPU.
            floor: everything outside the returned window is at most this.

        Returns:
            The window, with x before y; None if no logit is above `floor`.
        """
        strips = list(self.strips(logits, floor))
        if not strips:
            return None
        x, y = strips[0].x, slice(strips[0].y.start, strips[-1].y.stop)
        return Window(x, y, *(torch.cat(parts, dim=-1) for parts in zip(*(s[2:] for s in strips), strict=True)))

    def strips(self, logits: Tensor, floor: float, beside: Tensor | None = None) -> Iterator[Window]:
        """The same window in strips along y, for those who need one at a time; none if no logit is above `floor`.

        Args:
            logits: (4h, 4w) float32 on the CPU.
            floor: as above.
            beside: (C, 4h, 4w), more values that are upsampled for the same pixels.
        """
        above = logits > floor
        columns, rows = _needed(self._columns, above.any(dim=0)), _needed(self._rows, above.any(dim=1))
        if not columns or not rows:
            return
        used = slice(rows[0].first, rows[-1].last)
        x = slice(columns[0].start, columns[-1].stop)
        values = logits[None] if beside is None else torch.cat([logits[None], beside])
        half = logits.new_empty((len(values), x.stop - x.start, used.stop - used.start))
        with torch.autocast("cpu", enabled=False):
            for band in columns:
                place = half[:, band.start - x.start : band.stop - x.start]
                for value, out in zip(values, place, strict=True):
                    torch.mm(band.weights, value[used, band.first : band.last].T, out=out)
        for band in rows:
            with torch.autocast("cpu", enabled=False):
                strip = half[..., band.first - used.start : band.last - used.start] @ band.weights.T
            yield Window(x, slice(band.start, band.stop), strip[0], strip[1:])


def _needed(bands: list[_Band], above: Tensor) -> list[_Band]:
    """The bands from the first to the last that depend on a logit marked in `above`."""
    marked = above.nonzero()[:, 0]
    if not len(marked):
        return []
    low, high = int(marked[0]), int(marked[-1])
    return [band for band in bands if band.last > low and band.first <= high]


def products_are_exact() -> bool:
    """Whether float32 matrix products are in full float32: they are unless a program allowed less."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set in the newer way, of which this question knows nothing
        return False
