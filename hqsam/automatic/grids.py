"""Where automatic generation looks: grids of points, and crops of the image (Segment Anything, appendix B)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Crop(NamedTuple):
    """A part of the image that is encoded on its own."""

    box: tuple[int, int, int, int]  # XYXY in pixels of the image, the maximum exclusive
    layer: int  # 0 is the whole image; layer i has 2^i x 2^i crops

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0


def point_grid(points_per_side: int) -> NDArray[np.float64]:
    """(n * n, 2) xy in [0, 1]: the centres of n x n equal cells, row by row."""
    margin = 1 / (2 * points_per_side)
    steps = np.linspace(margin, 1 - margin, points_per_side)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def layer_grids(points_per_side: int, layers: int, downscale_factor: int) -> list[NDArray[np.float64]]:
    """The grid of the image, then of the crops of each layer; layer i has 1 / factor^i as many points a side.

    Raises:
        ValueError: a layer would be left without points.
    """
    sides = [int(points_per_side / downscale_factor**layer) for layer in range(layers + 1)]
    if min(sides) < 1:
        raise ValueError(
            f"{points_per_side} points a side, divided by {downscale_factor} a layer, leave {sides} points a side for "
            f"layers 0..{layers}; each needs at least one"
        )
    return [point_grid(side) for side in sides]


def checked_grids(grids: Sequence[ArrayLike], layers: int) -> list[NDArray[np.float64]]:
    """Given grids as float64 arrays.

    Args:
        grids: (P, 2) xy in [0, 1] for each layer; P may be 0 in a layer that is not to be searched.
        layers: layers of crops.

    Raises:
        ValueError: fewer grids than layers, other shapes, or points outside [0, 1].
    """
    if len(grids) < layers + 1:
        raise ValueError(f"{layers} layers of crops need {layers + 1} point grids, got {len(grids)}")
    arrays = [np.asarray(grid, dtype=np.float64) for grid in grids]
    for layer, grid in enumerate(arrays):
        if grid.ndim != 2 or grid.shape[1] != 2:
            raise ValueError(f"point grid {layer} must have shape (P, 2), got {grid.shape}")
        if not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError(f"point grid {layer} must hold x and y within [0, 1], as fractions of the image")
    return arrays


def image_crops(height: int, width: int, layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then the crops of each layer, column by column.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        layers: layers of crops.
        overlap_ratio: overlap of the first layer's crops as a fraction of the image's short side; it halves with
            each layer.

    Returns:
        The crops. Those without a pixel, which images of a few pixels would have, are left out.
    """
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_w = math.ceil((overlap * (count - 1) + width) / count)
        crop_h = math.ceil((overlap * (count - 1) + height) / count)
        for column, row in product(range(count), repeat=2):
            x0, y0 = column * (crop_w - overlap), row * (crop_h - overlap)
            x1, y1 = min(x0 + crop_w, width), min(y0 + crop_h, height)
            if x0 < x1 and y0 < y1:
                crops.append(Crop((x0, y0, x1, y1), layer))
    return crops
