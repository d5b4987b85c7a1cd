"""Prompts as people give them, in pixels of the original image: checking, and masks as prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hqsam.geometry import ResizeLongestSide, resized_hw
from hqsam.models import Sam
from hqsam.prompt_arrays import check_boxes, check_points, finite, require_any, shape_text
from hqsam.types import Prompts

MASK_LOGIT = 16.0
"""Logit of a pixel that a mask prompt is sure of; chosen on the reserved part of the training photographs."""


@dataclass(frozen=True)
class Prompt:
    """What is said about one object, in pixels of the original image; at least one part is given.

    Attributes:
        points: (K, 2) xy.
        labels: (K,): 1 foreground, 0 background, -1 ignored; beside `points`.
        box: (4,) XYXY.
        mask: (1, 4h, 4w) floating logits of an earlier prediction, or a (H, W) bool or uint8 mask of the image.
    """

    points: ArrayLike | None = None
    labels: ArrayLike | None = None
    box: ArrayLike | None = None
    mask: ArrayLike | None = None


@dataclass(frozen=True)
class PromptFrame:
    """The image that prompts refer to, and the model that will see them.

    Attributes:
        original_hw: (H, W) of the image.
        image_size: side S of the model's square input.
        mask_hw: size (4h, 4w) of mask prompts.
    """

    original_hw: tuple[int, ...]
    image_size: int
    mask_hw: tuple[int, int]

    @classmethod
    def of(cls, model: Sam, original_hw: tuple[int, ...]) -> PromptFrame:
        """The frame of one image and one model."""
        return cls(original_hw, model.image_size, model.prompt_encoder.mask_input_size)

    def assemble(
        self, coords: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None, mask: ArrayLike | None
    ) -> tuple[Prompts, bool]:
        """Check the parts and bring them into the model's frame.

        Args:
            coords: (K, 2) xy, or (N, K, 2) beside N boxes.
            labels: (K,) or (N, K).
            box: (4,) or (N, 4) XYXY.
            mask: logits (1, 4h, 4w) or (N, 1, 4h, 4w), or masks (H, W) or (N, H, W), bool or uint8.

        Returns:
            The prompts, on the CPU, and whether they came as an array of boxes.

        Raises:
            ValueError: no part, wrong shapes, NaN or infinite values, a box that is inverted or wholly outside, a mask
                of another size or without a pixel.
        """
        require_any(coords, labels, box, mask)
        boxes, many = check_boxes(box, self.original_hw)
        lead = (1 if boxes is None else len(boxes),) if many else ()
        points, kinds = check_points(coords, labels, lead)
        transform = ResizeLongestSide(self.image_size)
        prompts = Prompts.from_parts(
            None if points is None else _tensor(transform.apply_coords(points, self.original_hw)),
            None if kinds is None else torch.from_numpy(kinds),
            None if boxes is None else _tensor(transform.apply_boxes(boxes, self.original_hw)),
            None if mask is None else self._masks(mask, lead),
        )
        return prompts, many

    def checked(self, prompt: Prompt) -> Prompts:
        """One object's prompts; errors as in `assemble`."""
        prompts, many = self.assemble(prompt.points, prompt.labels, prompt.box, prompt.mask)
        if many:
            raise ValueError(f"a Prompt describes one object: its box has shape (4,), got {prompt.box!r}")
        return prompts

    def _masks(self, mask: ArrayLike, lead: tuple[int, ...]) -> Tensor:
        array = np.asarray(mask)
        logits = np.issubdtype(array.dtype, np.floating)
        if not logits and array.dtype not in (np.bool_, np.uint8):
            raise ValueError(
                "mask_input must be floating-point logits of an earlier prediction, or a bool or uint8 mask of the "
                f"image, got {array.dtype}"
            )
        expected = (*lead, 1, *self.mask_hw) if logits else (*lead, *self.original_hw)
        if array.shape != expected:
            what = "as logits" if logits else f"as a {array.dtype} mask of the image"
            raise ValueError(f"mask_input must have shape {shape_text(*expected)} {what}, got {array.shape}")
        if logits:
            return _tensor(finite(array, "mask_input").reshape(-1, 1, *self.mask_hw))
        return torch.stack([mask_to_logits(m, self.mask_hw) for m in array.reshape(-1, *self.original_hw)])


def mask_to_logits(mask: NDArray[np.bool_] | NDArray[np.uint8], mask_hw: tuple[int, int]) -> Tensor:
    """Turn a mask of the original image into the logits that the model takes as a mask prompt.

    The mask is resized as the image was (long side to that of the logits, antialiased), padded with outside at the
    bottom and on the right, and mapped from [0, 1] to [-`MASK_LOGIT`, `MASK_LOGIT`]: SAM was trained on its own logits.

    Args:
        mask: (H, W), non-zero inside.
        mask_hw: size (4h, 4w) of mask prompts, a square.

    Returns:
        (1, 4h, 4w) float32.

    Raises:
        ValueError: another rank, or a mask without a pixel, which says nothing.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask must have shape (H, W), got {mask.shape}")
    if not mask.any():
        raise ValueError("the mask prompt has no pixel inside; leave it out, or prompt with a box or points")
    size = resized_hw(mask.shape[0], mask.shape[1], max(mask_hw))
    inside = torch.from_numpy((mask != 0).astype(np.float32))[None, None]
    small = torch.nn.functional.interpolate(inside, size, mode="bilinear", align_corners=False, antialias=True)
    logits = torch.full((1, *mask_hw), -MASK_LOGIT)
    logits[:, : size[0], : size[1]] = (2 * small[0] - 1) * MASK_LOGIT
    return logits


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One image's prompts as a list.

    Raises:
        ValueError: something else than `Prompt`s.
    """
    listed = [prompts] if isinstance(prompts, Prompt) else list(prompts)
    for prompt in listed:
        if not isinstance(prompt, Prompt):
            raise ValueError(f"each image takes a Prompt or a list of them, got {type(prompt).__name__}")
    return listed


def _tensor(array: NDArray[np.float64]) -> Tensor:
    """In float32 before any device sees it: some have no float64."""
    return torch.from_numpy(array.astype(np.float32))
