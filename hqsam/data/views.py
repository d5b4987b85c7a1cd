"""A view: what of which images the model's frame shows. Planned from masks, turned into pixels where asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hqsam.data.augment import OBJECT_THRESHOLD, LSJParams, LSJRule, warp_image, warp_mask
from hqsam.data.sources import RawSample


@dataclass(frozen=True, eq=False)  # arrays inside: a tile equals itself alone
class Tile:
    """One image in its square part of the frame.

    Attributes:
        sample: image and masks at their own size.
        params: the drawn augmentation.
        corner_yx: top left corner of the part.
        visible: the objects that the crop keeps.
    """

    sample: RawSample
    params: LSJParams
    corner_yx: tuple[int, int]
    visible: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """One image in the whole frame, or several in parts of it."""

    size: int
    tiles: tuple[Tile, ...]

    @property
    def content_hw(self) -> tuple[int, int]:
        """Size of the content at the top left: the image, or the whole frame for several."""
        return self.tiles[0].params.visible_hw if len(self.tiles) == 1 else (self.size, self.size)

    def image(self, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
        """(S, S, 3) RGB, `fill` where no image reaches."""
        parts = []
        for tile in self.tiles:
            if tile.sample.image is None:
                raise ValueError("this view was read without its image")
            parts.append(warp_image(tile.sample.image, tile.params, fill))
        if len(parts) == 1:
            return parts[0]
        canvas = np.empty((self.size, self.size, 3), dtype=np.uint8)
        canvas[:] = fill  # quarters of an odd frame leave a line
        for tile, part in zip(self.tiles, parts, strict=True):
            _place(canvas, part, tile)
        return canvas

    def mask(self, tile: Tile, number: int) -> NDArray[np.uint8]:
        """(S, S) mask 0..255 of one object."""
        part = warp_mask(tile.sample.masks[number], tile.params)
        if len(self.tiles) == 1:
            return part
        canvas = np.zeros((self.size, self.size), dtype=np.uint8)
        _place(canvas, part, tile)
        return canvas

    def choose(self, count: int, rng: np.random.Generator) -> list[tuple[Tile, int]]:
        """Draw `count` objects, in turns from the tiles; an object comes again only after all others of its tile."""
        order = rng.permutation(len(self.tiles))
        queues = [rng.permutation(len(tile.visible)) for tile in self.tiles]
        chosen = []
        for turn in range(count):
            number = order[turn % len(order)]
            tile, queue = self.tiles[number], queues[number]
            chosen.append((tile, tile.visible[queue[turn // len(order) % len(queue)]]))
        return chosen


def draw_tile(
    sample: RawSample, frame: int, rule: LSJRule, rng: np.random.Generator, corner_yx: tuple[int, int] = (0, 0)
) -> Tile | None:
    """Draw a crop that keeps a randomly chosen object; None if the image has no pixel of any object."""
    present = [k for k, mask in enumerate(sample.masks) if (mask > OBJECT_THRESHOLD).any()]
    if not present:
        return None
    anchor = present[rng.integers(len(present))]
    params = rule.draw_keeping(sample.masks[anchor], frame, rng)
    visible = tuple(k for k in present if k == anchor or rule.keeps(sample.masks[k], params))
    return Tile(sample, params, corner_yx, visible)


def _place(canvas: NDArray[np.uint8], part: NDArray[np.uint8], tile: Tile) -> None:
    top, left = tile.corner_yx
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
