"""Prompts simulated from masks, as the published training does: a box, ten points or a noisy mask with equal chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqsam.boxes import mask_to_box
from hqsam.data.augment import OBJECT_THRESHOLD
from hqsam.data.clicks import random_pixels
from hqsam.types import Prompts

PROMPT_KINDS = ("box", "points", "mask")
LOGIT_SCALE = 10.0
"""Certain logits of SAM lie about here; a mask prompt on the predictor's scale is +10 inside and -10 outside."""
_RING_REDUCTION = 8
_RING_DIFFERENCE = 0.01
_MAX_BOX_NOISE = 20 / 1024


@dataclass(frozen=True, kw_only=True)
class PromptRule:
    """How prompts are drawn; see `hqsam.data.TrainDataOptions` for the fields."""

    mix: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(PROMPT_KINDS, 1.0))
    num_points: int = 10
    min_points: int | None = None
    mask_scale: Literal["published", "predictor"] = "published"
    box_jitter: float = 0.0
    min_pixels: int = 10

    def __post_init__(self) -> None:
        weights = self.mix.values()
        if not set(self.mix) <= set(PROMPT_KINDS) or min(weights, default=0) < 0 or not sum(weights) > 0:
            raise ValueError(f"mix gives a weight >= 0 to some of {PROMPT_KINDS}, not all 0; got {dict(self.mix)}")
        if self.mask_scale not in ("published", "predictor"):
            raise ValueError(f"mask_scale must be 'published' or 'predictor', got {self.mask_scale!r}")
        if self.num_points < 1 or self.box_jitter < 0:
            raise ValueError(f"num_points >= 1 and box_jitter >= 0, got {self.num_points} and {self.box_jitter}")
        if self.min_points is not None and not 1 <= self.min_points <= self.num_points:
            raise ValueError(f"min_points must be within 1..num_points = {self.num_points}, got {self.min_points}")

    def draw(self, masks: NDArray[np.uint8], rng: np.random.Generator) -> Prompts:
        """One prompt for each mask.

        Args:
            masks: (P, S, S) 0..255 in the model's frame, none of them all zero. An object of fewer than `min_pixels`
                pixels above 128 gets a box, whatever was drawn for it.
            rng: source of randomness.

        Returns:
            P prompts in model-input pixels, all of image 0.

        Raises:
            ValueError: a mask is all zero and a box is needed.
        """
        weights = np.array([self.mix.get(kind, 0.0) for kind in PROMPT_KINDS])
        kinds = rng.choice(len(PROMPT_KINDS), size=len(masks), p=weights / weights.sum())
        return Prompts.cat([self._one(mask, PROMPT_KINDS[k], rng) for mask, k in zip(masks, kinds, strict=True)])

    def _one(self, mask: NDArray[np.uint8], kind: str, rng: np.random.Generator) -> Prompts:
        inside = mask > OBJECT_THRESHOLD
        if kind == "mask" and np.count_nonzero(inside) >= self.min_pixels:
            return Prompts.from_parts(masks=noisy_mask(mask, rng, self.mask_scale))
        count = self.num_points
        if kind == "points" and self.min_points is not None:
            count = int(rng.integers(self.min_points, self.num_points + 1))
        if kind == "points" and np.count_nonzero(inside) >= max(self.min_pixels, count):
            xy = random_pixels(inside, count, rng)
            return Prompts.from_parts(torch.from_numpy(xy)[None], torch.ones(1, count))
        # A sliver that is soft everywhere has no pixel above 128 and still an extent.
        box = mask_to_box(inside)
        if box is None:
            box = mask_to_box(mask)
        if box is None:
            raise ValueError("an empty mask cannot be prompted for: each mask needs a pixel above 0")
        return Prompts.from_parts(boxes=torch.from_numpy(self._jittered(box, mask.shape, rng))[None])

    def _jittered(
        self, box: NDArray[np.float32], frame_hw: tuple[int, ...], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        if self.box_jitter == 0:
            return box
        sides = np.tile(box[2:] - box[:2] + 1, 2)
        limit = _MAX_BOX_NOISE * max(frame_hw)
        noisy = box + np.clip(rng.standard_normal(4) * self.box_jitter * sides, -limit, limit)
        bounds = np.tile([frame_hw[1] - 1, frame_hw[0] - 1], 2)
        corners = np.sort(np.clip(noisy, 0, bounds).reshape(2, 2), axis=0)
        flat: NDArray[np.float32] = corners.reshape(4).astype(np.float32)
        return flat


def noisy_mask(mask: NDArray[np.uint8], rng: np.random.Generator, scale: str = "published") -> Tensor:
    """A mask prompt with noise along the boundary (published trainer).

    m = mask / 255 bilinear at a quarter of the frame; ring = |m - up(down(m, 1/8))| >= 0.01, bilinear both ways; the
    prompt is (m + N(0, 1) * ring) > 0.5.

    Args:
        mask: (S, S) 0..255.
        rng: source of the noise.
        scale: "published": values 0 and 255; "predictor": -10 and 10.

    Returns:
        (1, 1, S / 4, S / 4) float32.
    """
    full = torch.from_numpy(mask)[None, None].to(torch.float32) / 255
    small = [max(side // 4, 1) for side in mask.shape]
    m = F.interpolate(full, small, mode="bilinear", align_corners=False)
    coarse = F.interpolate(m, [max(side // _RING_REDUCTION, 1) for side in small], mode="bilinear", align_corners=False)
    ring = (m - F.interpolate(coarse, small, mode="bilinear", align_corners=False)).abs() >= _RING_DIFFERENCE
    noise = torch.from_numpy(rng.standard_normal(small, dtype=np.float32))
    inside = (m + noise * ring > 0.5).to(torch.float32)
    return inside * 255 if scale == "published" else (inside * 2 - 1) * LOGIT_SCALE
