"""Optional changes of an image's pixels: colours, and what cameras and files do. Not part of the published recipe.

Nothing here moves an edge, so masks stay as they are.

| change | steps, each with its own chance |
|---|---|
| photometric | brightness and contrast, gamma, hue and saturation, local contrast (CLAHE), grey |
| degradation | one of blur, motion blur, lost resolution; then noise; then JPEG compression |
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from albumentations import Compose

_FULL_SIDE = 1024
_LEAST_SIDE = 16
"""Smaller pictures stay as they are: a blur or a block of JPEG would be most of them."""


@dataclass(frozen=True)
class PixelChange:
    """One drawn change; the same numbers give the same pixels.

    Attributes:
        photometric: colours and contrast are changed.
        degradation: the picture is made worse.
        seed: of how.
    """

    photometric: bool
    degradation: bool
    seed: int

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB -> the same, changed; a side under 16 pixels: unchanged."""
        if min(image.shape[:2]) < _LEAST_SIDE:
            return image
        rng = np.random.default_rng(self.seed)
        pipeline = _compose(self, min(max(image.shape[:2]) / _FULL_SIDE, 1.0), rng)
        pipeline.set_random_state(rng, random.Random(self.seed))
        changed: NDArray[np.uint8] = pipeline(image=image)["image"]
        return changed


@dataclass(frozen=True, kw_only=True)
class PixelRule:
    """How changes are drawn.

    Attributes:
        photometric: chance of changed colours and contrast.
        degradation: chance of blur, noise and compression.
    """

    photometric: float = 0.0
    degradation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("photometric", "degradation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be within 0..1, got {getattr(self, name)}")

    def draw(self, rng: np.random.Generator) -> PixelChange | None:
        """Draw one change; None: the pixels stay. Always three draws from `rng`."""
        photometric, degradation = bool(rng.random() < self.photometric), bool(rng.random() < self.degradation)
        seed = int(rng.integers(2**32))
        return PixelChange(photometric, degradation, seed) if photometric or degradation else None


def _compose(change: PixelChange, reach: float, rng: np.random.Generator) -> Compose:
    """A new pipeline for every picture: its generators are its own, whatever else runs.

    `reach` is 1 for a picture that fills the frame, less for small ones: there a wide blur would hide the object.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network for a newer version
    import albumentations

    steps = _photometric_steps() if change.photometric else []
    if change.degradation:
        steps += _degradation_steps(reach, rng)
    return albumentations.Compose(steps)


def _photometric_steps() -> list[Any]:
    import albumentations as alb

    return [
        # relative to the picture's mean, so that faint objects on black are not cut off
        alb.RandomBrightnessContrast(brightness_limit=0.3, contrast_limit=0.25, brightness_by_max=False, p=0.8),
        alb.RandomGamma(gamma_limit=(70, 140), p=0.4),
        alb.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=40, val_shift_limit=0, p=0.5),
        alb.CLAHE(clip_limit=(1.0, 2.5), p=0.15),
        alb.ToGray(p=0.08),
    ]


def _degradation_steps(reach: float, rng: np.random.Generator) -> list[Any]:
    import albumentations as alb

    blurs = [
        alb.GaussianBlur(blur_limit=0, sigma_limit=(0.4, 0.5 + 1.5 * reach)),
        # a shifted or one-sided kernel would move the picture against its mask
        alb.MotionBlur(blur_limit=(3, 3 + 2 * int(3 * reach)), allow_shifted=False, direction_range=(0.0, 0.0)),
        alb.Lambda(image=partial(_coarsened, scale=rng.uniform(0.35, 0.8)), p=0.5),
    ]
    return [
        alb.OneOf(blurs, p=0.6),
        alb.GaussNoise(std_range=(0.01, 0.06), p=0.4),
        alb.ImageCompression(quality_range=(30, 85), p=0.6),
    ]


def _coarsened(image: NDArray[np.uint8], *, scale: float, **_: Any) -> NDArray[np.uint8]:
    """Scaled down and up again. `albumentations.Downscale` rounds the size but not the scale, which moves edges."""
    import cv2

    height, width = image.shape[:2]
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
