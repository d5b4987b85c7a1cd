"""HQ-SAM's addition to SAM's mask decoder (Segment Anything in High Quality, section 3.2, figure 2).

Shape legend: B images, N prompts over all images, C = 256 channels, (h, w) the image embedding's grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.layers import MLP, LayerNorm2d, Upsample4x, conv3x3, conv3x3_dot
from hqsam.models.mask_decoder import DecoderInput, MaskDecoder
from hqsam.models.score import ScoreHead
from hqsam.types import DecoderOutput, ImageFeatures


class MaskFusion(nn.Module):
    """Two 3x3 convolutions of SAM's mask feature, of which only the product with the token's weights is needed."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.norm = LayerNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)

    def dot(self, mask_feature: Tensor, weights: Tensor) -> Tensor:
        """(N, H, W, D) channels-last feature, (N, D) weights -> (N, 1, H, W)."""
        hidden = F.gelu(self.norm.forward_last(conv3x3(self.conv1, mask_feature)))
        return conv3x3_dot(self.conv2, hidden, weights)


class HQHead(nn.Module):
    """The learnable part: HQ output token, three-layer MLP and the global-local fusion.

    Args:
        early_channels: channels of the encoder's early feature.
        dim: channels of tokens and image embedding.
    """

    def __init__(self, early_channels: int, dim: int = 256) -> None:
        super().__init__()
        self.token = nn.Embedding(1, dim)
        self.mlp = MLP(dim, dim, dim // 8, 3)
        self.early_fusion = Upsample4x(early_channels, dim, dim // 8)
        self.final_fusion = Upsample4x(dim, dim // 4, dim // 8)
        self.mask_fusion = MaskFusion(dim // 8, dim // 4)

    def image_feature(self, features: ImageFeatures) -> Tensor:
        """The part of the fused feature that depends on the image alone.

        Args:
            features: final embedding (B, C, h, w) and early feature (B, C', h, w).

        Returns:
            (B, C / 8, 4h, 4w).
        """
        final = self.final_fusion(features.image_embedding.permute(0, 2, 3, 1))
        early = self.early_fusion(features.early_feature.permute(0, 2, 3, 1))
        fused: Tensor = (final + early).permute(0, 3, 1, 2)
        return fused

    def logits(self, token: Tensor, mask_feature: Tensor, image_feature: Tensor) -> Tensor:
        """HQ mask logits: the token's weights times the fused feature.

        The fused feature is the sum of `image_feature` and two convolutions of SAM's mask feature; the second of them
        is folded into the weights, and the products are summed instead of the features.

        Args:
            token: (N, C) HQ token after the transformer.
            mask_feature: (N, 4h, 4w, C / 8), channels last.
            image_feature: (N, C / 8, 4h, 4w), or one row for all prompts.

        Returns:
            (N, 1, 4h, 4w).
        """
        weights = self.mlp(token)  # (N, C / 8)
        local = self.mask_fusion.dot(mask_feature, weights)
        if image_feature.shape[0] == 1:
            shared = weights @ image_feature[0].flatten(1)  # (N, 4h * 4w)
        else:
            shared = torch.bmm(weights[:, None], image_feature.flatten(2))[:, 0]
        logits: Tensor = local + shared.view_as(local)
        return logits


class HQMaskDecoder(nn.Module):
    """A SAM mask decoder (`trunk`) and an `HQHead` whose token rides along in its transformer.

    A `score_head` may come later; without it nothing about the masks is different.
    """

    def __init__(self, trunk: MaskDecoder, head: HQHead) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.score_head: ScoreHead | None = None

    def forward(
        self,
        inputs: DecoderInput,
        image_feature: Tensor,
        candidates: Sequence[int] = (0,),
        own_scores: bool = False,
    ) -> DecoderOutput:
        """SAM's candidates and the HQ mask from one transformer pass.

        Args:
            inputs: embedded prompts and images.
            image_feature: (B, C / 8, 4h, 4w) from `HQHead.image_feature`.
            candidates: SAM masks to compute; may be empty.
            own_scores: let the score head judge the masks that may be returned.

        Returns:
            SAM logits (N, M, 4h, 4w), HQ logits (N, 1, 4h, 4w), IoU (N, M), own scores (N, 2, M, 2) or None.

        Raises:
            ValueError: own scores without a score head, or without candidates.
        """
        trunk = self.trunk.run(inputs, self.head.token.weight)
        sam_logits, iou = self.trunk.masks(trunk, candidates)
        if inputs.image_index is not None:
            image_feature = image_feature.index_select(0, inputs.image_index)
        hq_logits = self.head.logits(trunk.extra_tokens[:, 0], trunk.mask_feature, image_feature)
        if not own_scores:
            return DecoderOutput(sam_logits, hq_logits, iou)
        if self.score_head is None or not candidates:
            raise ValueError("scores of its own need a model with a score head, and at least one candidate")
        scores = self.score_head(trunk, sam_logits, hq_logits, iou, candidates)
        return DecoderOutput(sam_logits, hq_logits, iou, scores)
