"""Large scale jitter in two phases: parameters are drawn from a generator, then applied to image and masks alike.

The published rule (HQ-SAM's trainer): flip, resize so that the long side is `scale * frame`, crop to the frame at
random, pad at the bottom and on the right. The pixels are PIL's antialiased bilinear filter, the one the predictor
resizes with; albumentations can neither take drawn parameters nor resize with that filter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hqsam.geometry import resized_hw

OBJECT_THRESHOLD = 128
"""A pixel is of the object when its mask value exceeds this (published trainer)."""


@dataclass(frozen=True)
class LSJParams:
    """One drawn augmentation of an (H, W) image into a square frame.

    Attributes:
        source_hw: size of the image that it is for.
        frame: side of the square frame.
        flip: mirrored left to right, first.
        resized_hw: size after resizing.
        offset_yx: top left corner of the crop in the resized image.
    """

    source_hw: tuple[int, int]
    frame: int
    flip: bool
    resized_hw: tuple[int, int]
    offset_yx: tuple[int, int] = (0, 0)

    @cached_property
    def visible_hw(self) -> tuple[int, int]:
        """Size of the part of the frame that the image covers, from the top left corner."""
        return min(self.frame, self.resized_hw[0]), min(self.frame, self.resized_hw[1])

    @cached_property
    def source_box(self) -> tuple[float, float, float, float]:
        """XYXY of the visible part in pixels of the unflipped source, exclusive maximum."""
        (height, width), (new_h, new_w), (shown_h, shown_w) = self.source_hw, self.resized_hw, self.visible_hw
        top, left = self.offset_yx
        if self.flip:
            left = new_w - left - shown_w
        x0, x1 = left * width / new_w, (left + shown_w) * width / new_w
        y0, y1 = top * height / new_h, (top + shown_h) * height / new_h
        return x0, y0, min(x1, float(width)), min(y1, float(height))

    @cached_property
    def area_factor(self) -> float:
        """Frame pixels per source pixel."""
        return (self.resized_hw[0] / self.source_hw[0]) * (self.resized_hw[1] / self.source_hw[1])


@dataclass(frozen=True, kw_only=True)
class LSJRule:
    """How augmentations are drawn, and which crops are refused.

    Attributes:
        jitter: range of the scale, relative to the frame; None: the image fits the frame, as in the predictor.
        flip_prob: chance of a mirror image.
        max_enlargement: the image is not enlarged by more than this factor; None: no limit. At 1 every mask stays as
            sharp as its file, however small the image.
        min_pixels: the object must keep so many frame pixels ...
        min_share: ... and this share of its area at the drawn scale,
        max_tries: in one of so many draws; then the whole image is shown without jitter.
    """

    jitter: tuple[float, float] | None = (0.1, 2.0)
    flip_prob: float = 0.5
    max_enlargement: float | None = None
    min_pixels: int = 10
    min_share: float = 0.1
    max_tries: int = 10

    def __post_init__(self) -> None:
        if self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]:
            raise ValueError(f"jitter must be (low, high) with 0 < low <= high, got {self.jitter}")
        if self.max_enlargement is not None and self.max_enlargement <= 0:
            raise ValueError(f"max_enlargement must be positive, got {self.max_enlargement}")
        for name in ("flip_prob", "min_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be within 0..1, got {getattr(self, name)}")

    def draw(self, source_hw: tuple[int, int], frame: int, rng: np.random.Generator) -> LSJParams:
        """Draw one augmentation; always four draws from `rng`, so that later ones do not depend on the sizes."""
        flip = bool(rng.random() < self.flip_prob)
        low, high = self.jitter or (1.0, 1.0)
        scale, down, right = low + (high - low) * rng.random(), rng.random(), rng.random()
        params = self._sized(source_hw, frame, flip, scale)
        spare_h, spare_w = (new - shown for new, shown in zip(params.resized_hw, params.visible_hw, strict=True))
        return replace(params, offset_yx=(int(down * (spare_h + 1)), int(right * (spare_w + 1))))

    def draw_keeping(self, mask: NDArray[np.uint8], frame: int, rng: np.random.Generator) -> LSJParams:
        """Draw until the object in `mask` (H, W) survives the crop; see `min_pixels`, `min_share`, `max_tries`."""
        area = np.count_nonzero(mask > OBJECT_THRESHOLD)
        height, width = mask.shape
        for _ in range(self.max_tries):
            params = self.draw((height, width), frame, rng)
            kept = np.count_nonzero(warp_mask(mask, params) > OBJECT_THRESHOLD)
            if kept >= max(self.min_pixels, self.min_share * area * params.area_factor):
                return params
        return self._sized((height, width), frame, bool(rng.random() < self.flip_prob), 1.0)

    def keeps(self, mask: NDArray[np.uint8], params: LSJParams) -> bool:
        """Whether an object survives, judged on the source pixels inside the crop: quick, and exact to a pixel row."""
        x0, y0, x1, y1 = (round(value) for value in params.source_box)
        kept = np.count_nonzero(mask[y0:y1, x0:x1] > OBJECT_THRESHOLD)
        if kept * params.area_factor < self.min_pixels:
            return False
        return bool(kept >= self.min_share * np.count_nonzero(mask > OBJECT_THRESHOLD))

    def _sized(self, source_hw: tuple[int, int], frame: int, flip: bool, scale: float) -> LSJParams:
        long_side = max(int(scale * frame + 0.5), 1)
        if self.max_enlargement is not None:
            long_side = min(long_side, max(int(self.max_enlargement * max(source_hw) + 0.5), 1))
        return LSJParams(source_hw, frame, flip, resized_hw(*source_hw, long_side))


def warp_image(image: NDArray[np.uint8], params: LSJParams, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (frame, frame, 3) uint8, `fill` where the image does not reach."""
    shown_h, shown_w = params.visible_hw
    canvas = np.empty((params.frame, params.frame, 3), dtype=np.uint8)
    canvas[shown_h:] = fill
    canvas[:shown_h, shown_w:] = fill
    canvas[:shown_h, :shown_w] = _resample(image, params)
    return canvas


def warp_mask(mask: NDArray[np.uint8], params: LSJParams) -> NDArray[np.uint8]:
    """(H, W) uint8 0..255 -> (frame, frame) uint8, soft at the edges, 0 where the image does not reach."""
    shown_h, shown_w = params.visible_hw
    canvas = np.zeros((params.frame, params.frame), dtype=np.uint8)
    canvas[:shown_h, :shown_w] = _resample(mask, params)
    return canvas


def _resample(pixels: NDArray[np.uint8], params: LSJParams) -> NDArray[np.uint8]:
    """Resize and crop in one pass: PIL computes only the visible part, from neighbours beyond the crop too."""
    from PIL import Image

    if pixels.shape[:2] != params.source_hw:
        raise ValueError(f"parameters drawn for size {params.source_hw} do not fit pixels of size {pixels.shape[:2]}")
    shown_h, shown_w = params.visible_hw
    part = Image.fromarray(pixels).resize((shown_w, shown_h), Image.Resampling.BILINEAR, box=params.source_box)
    shown = np.asarray(part)
    return shown[:, ::-1] if params.flip else shown
