"""Corrections while training: a click where the last answer was wrong, and that answer as the next mask prompt.

The interactive simulation of SAM's training (Segment Anything, section 3 "Training" and appendix A): points are drawn
uniformly from the error region, positive where the object was missed, negative where something else was taken.

Shape legend: N prompts, K tokens, S side of the model's input, (h, w) grid of low-resolution logits.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hqsam.losses import mask_at
from hqsam.types import BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, PAD, POSITIVE, Prompts


def correction_clicks(logits: Tensor, masks: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """One click for each mask, at a random low-resolution pixel that the answer has wrong.

    Where nothing is wrong the click is a positive one on the object; where there is no object either, it is batch
    padding and says nothing. Nothing here waits for the device.

    Args:
        logits: (N, 1, h, w), the last answer.
        masks: (N, 1, S, S) uint8 0..255 or floating 0..1, the truth.
        draws: (N,) uniform in [0, 1), which of those pixels it is.

    Returns:
        coords (N, 1, 2), xy at the centre of that pixel in pixels of the model's input; kinds (N, 1).
    """
    height, width = logits.shape[-2:]
    truth = (mask_at(masks, (height, width)) > 0.5).flatten(1)  # (N, h * w)
    wrong = (logits > 0).flatten(1) != truth
    region = torch.where(wrong.any(dim=1, keepdim=True), wrong, truth)
    order = region.cumsum(dim=1, dtype=torch.int32)
    total = order[:, -1:]
    rank = torch.minimum((draws[:, None] * total).to(torch.int32), total - 1)
    index = torch.searchsorted(order, rank, right=True).clamp(max=height * width - 1)  # (N, 1)
    inside = truth.gather(1, index)
    kinds = torch.where(inside, POSITIVE, NEGATIVE).masked_fill(total == 0, PAD)
    cell = torch.tensor([masks.shape[-1] / width, masks.shape[-2] / height]).to(logits.device, non_blocking=True)
    pixels = torch.stack([index % width, index // width], dim=-1)  # (N, 1, 2)
    return (pixels + 0.5) * cell - 0.5, kinds


def with_click(prompts: Prompts, coords: Tensor, kinds: Tensor, answer: Tensor | None) -> Prompts:
    """The same prompts and one click more.

    Args:
        prompts: N prompts, each with a box or with SAM's "not a point" token (`with_not_a_point`).
        coords: (N, 1, 2) in pixels of the model's input.
        kinds: (N, 1).
        answer: (N, 1, h, w) logits that become the mask prompt; None leaves the mask prompts as they are.
    """
    result = _with_token(prompts, coords.to(prompts.coords.dtype), kinds)
    return result if answer is None else replace(result, masks=answer, has_mask=None)


def with_not_a_point(prompts: Prompts) -> Prompts:
    """Give SAM's "not a point" token to prompts that will get points and have neither a box nor that token yet.

    Points without a box come with it, exactly once, as in the predictor.
    """
    complete = ((prompts.kinds == NOT_A_POINT) | (prompts.kinds == BOX_TOP_LEFT)).any(dim=1, keepdim=True)
    return _with_token(prompts, prompts.coords.new_zeros((len(prompts), 1, 2)), torch.where(complete, PAD, NOT_A_POINT))


def _with_token(prompts: Prompts, coords: Tensor, kinds: Tensor) -> Prompts:
    return replace(
        prompts,
        coords=torch.cat([prompts.coords, coords], dim=1),
        kinds=torch.cat([prompts.kinds, kinds.to(prompts.kinds.dtype)], dim=1),
        padded=True,
    )
