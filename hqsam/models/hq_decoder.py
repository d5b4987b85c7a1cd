"""HQ-SAM's addition to SAM's mask decoder (Segment Anything in High Quality, section 3.2, figure 2).

Shape legend: B images, N prompts over all images, C = 256 channels, (h, w) the image embedding's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.layers import (
    MLP,
    LayerNorm2d,
    Upsample4x,
    conv3x3,
    conv3x3_dot,
    dot_kernel,
    gelu,
    taps3x3,
)
from hqsam.models.linear import is_plain_inference
from hqsam.models.mask_decoder import DecoderInput, MaskDecoder, ScoreFloor, mask_product
from hqsam.models.score import ScoreHead
from hqsam.types import DecoderOutput, ImageFeatures

HeadFeature = Literal["early", "final", "mask"]
"""What the HQ feature is the sum of: the encoder's early and final outputs, SAM's mask feature."""


_BAND = 8192
"""Positions whose hidden layer is in the cache: 2 MB."""


class MaskFusion(nn.Module):
    """Two 3x3 convolutions of SAM's mask feature, of which only the product with the token's weights is needed."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.norm = LayerNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)

    def dot(self, mask_feature: Tensor, weights: Tensor) -> Tensor:
        """(N, H, W, D) channels-last feature, (N, D) weights -> (N, 1, H, W)."""
        if mask_feature.device.type == "cpu" and is_plain_inference():
            return self._dot_in_bands(mask_feature, weights)
        hidden = F.gelu(self.norm.forward_last(conv3x3(self.conv1, mask_feature)))
        return conv3x3_dot(self.conv2, hidden, weights)

    def _dot_in_bands(self, mask_feature: Tensor, weights: Tensor) -> Tensor:
        """The same, band by band of rows: the hidden layer, 17 MB a prompt, never leaves the cache."""
        n, height, width, _ = mask_feature.shape
        kernel = dot_kernel(self.conv2, weights)
        rows = max(1, _BAND // max(1, n * width))
        parts = []
        for top in range(0, height, rows):
            end = min(top + rows, height)
            seen = mask_feature[:, max(top - 1, 0) : end + 1]
            if top == 0 or end == height:
                seen = F.pad(seen, (0, 0, 0, 0, int(top == 0), int(end == height)))
            hidden = F.conv2d(seen.permute(0, 3, 1, 2), self.conv1.weight, self.conv1.bias, padding=(0, 1))
            hidden = gelu(self.norm.forward_last(hidden.permute(0, 2, 3, 1)))
            parts.append(taps3x3(kernel, hidden))
        taps = torch.cat(parts, dim=2).view(n, 3, 3, height, width)
        total = taps.new_zeros((n, 1, height + 2, width + 2))
        for y in range(3):
            for x in range(3):
                total[:, 0, y : y + height, x : x + width] += taps[:, y, x]
        bias = 0.0 if self.conv2.bias is None else (weights @ self.conv2.bias).view(-1, 1, 1, 1)
        return total[:, :, 1:-1, 1:-1] + bias


class HQHead(nn.Module):
    """The learnable part: HQ output token, three-layer MLP and the global-local fusion.

    Args:
        early_channels: channels of the encoder's early feature.
        dim: channels of tokens and image embedding.
        features: what is fused; all of it is the published head. Nothing: the token's weights meet SAM's mask feature
            as it is.
    """

    def __init__(
        self, early_channels: int, dim: int = 256, features: Sequence[HeadFeature] = ("early", "final", "mask")
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.token = nn.Embedding(1, dim)
        self.mlp = MLP(dim, dim, dim // 8, 3)
        self.early_fusion = Upsample4x(early_channels, dim, dim // 8) if "early" in features else None
        self.final_fusion = Upsample4x(dim, dim // 4, dim // 8) if "final" in features else None
        self.mask_fusion = MaskFusion(dim // 8, dim // 4) if "mask" in features else None

    def image_feature(self, features: ImageFeatures) -> Tensor:
        """The part of the fused feature that depends on the image alone.

        Args:
            features: final embedding (B, C, h, w) and early feature (B, C', h, w).

        Returns:
            (B, C / 8, 4h, 4w); (B, 0, 4h, 4w) where neither is fused.
        """
        parts = []
        if self.final_fusion is not None:
            parts.append(self.final_fusion(features.image_embedding.permute(0, 2, 3, 1)))
        if self.early_fusion is not None:
            parts.append(self.early_fusion(features.early_feature.permute(0, 2, 3, 1)))
        if not parts:
            return no_image_feature(features)
        fused: Tensor = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return fused.permute(0, 3, 1, 2)

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
        if not self.features:
            return mask_product(weights[:, None], mask_feature)
        local = None if self.mask_fusion is None else self.mask_fusion.dot(mask_feature, weights)
        if local is not None and image_feature.shape[1] == 0:
            return local
        if image_feature.shape[0] == 1:
            shared = weights @ image_feature[0].flatten(1)  # (N, 4h * 4w)
        else:
            shared = torch.bmm(weights[:, None], image_feature.flatten(2))[:, 0]
        shared = shared.view(weights.shape[0], 1, *mask_feature.shape[1:3])
        logits: Tensor = shared if local is None else local + shared
        return logits


def no_image_feature(features: ImageFeatures) -> Tensor:
    """(B, 0, 4h, 4w): what a head has that uses the image only through SAM's decoder."""
    count, _, height, width = features.image_embedding.shape
    return features.image_embedding.new_zeros((count, 0, 4 * height, 4 * width))


class SamCopy(nn.Module):
    """Parts of SAM's decoder that are tuned apart from it, in the place of an HQ head (`hqsam.models.heads`)."""

    def start_from(self, trunk: MaskDecoder) -> None:
        """Begin as a copy of SAM's."""
        raise NotImplementedError

    def logits(self, trunk: MaskDecoder, inputs: DecoderInput) -> Tensor:
        """(N, 1, 4h, 4w) logits of the tuned single mask."""
        raise NotImplementedError


class HQMaskDecoder(nn.Module):
    """A SAM mask decoder (`trunk`) and a head: an `HQHead` whose token rides along in its transformer, or a copy.

    Args:
        trunk: SAM's decoder.
        head: from `hqsam.models.heads.build_head`; a copy begins as SAM's parts are now.
    """

    def __init__(self, trunk: MaskDecoder, head: HQHead | SamCopy) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.score_head: ScoreHead | None = None
        self.start_head()

    def start_head(self) -> None:
        """Let a tuned copy of SAM's parts begin as these are now; an HQ head begins with random weights."""
        if isinstance(self.head, SamCopy):
            self.head.start_from(self.trunk)

    def image_feature(self, features: ImageFeatures) -> Tensor:
        """See `HQHead.image_feature`; (B, 0, 4h, 4w) of a copy."""
        return no_image_feature(features) if isinstance(self.head, SamCopy) else self.head.image_feature(features)

    def forward(
        self,
        inputs: DecoderInput,
        image_feature: Tensor,
        candidates: Sequence[int] = (0,),
        own_scores: bool = False,
        floor: ScoreFloor | None = None,
    ) -> DecoderOutput:
        """SAM's candidates and the HQ mask, of an HQ head from one transformer pass.

        Args:
            inputs: embedded prompts and images.
            image_feature: (B, C / 8, 4h, 4w) from `image_feature`.
            candidates: SAM masks to compute; may be empty.
            own_scores: let the score head judge the masks that may be returned.
            floor: leave out the prompts that score less. For a copy this spares nothing: SAM's scores are of another
                pass.

        Returns:
            SAM logits (N, M, 4h, 4w), HQ logits (N, 1, 4h, 4w), IoU (N, M), own scores (N, 2, M, 2) or None; with a
            floor, of the prompts that are left.

        Raises:
            ValueError: own scores without a score head, or without candidates.
        """
        if isinstance(self.head, SamCopy):
            return self._with_copy(self.head, inputs, candidates, floor)
        trunk = self.trunk.run(inputs, self.head.token.weight, floor=floor)
        sam_logits, iou = self.trunk.masks(trunk, candidates)
        if inputs.image_index is not None:
            index = inputs.image_index if trunk.rows is None else inputs.image_index[trunk.rows]
            image_feature = image_feature.index_select(0, index)
        hq_logits = self.head.logits(trunk.extra_tokens[:, 0], trunk.mask_feature, image_feature)
        if not own_scores:
            return DecoderOutput(sam_logits, hq_logits, iou, rows=trunk.rows)
        if self.score_head is None or not candidates:
            raise ValueError("scores of its own need a model with a score head, and at least one candidate")
        scores = self.score_head(trunk, sam_logits, hq_logits, iou, candidates)
        return DecoderOutput(sam_logits, hq_logits, iou, scores, trunk.rows)

    def _with_copy(
        self, head: SamCopy, inputs: DecoderInput, candidates: Sequence[int], floor: ScoreFloor | None
    ) -> DecoderOutput:
        """SAM's own masks from a pass of its own, if they are asked for: the copy's token would change them."""
        logits = head.logits(self.trunk, inputs)
        if not candidates:
            return DecoderOutput(logits[:, :0], logits, logits.new_zeros((len(logits), 0)))
        sam: DecoderOutput = self.trunk(inputs, candidates, floor)
        kept = logits if sam.rows is None else logits[sam.rows]
        return DecoderOutput(sam.sam_logits, kept, sam.iou, rows=sam.rows)
