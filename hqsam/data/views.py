"""A view: what of an image the model's frame shows. Planned from masks, turned into pixels where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hqsam.data.augment import LSJParams, LSJRule, object_area, warp_image, warp_mask
from hqsam.data.pixel_changes import PixelChange
from hqsam.data.sources import RawSample
from hqsam.images import read_reduced


@dataclass(frozen=True, eq=False)  # arrays inside: a view equals itself alone
class View:
    """An image and its objects in the model's frame.

    Attributes:
        sample: image and masks at their own size.
        params: the drawn crop.
        visible: numbers of the objects that the crop keeps.
        warped: masks that the drawing of the crop has brought into the frame already, by number.
        change: what happens to the pixels of the image; None: nothing.
    """

    sample: RawSample
    params: LSJParams
    visible: tuple[int, ...]
    warped: Mapping[int, NDArray[np.uint8]]
    change: PixelChange | None = None

    def image(self, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
        """(S, S, 3) RGB, `fill` where the image does not reach; a file is decoded no finer than the frame needs.

        Raises:
            DataError: the image's file is unusable; the message names it.
            ValueError: the sample has neither pixels nor a file.
        """
        sample = self.sample
        if sample.image is not None:
            return warp_image(sample.image, self.params, fill, change=self.change)
        if sample.image_file is None:
            raise ValueError("this view was read without its image, and without the file that holds it")
        pixels, extent = read_reduced(sample.image_file, self.params.spare_resolution)
        return warp_image(pixels, self.params, fill, extent=extent, change=self.change)

    def mask(self, number: int) -> NDArray[np.uint8]:
        """(S, S) mask 0..255 of one object; not to be written to."""
        known = self.warped.get(number)
        return warp_mask(self.sample.masks[number], self.params) if known is None else known

    def choose(self, count: int, rng: np.random.Generator) -> list[int]:
        """Draw `count` visible objects; one comes again only after all others."""
        order = rng.permutation(len(self.visible))
        return [self.visible[order[turn % len(order)]] for turn in range(count)]


def draw_view(
    sample: RawSample, frame: int, rule: LSJRule, rng: np.random.Generator, change: PixelChange | None = None
) -> View | None:
    """Draw a crop that keeps a randomly chosen object; None if the image has no pixel of any object."""
    areas = [object_area(mask) for mask in sample.masks]
    present = [number for number, area in enumerate(areas) if area]
    if not present:
        return None
    anchor = present[rng.integers(len(present))]
    params, warped = rule.draw_keeping(sample.masks[anchor], areas[anchor], frame, rng)
    visible = tuple(k for k in present if k == anchor or rule.keeps(sample.masks[k], areas[k], params))
    return View(sample, params, visible, {anchor: warped}, change)
