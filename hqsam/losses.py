"""The training losses: binary cross-entropy and dice on sampled points; SAM's own focal loss and dice on whole masks.

Points are drawn where the prediction is least certain (PointRend, arXiv 1912.08193, section 3.1), with the numbers of
the HQ-SAM training code: 112 x 112 points per mask, 75 % of them the most uncertain of three times as many candidates,
the rest uniform. What is random, the candidates and the uniform points, comes in as arguments.

Shape legend: N masks, P points per mask, (h, w) logits, (H, W) target. Points are (x, y) in [0, 1] across the whole
map: (0, 0) is the top-left corner of the top-left pixel, and maps of different sizes share the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class PointLoss(NamedTuple):
    """The two terms; HQ-SAM trains on their plain sum."""

    bce: Tensor  # () mean over masks, or (N,)
    dice: Tensor  # () mean over masks, or (N,)


class MaskLoss(NamedTuple):
    """The two terms of whole masks, each (N, M)."""

    focal: Tensor
    dice: Tensor


def point_sample(x: Tensor, points: Tensor) -> Tensor:
    """Bilinear values at points, zero beyond the border (`grid_sample` with `align_corners=False`).

    Args:
        x: (N, C, H, W) floating, or uint8. A uint8 map is read where the points are, without a float copy of it, and is
            not differentiable with respect to the points.
        points: (N, P, 2) xy in [0, 1].

    Returns:
        (N, C, P) in the dtype of `x`; in the dtype of `points`, range 0..255, for uint8.

    Raises:
        ValueError: shapes that do not fit, or another integer type.
    """
    if x.ndim != 4 or points.ndim != 3 or points.shape[-1] != 2 or len(x) != len(points):
        raise ValueError(
            f"expected a map (N, C, H, W) and points (N, P, 2), got {tuple(x.shape)} and {tuple(points.shape)}"
        )
    if x.dtype == torch.uint8:
        return _gather_bilinear(x, points)
    if not x.is_floating_point():
        raise ValueError(f"the map must be floating or uint8, got {x.dtype}")
    grid = (2.0 * points - 1.0).to(x.dtype)
    return F.grid_sample(x, grid[:, :, None], mode="bilinear", align_corners=False)[..., 0]


def mask_at(masks: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Bilinear values of masks at the pixel centres of another grid over the same frame.

    Args:
        masks: (N, 1, H, W) floating, or uint8, which counts as value / 255.
        size_hw: (h, w) of the grid.

    Returns:
        (N, 1, h, w), float32 for uint8 masks.
    """
    height, width = size_hw
    dtype = masks.dtype if masks.is_floating_point() else torch.float32
    x = (torch.arange(width, device=masks.device, dtype=dtype) + 0.5) / width
    y = (torch.arange(height, device=masks.device, dtype=dtype) + 0.5) / height
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(1, -1, 2)
    values = point_sample(masks, points.expand(len(masks), -1, -1)).view(-1, 1, height, width)
    return values / 255 if masks.dtype == torch.uint8 else values


def select_points(logits: Tensor, candidates: Tensor, uniform: Tensor) -> Tensor:
    """Points that a mask's loss is computed on: the most uncertain candidates, then the uniform points.

    Uncertainty is -|logit| of the logit sampled at the candidate. Nothing here has a gradient.

    Args:
        logits: (N, 1, h, w).
        candidates: (N, 3P, 2) xy in [0, 1].
        uniform: (N, P / 4, 2) xy in [0, 1].

    Returns:
        (N, P, 2).

    Raises:
        ValueError: shapes that do not fit, or more uniform points than P.
    """
    total = candidates.shape[1] // 3 if candidates.ndim == 3 else 0
    count = total - uniform.shape[1] if uniform.ndim == 3 else -1
    if count < 0 or candidates.shape[1] != 3 * total or len(candidates) != len(uniform):
        raise ValueError(
            "expected candidates (N, 3P, 2) and uniform (N, at most P, 2), "
            f"got {tuple(candidates.shape)} and {tuple(uniform.shape)}"
        )
    with torch.no_grad():
        certainty = point_sample(_single(logits), candidates)[:, 0].abs()  # (N, 3P)
        rows = certainty.topk(count, dim=1, largest=False, sorted=False).indices
        chosen = candidates.gather(1, rows[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, uniform.to(chosen.dtype)], dim=1)


