"""A score of the mask that is returned. SAM's own score judges SAM's mask; HQ-SAM returns another one.

Shape legend: N prompts over all images, M SAM candidates, C = 256 channels, (4h, 4w) the grid of low-resolution logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hqsam.models.layers import MLP
from hqsam.models.mask_decoder import TrunkOutput

STATISTICS = 9
"""Numbers that `mask_statistics` gives for each mask."""
_RELATIONS = 5
"""Of a returned mask and what it was made of: three overlaps, SAM's score, and which fusion it is."""
_STEP, _POOLING_STEP = 2, 4
"""Every how many rows and columns are looked at: for the statistics, and to average the mask feature."""
_SCORE_RANGE = (0.02, 0.98)
"""SAM's score may lie outside 0..1, where it has no logit."""
_EPS = 1e-6


class ScoreHead(nn.Module):
    """Predicts the mask IoU and the boundary IoU of SAM + HQ and of HQ alone.

    It sees the IoU token, the HQ token and the mask token of the SAM candidate after the transformer, SAM's mask
    feature averaged inside and outside of the mask, and `mask_statistics`. As initialised it repeats SAM's score,
    limited to 0.02..0.98; it learns the difference. No gradient goes back into what it sees.

    Args:
        dim: channels of the tokens.
        hidden: width of its perceptron.
    """

    def __init__(self, dim: int = 256, hidden: int = 64) -> None:
        super().__init__()
        self.mlp = MLP(3 * dim + 2 * (dim // 8) + STATISTICS + _RELATIONS, hidden, 2, 3)
        for parameter in self.mlp.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, trunk: TrunkOutput, sam_logits: Tensor, hq_logits: Tensor, iou: Tensor, candidates: Sequence[int]
    ) -> Tensor:
        """Score every mask that a caller may choose.

        Args:
            trunk: the tokens and the mask feature of N prompts; its first extra token is HQ's.
            sam_logits: (N, M, 4h, 4w).
            hq_logits: (N, 1, 4h, 4w).
            iou: (N, M), SAM's own scores.
            candidates: the M numbers of SAM's masks.

        Returns:
            (N, 2, M, 2) in [0, 1]: of SAM + HQ and of HQ alone, with each of SAM's candidates, mask IoU and boundary
            IoU. HQ's mask is the same with every candidate; what it is compared with differs.
        """
        kind = torch.promote_types(sam_logits.dtype, torch.float32)
        sam, hq = (x.detach()[..., ::_STEP, ::_STEP].to(kind) for x in (sam_logits, hq_logits))
        fused = torch.cat([sam + hq, hq], dim=1)  # (N, M + 1, h', w')
        pooled = _pooled(trunk.mask_feature.detach(), fused)
        of_mask = _by_fusion(torch.cat([mask_statistics(fused), pooled], dim=-1))
        iou = iou.detach().to(kind)
        pairs = _relations(sam, hq, fused, iou)  # (N, 2, M, 5)
        tokens = [trunk.iou_token.detach(), trunk.extra_tokens[:, 0].detach()]
        mine = torch.stack([trunk.mask_tokens[:, c] for c in candidates], dim=1).detach()
        shared = torch.cat(tokens, dim=-1)[:, None].expand(-1, mine.shape[1], -1)
        seen = torch.cat([shared, mine], dim=-1).to(kind)[:, None].expand(-1, 2, -1, -1)
        numbers = torch.cat([seen, of_mask, pairs], dim=-1)
        change = self.mlp(numbers.to(sam_logits.dtype)).to(kind)
        start = iou.clamp(*_SCORE_RANGE).logit()[:, None, :, None]
        scores: Tensor = (start + change).sigmoid()
        return scores


def mask_statistics(logits: Tensor) -> Tensor:
    """What logits alone say about how good their mask is, each number within 0..1.

    Args:
        logits: (..., h, w) floating.

    Returns:
        (..., 9): the IoU to be expected if every pixel is inside with its own probability; mean certainty inside; what
        is expected outside relative to the area; the IoU of the masks at +1 and -1, and at +3 and -3; area, as the root
        of its share; compactness; mean width; uncertain pixels (|logit| < 1) along the border. A mask without a pixel
        has zeros, except for the third, which is 1 as soon as anything is expected, and the stability of wider masks.
    """
    x = logits.flatten(-2)
    pixels = x.shape[-1]
    probability, inside = x.sigmoid(), (x > 0).to(x.dtype)
    area = inside.sum(-1)
    within = (probability * inside).sum(-1)
    without = probability.sum(-1) - within
    counts = {level: (x > level).sum(-1).to(x.dtype) for level in (-3.0, -1.0, 1.0, 3.0)}
    grid = inside.unflatten(-1, logits.shape[-2:])
    border = grid.diff(dim=-1).abs().sum((-2, -1)) + grid.diff(dim=-2).abs().sum((-2, -1))
    some = (area > 0).to(x.dtype)
    return torch.stack(
        [
            within / (area + without + _EPS),
            within / (area + _EPS),
            (without / (area + _EPS)).clamp(max=1),
            counts[1.0] / (counts[-1.0] + _EPS),
            counts[3.0] / (counts[-3.0] + _EPS),
            (area / pixels).sqrt(),
            (4 * area.sqrt() / (border + 1)).clamp(max=1),
            ((area / (border + 1)).log1p() / math.log1p(pixels)),
            some * ((counts[-1.0] - counts[1.0]) / (border + 1) / 4).clamp(max=1),
        ],
        dim=-1,
    )


def _pooled(feature: Tensor, logits: Tensor) -> Tensor:
    """Mean of (N, 4h, 4w, D) channels inside and outside of (N, K, 2h, 2w) masks -> (N, K, 2D)."""
    step = _POOLING_STEP // _STEP
    flat = feature[:, ::_POOLING_STEP, ::_POOLING_STEP].flatten(1, 2).to(logits.dtype)  # (N, P, D)
    share = logits[..., ::step, ::step].flatten(-2).sigmoid()  # (N, K, P)
    inside = share @ flat
    outside = flat.sum(1, keepdim=True) - inside
    area = share.sum(-1, keepdim=True)
    return torch.cat([inside / (area + _EPS), outside / (flat.shape[1] - area + _EPS)], dim=-1)


def _by_fusion(values: Tensor) -> Tensor:
    """(N, M + 1, D) of M sums and of HQ -> (N, 2, M, D)."""
    sums, hq = values[:, :-1], values[:, -1:]
    return torch.stack([sums, hq.expand_as(sums)], dim=1)


def _relations(sam: Tensor, hq: Tensor, fused: Tensor, iou: Tensor) -> Tensor:
    """(N, 2, M, 5): overlaps of SAM's, HQ's and their sum's mask, SAM's score, 1 for HQ alone."""
    a, b, c = ((x > 0).flatten(-2) for x in (sam, hq, fused[:, :-1]))
    overlaps = [(x & y).sum(-1) / ((x | y).sum(-1) + _EPS) for x, y in ((a, b), (a, c), (b, c))]
    same = torch.stack([*(overlap.to(iou.dtype) for overlap in overlaps), iou.clamp(0, 1)], dim=-1)[:, None]
    which = torch.arange(2, dtype=iou.dtype, device=iou.device)[:, None, None]
    return torch.cat([same.expand(-1, 2, -1, -1), which.expand(len(iou), 2, iou.shape[1], 1)], dim=-1)
