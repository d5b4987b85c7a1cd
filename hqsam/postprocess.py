"""From low-resolution logits to masks of the original image: SAM's rule, in one place, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hqsam.upsampling import WindowUpscaler, products_are_exact

PIXELS_AT_ONCE = 2**23
"""Full-size logits held at a time: memory grows neither with the number of prompts nor, beyond one mask, with size."""


def upscale_logits(
    logits: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...], image_size: int
) -> Tensor:
    """Upsample to the model's frame, cut the padding off, resize to the original (SAM, `postprocess_masks`).

    Args:
        logits: (N, C, 4h, 4w) float.
        input_size: (height, width) of the resized image inside the S x S frame.
        original_size: (H, W) of the original image.
        image_size: S.

    Returns:
        (N, C, H, W) logits.
    """
    full = F.interpolate(logits, (image_size, image_size), mode="bilinear", align_corners=False)
    full = full[..., : input_size[0], : input_size[1]]
    return F.interpolate(full, tuple(original_size), mode="bilinear", align_corners=False)


def full_size_masks(
    logits: Tensor,
    input_size: tuple[int, ...],
    original_size: tuple[int, ...],
    image_size: int,
    *,
    threshold: float | None = 0.0,
) -> Tensor:
    """`upscale_logits` piece by piece, thresholded on the way.

    Args:
        logits: (N, C, 4h, 4w), any float type.
        input_size: as in `upscale_logits`.
        original_size: as in `upscale_logits`.
        image_size: as in `upscale_logits`.
        threshold: logits above it are inside; None returns the logits.

    Returns:
        (N, C, H, W) bool, or float32 logits.
    """
    height, width = original_size
    flat = logits.flatten(0, 1)[:, None]
    if threshold is not None and suits_windows(flat):
        inside = _threshold_windows(flat[:, 0], input_size, original_size, image_size, threshold)
        return inside.view(*logits.shape[:2], height, width)
    kind = torch.float32 if threshold is None else torch.bool
    result = torch.empty((len(flat), height, width), dtype=kind, device=logits.device)
    step = max(1, PIXELS_AT_ONCE // max(height * width, image_size**2))
    for start in range(0, len(flat), step):
        full = upscale_logits(flat[start : start + step].float(), input_size, original_size, image_size)[:, 0]
        result[start : start + step] = full if threshold is None else full > threshold
    return result.view(*logits.shape[:2], height, width)


def suits_windows(logits: Tensor) -> bool:
    """Whether windows give what the two steps give; a product spreads what is not finite over a whole band."""
    square = logits.shape[-1] == logits.shape[-2]
    return logits.device.type == "cpu" and square and products_are_exact() and bool(logits.isfinite().all())


@torch.no_grad()
def _threshold_windows(
    logits: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...], image_size: int, threshold: float
) -> Tensor:
    """(N, 4h, 4w) logits -> (N, H, W) bool on a CPU, computed where a mask can be."""
    height, width = original_size
    inside = torch.zeros((len(logits), height, width), dtype=torch.bool, device=logits.device)
    # Windows have x before y: of the transposed logits they are the other way round.
    upscale = WindowUpscaler(logits.shape[-1], (input_size[1], input_size[0]), (width, height), image_size)
    for mask, low in zip(inside, logits, strict=True):
        for strip in upscale.strips(low.T.float(), threshold):  # never a picture of floats
            torch.gt(strip.logits, threshold, out=mask[strip.x, strip.y])
    return inside
