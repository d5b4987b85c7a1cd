"""What is minimised where SAM itself is trained: the loss of its own recipe (Segment Anything, section 3, appendix A).

Shape legend: N prompts, M candidate masks, (h, w) grid of low-resolution logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hqsam.data import Batch
from hqsam.engine.objective import LossTerms, autocast, low_resolution_truth, score_errors
from hqsam.losses import focal_dice_per_mask
from hqsam.models import Sam
from hqsam.models.selection import ALL_CANDIDATES, SINGLE_CANDIDATE
from hqsam.types import BOX_TOP_LEFT, NEGATIVE, POSITIVE, DecoderOutput, ImageFeatures, Prompts

FOCAL_WEIGHT = 20.0
"""Of the focal loss against dice; the squared error of the score weighs 1 (section 3, "Losses and training")."""


def forward_sam_loss(
    model: Sam, batch: Batch, features: ImageFeatures, prompts: Prompts, *, first: bool, amp: bool = False
) -> LossTerms:
    """Forward pass of one round: SAM's loss of its own masks.

    Args:
        model: plain, or an HQ model, whose HQ token then takes no part.
        batch: on the model's device; N masks.
        features: encoder outputs.
        prompts: N prompts for the masks.
        first: this is the first answer to each prompt: where it is one point, one box or one mask, three masks are
            predicted. Later there are several prompts, and the fourth mask alone is.
        amp: decode under bfloat16 autocast; the loss is computed in full precision.

    Returns:
        Terms of each mask, `bce` being the focal loss.
    """
    with autocast(model.device, amp):
        candidates = ALL_CANDIDATES if first else SINGLE_CANDIDATE
        output = model.decode(features, prompts, candidates=candidates, use_hq=False)
    return sam_terms(output, batch.masks, is_ambiguous(prompts) if first else None, model.dtype)


def is_ambiguous(prompts: Prompts) -> Tensor:
    """(N,) bool: at most one prompt, a point, a box or a mask, so that several objects may be meant."""
    kinds = prompts.kinds
    count = ((kinds == NEGATIVE) | (kinds == POSITIVE) | (kinds == BOX_TOP_LEFT)).sum(dim=1)
    return count + prompts.mask_flags() <= 1


def sam_terms(output: DecoderOutput, masks: Tensor, ambiguous: Tensor | None, dtype: torch.dtype) -> LossTerms:
    """Focal loss, dice and score errors of SAM's masks, on the whole low-resolution masks.

    Of the three masks of an ambiguous prompt only the one with the lowest loss is back-propagated; the scores of all
    three are, since they have to rank them. Of a clear prompt it is the fourth mask (number 0) and its score.

    Args:
        output: with all four candidates, or with candidate 0 alone.
        masks: (N, 1, S, S) uint8 0..255 or floating 0..1, the truth; an object is what lies above the half.
        ambiguous: (N,) bool, which prompts are; None where candidate 0 answers all of them.
        dtype: number type to compute in.

    Returns:
        Terms of each mask; the answer is what a user would see: the best-scored of the three, or the fourth.
    """
    logits, iou = output.sam_logits.to(dtype), output.iou.to(dtype)
    truth = low_resolution_truth(masks, output)
    loss = focal_dice_per_mask(logits, truth)
    total = FOCAL_WEIGHT * loss.focal + loss.dice  # (N, M)
    errors = score_errors(iou, logits, truth)
    score, chosen = errors[:, 0], torch.zeros_like(total[:, 0], dtype=torch.int64)
    shown = chosen
    if ambiguous is not None:
        score = torch.where(ambiguous, errors[:, 1:].mean(dim=1), score)
        chosen = torch.where(ambiguous, 1 + total[:, 1:].argmin(dim=1), chosen)
        shown = torch.where(ambiguous, 1 + iou[:, 1:].argmax(dim=1), shown)
    focal, dice, masks_loss = (term.gather(1, chosen[:, None])[:, 0] for term in (loss.focal, loss.dice, total))
    answer = logits.detach().take_along_dim(shown[:, None, None, None], dim=1)
    return LossTerms(masks_loss + score, focal, dice, answer)
