"""What is minimised: the loss of the HQ mask, of SAM + HQ, and of SAM's own masks where its decoder is trained too."""

from __future__ import annotations

import contextlib
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from hqsam.data import Batch
from hqsam.losses import PointLoss, bce_dice_per_mask, mask_at, select_points
from hqsam.models import Sam
from hqsam.models.drop_path import dropped_paths
from hqsam.models.parts import SAM_PARTS
from hqsam.models.selection import ALL_CANDIDATES, SINGLE_CANDIDATE
from hqsam.types import DecoderOutput, ImageFeatures, Prompts

_LARGE_IMAGE = 512
"""Input size from which a batch's maps do not fit a cache."""


class LossTerms(NamedTuple):
    """Losses of N masks, and the answer that a user would see."""

    total: Tensor  # (N,) what is minimised, with gradient
    bce: Tensor  # (N,) of the HQ mask
    dice: Tensor  # (N,) of the HQ mask
    answer: Tensor | None  # (N, 1, 4h, 4w) SAM + HQ logits without gradient; None where SAM's mask was not computed


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Bfloat16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


def one_by_one(batch: Batch) -> bool:
    """Whether the images of a batch are better computed singly: large ones on a CPU, whose maps then stay nearer.

    Gradients of the parts add up to those of the batch. At 256 px a batch is faster.
    """
    return batch.masks.shape[-1] >= _LARGE_IMAGE and batch.masks.device.type == "cpu"


def image_features(model: Sam, batch: Batch, *, amp: bool = False, trained: bool = False) -> ImageFeatures:
    """Encoder outputs of a batch: the kept ones it carries, or computed now.

    Args:
        model: its encoder is run.
        batch: on the model's device.
        amp: run the encoder under bfloat16 autocast.
        trained: the encoder or an adapter of it is trained: the outputs carry a gradient.

    Raises:
        ValueError: neither images nor kept outputs; or kept outputs for an encoder that changes.
    """
    if batch.features is not None:
        if trained:
            raise ValueError("kept encoder outputs cannot train the encoder or an adapter of it")
        return batch.features
    if batch.images is None:
        raise ValueError("a batch needs images or encoder features, got neither")
    images = model.preprocess_canvas(batch.images, batch.input_hw)
    size = 1 if one_by_one(batch) else len(images)
    draws = batch.path_draws.split(size) if trained and batch.path_draws.shape[1] else itertools.repeat(None)
    outputs = []
    with torch.set_grad_enabled(trained), autocast(model.device, amp):
        for part, chance in zip(images.split(size), draws, strict=False):
            with dropped_paths(model.image_encoder, chance):
                outputs.append(model.image_encoder(part))
    return ImageFeatures(*map(torch.cat, zip(*outputs, strict=True)))


def forward_loss(
    model: Sam,
    batch: Batch,
    *,
    amp: bool = False,
    features: ImageFeatures | None = None,
    prompts: Prompts | None = None,
    answer: bool = False,
    sum_share: float = 0.0,
) -> LossTerms:
    """Forward pass of one micro-batch: BCE and dice of the HQ logits alone, as published, or of SAM + HQ as well.

    SAM's own masks are not computed unless they are needed; its transformer is, since the HQ token travels through it.
    With `sum_share` s the loss is (1 - s) L(HQ) + s L(SAM + HQ): HQ then learns what SAM leaves to do. Where parts of
    SAM are trained as well (`Sam.trained_parts`), `sam_loss` of its masks is added.

    Args:
        model: an HQ model.
        batch: on the model's device; N masks with one prompt each.
        amp: run encoder and decoder under bfloat16 autocast; the loss is computed in full precision.
        features: encoder outputs, where they were computed before.
        prompts: other prompts for the same masks.
        answer: compute the mask that a user would see too.
        sum_share: 0 ... 1, weight of the loss of SAM + HQ.

    Returns:
        Terms of each mask. The loss of a step is the mean of their totals.
    """
    trains_sam = any(part in model.trained_parts for part in SAM_PARTS)
    summed = answer or sum_share > 0
    candidates = ALL_CANDIDATES if trains_sam else SINGLE_CANDIDATE if summed else ()
    if features is None:
        features = image_features(model, batch, amp=amp)
    with autocast(model.device, amp):
        output = model.decode(features, prompts or batch.prompts, candidates=candidates, use_hq=True)
    if output.hq_logits is None:
        raise ValueError("the model gave no HQ logits: it has no HQ head to train")
    logits = output.hq_logits.to(model.dtype)
    both = None
    if summed:
        single = output.sam_logits[:, :1].to(model.dtype)
        both = (single.detach() if trains_sam else single) + logits  # SAM's parts have a loss of their own
    hq = point_loss(logits, batch.masks, batch.loss_candidates, batch.loss_uniform)
    total = hq.bce + hq.dice
    if both is not None and sum_share > 0:
        loss = point_loss(both, batch.masks, batch.loss_candidates, batch.loss_uniform)
        total = (1 - sum_share) * total + sum_share * (loss.bce + loss.dice)
    if trains_sam:
        total = total + sam_loss(output, batch, model.dtype)
    return LossTerms(total, hq.bce, hq.dice, both.detach() if answer and both is not None else None)


def point_loss(logits: Tensor, masks: Tensor, candidates: Tensor, uniform: Tensor) -> PointLoss:
    """BCE and dice of (N, 1, h, w) logits at their most uncertain candidates and at the uniform points."""
    points = select_points(logits.detach(), candidates.to(logits.dtype), uniform.to(logits.dtype))
    return bce_dice_per_mask(logits, masks, points)


def sam_loss(output: DecoderOutput, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Loss of SAM's own masks and scores, for a decoder that is trained with the head.

    As SAM was trained (Segment Anything, appendix A, "Making the model ambiguity-aware"): the mask of a clear prompt,
    of the three of an ambiguous one the best alone, and the squared error of each predicted IoU. The terms of a mask
    are those of the HQ mask.

    Args:
        output: with all four candidates.
        batch: the truth and the loss points.
        dtype: number type to compute in.

    Returns:
        (N,), with gradient.
    """
    count, number = output.iou.shape
    logits = output.sam_logits.to(dtype).flatten(0, 1)[:, None]  # (4N, 1, h, w)

    def repeat(x: Tensor) -> Tensor:
        return x.repeat_interleave(number, dim=0)

    loss = point_loss(logits, repeat(batch.masks), repeat(batch.loss_candidates), repeat(batch.loss_uniform))
    masks = (loss.bce + loss.dice).view(count, number)
    truth = low_resolution_truth(batch.masks, output)
    score = score_errors(output.iou.to(masks.dtype), output.sam_logits, truth).mean(dim=1)
    return masks[:, 0] + masks[:, 1:].amin(dim=1) + score


def low_resolution_truth(masks: Tensor, output: DecoderOutput) -> Tensor:
    """(N, 1, h, w) bool: what of the objects the low-resolution masks should hold."""
    return mask_at(masks, output.sam_logits.shape[-2:]) > 0.5


def score_errors(iou: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
    """Squared errors of predicted IoUs.

    Args:
        iou: (N, M) predicted, with gradient.
        logits: (N, M, h, w), the masks that it was predicted of; without gradient here.
        truth: (N, 1, h, w) bool. Where it and the mask are both empty, the IoU counts as 0.

    Returns:
        (N, M).
    """
    with torch.no_grad():
        inside = logits > 0
        overlap = (inside & truth).sum((2, 3))
        union = (inside | truth).sum((2, 3)).clamp(min=1)
    return (iou - overlap / union).square()
