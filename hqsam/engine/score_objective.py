"""What training of the score head minimises: the squared error of its predictions about the masks that are returned.

Everything else is frozen, and nothing has a gradient but the score head. Shape legend: N prompts, M SAM candidates.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqsam.data import Batch
from hqsam.engine.objective import LossTerms, autocast, image_features, point_loss
from hqsam.losses import mask_at
from hqsam.metrics import mask_iou
from hqsam.metrics.boundary import boundary_region
from hqsam.models import PreparedImages, Sam
from hqsam.models.selection import ALL_CANDIDATES
from hqsam.types import ImageFeatures, Prompts

_AT_ONCE = 4
"""Prompts decoded together: a gradient is needed of the score head alone, so nothing large has to be kept."""


def score_terms(
    model: Sam,
    batch: Batch,
    *,
    amp: bool = False,
    features: ImageFeatures | None = None,
    prompts: Prompts | None = None,
    answer: bool = False,
) -> LossTerms:
    """Forward pass of one micro-batch while the score head is trained; arguments as in `forward_loss`.

    Each prompt counts with all masks that a caller may get of it: SAM + HQ with each of SAM's four candidates, and HQ
    alone. On a GPU this waits for the masks: their boundaries are found on the CPU.

    Returns:
        `total` is the mean squared error of mask IoU and boundary IoU; `bce` and `dice` are those of the HQ mask, which
        does not change here.

    Raises:
        ValueError: the model has no score head.
    """
    if features is None:
        features = image_features(model, batch, amp=amp)
    prompts = prompts or batch.prompts
    with torch.no_grad(), autocast(model.device, amp):
        prepared = PreparedImages(model.hq_features(features))
    errors, hq_logits, answers = [], [], []
    for start in range(0, len(prompts), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        with autocast(model.device, amp):
            output = model.decode(
                features, prompts[rows], candidates=ALL_CANDIDATES, prepared=prepared, own_scores=True
            )
        if output.hq_logits is None or output.own_scores is None:
            raise ValueError("the model gave no scores: it has no score head to train")
        sums = output.sam_logits + output.hq_logits
        truth = true_scores(torch.cat([sums, output.hq_logits], dim=1), batch.masks[rows], _valid(batch, prompts[rows]))
        target = torch.stack([truth[:, :-1], truth[:, -1:].expand_as(truth[:, :-1])], dim=1).to(output.own_scores)
        errors.append((output.own_scores - target).square().mean(dim=(1, 2, 3)))
        hq_logits.append(output.hq_logits.detach().to(model.dtype))
        answers.append(sums[:, :1].detach().to(model.dtype))
    with torch.no_grad():
        hq = point_loss(torch.cat(hq_logits), batch.masks, batch.loss_candidates, batch.loss_uniform)
    return LossTerms(torch.cat(errors).to(model.dtype), hq.bce, hq.dice, torch.cat(answers) if answer else None)


def true_scores(logits: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Mask IoU and boundary IoU of low-resolution masks, on their own grid and within the picture.

    The picture is cut out first, so that padding is neither a mistake nor inside, and its border counts as boundary.

    Args:
        logits: (N, K, h, w), inside above 0.
        masks: (N, 1, S, S), the truth as in `Batch.masks`.
        valid: (N, 2), the share of height and width that the picture covers.

    Returns:
        (N, K, 2) float32 on the CPU.
    """
    truth = (mask_at(masks, logits.shape[-2:])[:, 0] > 0.5).cpu().numpy()
    inside = (logits > 0).cpu().numpy()
    scores = np.empty((*logits.shape[:2], 2), dtype=np.float32)
    for row, share in enumerate(valid.tolist()):
        height, width = (max(1, math.ceil(part * side)) for part, side in zip(share, logits.shape[-2:], strict=True))
        target = np.ascontiguousarray(truth[row, :height, :width])
        ring = boundary_region(target)
        for k in range(logits.shape[1]):
            mask = np.ascontiguousarray(inside[row, k, :height, :width])
            scores[row, k] = _pair(mask, target, ring)
    return torch.from_numpy(scores)


def _pair(mask: NDArray[np.bool_], target: NDArray[np.bool_], ring: NDArray[np.bool_]) -> tuple[float, float]:
    return mask_iou(mask, target), mask_iou(boundary_region(mask), ring)


def _valid(batch: Batch, prompts: Prompts) -> Tensor:
    """(N, 2) share of the frame's height and width that each prompt's picture covers."""
    share = batch.input_hw.cpu().double() / batch.masks.shape[-1]
    return share[:1].expand(len(prompts), -1) if prompts.image_index is None else share[prompts.image_index.cpu()]
