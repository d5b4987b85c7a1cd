"""Large scale jitter in two phases: parameters are drawn from a generator, then applied to image and masks alike.

The published rule (HQ-SAM's trainer): flip, resize so that the long side is `scale * frame`, crop to the frame at
random, pad at the bottom and on the right. The pixels are PIL's antialiased bilinear filter, the one the predictor
resizes with; albumentations can neither take drawn parameters nor resize with that filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hqsam.geometry import resized_hw

OBJECT_THRESHOLD = 128
"""A pixel is of the object when its mask value exceeds this (published trainer)."""
_KEPT_RESOLUTION = 2.0
"""An image that was decoded at a reduced size has at least so many pixels for each pixel of the frame, on each axis."""

Box = tuple[float, float, float, float]


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
    def source_box(self) -> Box:
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

    @cached_property
    def spare_resolution(self) -> float:
        """Factor by which the source may be reduced beforehand and still have twice the resolution of the frame."""
        return min(old / new for old, new in zip(self.source_hw, self.resized_hw, strict=True)) / _KEPT_RESOLUTION


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

    def draw_keeping(
        self, mask: NDArray[np.uint8], area: int, frame: int, rng: np.random.Generator
    ) -> tuple[LSJParams, NDArray[np.uint8]]:
        """Draw until the object in `mask` survives the crop; see `min_pixels`, `min_share`, `max_tries`.

        Args:
            mask: (H, W) 0..255.
            area: its pixels above 128.
            frame: side of the frame.
            rng: source of randomness.

        Returns:
            The crop, and the mask in the frame.
        """
        height, width = mask.shape
        for _ in range(self.max_tries):
            params = self.draw((height, width), frame, rng)
            warped = warp_mask(mask, params)
            if object_area(warped) >= max(self.min_pixels, self.min_share * area * params.area_factor):
                return params, warped
        params = self._sized((height, width), frame, bool(rng.random() < self.flip_prob), 1.0)
        return params, warp_mask(mask, params)

    def keeps(self, mask: NDArray[np.uint8], area: int, params: LSJParams) -> bool:
        """Whether an object of `area` pixels survives, judged on the source pixels inside the crop.

        This is quick, and exact to a pixel row.
        """
        x0, y0, x1, y1 = (round(value) for value in params.source_box)
        kept = object_area(mask[y0:y1, x0:x1])
        return kept * params.area_factor >= self.min_pixels and kept >= self.min_share * area

    def _sized(self, source_hw: tuple[int, int], frame: int, flip: bool, scale: float) -> LSJParams:
        long_side = max(int(scale * frame + 0.5), 1)
        if self.max_enlargement is not None:
            long_side = min(long_side, max(int(self.max_enlargement * max(source_hw) + 0.5), 1))
        return LSJParams(source_hw, frame, flip, resized_hw(*source_hw, long_side))


def object_area(mask: NDArray[np.uint8]) -> int:
    """Number of pixels that are of the object."""
    return int(np.count_nonzero(mask > OBJECT_THRESHOLD))


def warp_image(
    image: NDArray[np.uint8],
    params: LSJParams,
    fill: tuple[int, int, int],
    *,
    extent: Box | None = None,
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> NDArray[np.uint8]:
    """Bring an image into the frame.

    Args:
        image: (H, W, 3).
        params: the drawn crop.
        fill: colour where the image does not reach.
        extent: where in `image` the whole source lies, XYXY, if `image` is a reduced one; see
            `hqsam.images.read_reduced`.
        change: applied to the part (h, w, 3) of the frame that the image covers.

    Returns:
        (frame, frame, 3), stored channel by channel, as the model takes it.

    Raises:
        ValueError: `image` is of another size than `params` were drawn for.
    """
    shown_h, shown_w = params.visible_hw
    shown = _resample(image, params, extent)
    if change is not None:
        shown = change(np.ascontiguousarray(shown))
    planes = np.empty((3, params.frame, params.frame), dtype=np.uint8)
    for channel, (plane, value) in enumerate(zip(planes, fill, strict=True)):
        plane[shown_h:] = value
        plane[:shown_h, shown_w:] = value
        plane[:shown_h, :shown_w] = shown[..., channel]
    return planes.transpose(1, 2, 0)


def warp_mask(mask: NDArray[np.uint8], params: LSJParams) -> NDArray[np.uint8]:
    """(H, W) uint8 0..255 -> (frame, frame) uint8, soft at the edges, 0 where the image does not reach."""
    shown_h, shown_w = params.visible_hw
    canvas = np.zeros((params.frame, params.frame), dtype=np.uint8)
    canvas[:shown_h, :shown_w] = _resample(mask, params)
    return canvas


def _resample(pixels: NDArray[np.uint8], params: LSJParams, extent: Box | None = None) -> NDArray[np.uint8]:
    """Resize and crop in one pass: PIL computes only the visible part, from neighbours beyond the crop too."""
    from PIL import Image

    if extent is None and pixels.shape[:2] != params.source_hw:
        raise ValueError(f"parameters drawn for size {params.source_hw} do not fit pixels of size {pixels.shape[:2]}")
    shown_h, shown_w = params.visible_hw
    box = params.source_box if extent is None else _within(params.source_box, params.source_hw, extent)
    part = Image.fromarray(pixels).resize((shown_w, shown_h), Image.Resampling.BILINEAR, box=box)
    shown = np.asarray(part)
    return shown[:, ::-1] if params.flip else shown


def _within(box: Box, source_hw: tuple[int, int], extent: Box) -> Box:
    """A box of the source in pixels of a reduced image, in which the source covers `extent`."""
    left, top, right, bottom = extent
    across, down = (right - left) / source_hw[1], (bottom - top) / source_hw[0]
    x0, y0, x1, y1 = left + box[0] * across, top + box[1] * down, left + box[2] * across, top + box[3] * down
    return max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