def bce_dice_per_mask(logits: Tensor, target: Tensor, points: Tensor) -> PointLoss:
    """Both terms of each mask.

    Args:
        logits: (N, 1, h, w) floating; lower precision than float32 is raised to it.
        target: (N, 1, H, W), any size: floating in [0, 1], or uint8 in 0..255, which counts as target / 255.
        points: (N, P, 2) xy in [0, 1], P >= 1.

    Returns:
        bce (N,): mean over the points. dice (N,): 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1).

    Raises:
        ValueError: shapes that do not fit, or no points.
    """
    if points.ndim == 3 and points.shape[1] == 0:
        raise ValueError("the loss needs at least one point per mask, got none")
    if target.ndim != 4 or target.shape[:2] != logits.shape[:2]:
        raise ValueError(
            f"logits (N, 1, h, w) need a target (N, 1, H, W), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    predicted = point_sample(_single(logits), points)[:, 0]  # (N, P)
    with torch.no_grad():
        truth = point_sample(target, points)[:, 0].to(predicted.dtype)
        truth = truth / 255.0 if target.dtype == torch.uint8 else truth
    bce = F.binary_cross_entropy_with_logits(predicted, truth, reduction="none").mean(dim=1)
    probability = predicted.sigmoid()
    overlap = (probability * truth).sum(dim=1)
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum(dim=1) + truth.sum(dim=1) + 1.0)
    return PointLoss(bce, dice)


def bce_dice_loss(logits: Tensor, target: Tensor, points: Tensor) -> PointLoss:
    """Both terms, averaged over masks; arguments as in `bce_dice_per_mask`.

    Raises:
        ValueError: as there, or no masks at all.
    """
    if logits.ndim == 4 and len(logits) == 0:
        raise ValueError("the loss of no masks is undefined: the batch is empty")
    loss = bce_dice_per_mask(logits, target, points)
    return PointLoss(loss.bce.mean(), loss.dice.mean())


def focal_dice_per_mask(logits: Tensor, target: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> MaskLoss:
    """Focal loss and dice of whole masks, as SAM was trained.

    Segment Anything (section 3, "Losses and training") follows DETR and MaskFormer, which compare all pixels of a mask;
    points were sampled only by their successors. The defaults are theirs too (Lin et al., arXiv 1708.02002).

    Args:
        logits: (N, M, h, w) floating; lower precision than float32 is raised to it.
        target: (N, 1, h, w) floating in [0, 1] at the same pixels.
        alpha: weight of the object's pixels; the others weigh 1 - alpha.
        gamma: how much less a pixel weighs that is right already; with 0 and alpha 0.5 it is half the cross-entropy.

    Returns:
        focal (N, M): mean over the pixels of a_t (1 - p_t)^gamma (-log p_t), where p_t is the probability of the truth.
        dice (N, M): 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1).

    Raises:
        ValueError: shapes that do not fit, or logits of an integer type.
    """
    fits = logits.ndim == 4 == target.ndim and target.shape[1] == 1 and len(target) == len(logits)
    if not fits or target.shape[2:] != logits.shape[2:] or not logits.is_floating_point():
        raise ValueError(
            "expected floating logits (N, M, h, w) and a target (N, 1, h, w), "
            f"got {logits.dtype} {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    logits = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits).flatten(2)
    truth = target.to(logits.dtype).flatten(2).expand_as(logits)  # (N, M, h * w)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missing = probability * (1 - truth) + (1 - probability) * truth  # 1 - p_t
    weight = alpha * truth + (1 - alpha) * (1 - truth)
    focal = (weight * missing**gamma * entropy).mean(dim=2)
    overlap = (probability * truth).sum(dim=2)
    dice = 1.0 - (2.0 * overlap + 1.0) / (probability.sum(dim=2) + truth.sum(dim=2) + 1.0)
    return MaskLoss(focal, dice)


def _single(logits: Tensor) -> Tensor:
    if logits.ndim != 4 or logits.shape[1] != 1 or not logits.is_floating_point():
        raise ValueError(f"logits must be floating and (N, 1, h, w), got {logits.dtype} {tuple(logits.shape)}")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _gather_bilinear(x: Tensor, points: Tensor) -> Tensor:
    """Read the four neighbours of each point: a float copy of (N, 1, 1024, 1024) would be 4 MB a mask."""
    n, channels, height, width = x.shape
    # By axis: a tensor of the two sizes would have to come from the CPU, and a GPU would be waited for.
    position = torch.stack([points[..., 0] * width, points[..., 1] * height], dim=-1) - 0.5
    corner = position.floor()
    fraction = position - corner  # (N, P, 2)
    left, top = corner.long().unbind(-1)
    flat = x.reshape(n, channels, height * width)
    total = points.new_zeros((n, channels, points.shape[1]))
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            value = flat.gather(2, index[:, None].expand(-1, channels, -1)).to(points.dtype)
            weight_x = fraction[..., 0] if dx else 1.0 - fraction[..., 0]
            weight_y = fraction[..., 1] if dy else 1.0 - fraction[..., 1]
            total += value * (weight_x * weight_y * inside)[:, None]
    return total
