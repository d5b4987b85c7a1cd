"""SAM's mask decoder, cut so that further output tokens can ride along (Segment Anything, appendix A).

Shape legend: B images, N prompts over all images, K prompt tokens, E extra output tokens, M candidates asked for,
C = 256 channels, (h, w) the image embedding's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.layers import MLP, Upsample4x, gelu
from hqsam.models.transformer import ImageTokens, TwoWayTransformer
from hqsam.types import DecoderOutput

NUM_CANDIDATES = 4
"""Candidate 0 answers clear prompts; 1-3 are the three of ambiguous ones (`multimask_output=True`)."""


class DecoderInput(NamedTuple):
    """Embedded prompts and the images that they refer to."""

    image_embedding: Tensor  # (B, C, h, w)
    image_pe: Tensor  # (1, C, h, w)
    prompt_tokens: Tensor  # (N, K, C)
    dense: Tensor  # (N, C, h, w), or (1, C, 1, 1) where no prompt has a mask
    keep: Tensor | None = None  # (N, K) bool, False for batch padding
    image_index: Tensor | None = None  # (N,) int64; None when B is 1
    known: ImageTokens | None = None  # from `MaskDecoder.prepare`, for prompts none of which has a mask
    cells: tuple[int, int] | None = None  # rows and columns of the grid that masks are made of; None for all


class ScoreFloor(NamedTuple):
    """Which prompts get masks: those whose best predicted IoU is above a number. Scores come before masks."""

    iou: float
    candidates: Sequence[int]  # whose scores count


class TrunkOutput(NamedTuple):
    """What every output token needs to make its mask."""

    mask_feature: Tensor  # (N, 4h, 4w, C / 8), channels last
    iou_token: Tensor  # (N, C)
    mask_tokens: Tensor  # (N, 4, C)
    extra_tokens: Tensor  # (N, E, C)
    rows: Tensor | None = None  # (N,) int64, the prompts that are left where there was a `ScoreFloor`


def _as_tokens(feature: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return feature.flatten(2).transpose(1, 2)


def _cut(image: Tensor, cells: tuple[int, int] | None) -> Tensor:
    """The top-left part of (N, h, w, C)."""
    return image if cells is None else image[:, : cells[0], : cells[1]]


def mask_product(weights: Tensor, feature: Tensor) -> Tensor:
    """Masks as products of a feature with weights: (N, M, D) and (N, H, W, D), channels last, -> (N, M, H, W)."""
    n, height, width, channels = feature.shape
    logits = weights @ feature.view(n, height * width, channels).transpose(1, 2)
    return logits.view(n, weights.shape[1], height, width)


class MaskDecoder(nn.Module):
    """SAM's decoder: one transformer, one upscaled mask feature, a small network per output token."""

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        self.dim = dim
        self.transformer = TwoWayTransformer(dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(NUM_CANDIDATES, dim)
        self.upscaling = Upsample4x(dim, dim // 4, dim // 8)
        self.hypernetworks = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(NUM_CANDIDATES))
        self.iou_head = MLP(dim, dim, NUM_CANDIDATES, 3)

    def prepare(self, image_embedding: Tensor, image_pe: Tensor, no_mask: Tensor) -> ImageTokens:
        """What depends on images alone, for prompts without masks.

        Args:
            image_embedding: (B, C, h, w).
            image_pe: (1, C, h, w).
            no_mask: (1, C, 1, 1).
        """
        image = _as_tokens(image_embedding + no_mask).contiguous()
        return self.transformer.prepare(image, _as_tokens(image_pe).contiguous())

    def run(
        self,
        inputs: DecoderInput,
        extra_tokens: Tensor | None = None,
        *,
        single_token: Tensor | None = None,
        floor: ScoreFloor | None = None,
    ) -> TrunkOutput:
        """Everything up to the masks.

        Args:
            inputs: embedded prompts and images.
            extra_tokens: (E, C) further output tokens; they join SAM's own in every attention. Without them this is
                plain SAM exactly.
            single_token: (1, C) in the place of SAM's token of the single mask.
            floor: leave out the prompts that score less, before the larger half of the work.

        Returns:
            The mask feature and the output tokens after the transformer.
        """
        mask_tokens = self.mask_tokens.weight
        if single_token is not None:
            mask_tokens = torch.cat([single_token.to(mask_tokens.dtype), mask_tokens[1:]])
        output_tokens = torch.cat([self.iou_token.weight, mask_tokens])
        if extra_tokens is not None:
            output_tokens = torch.cat([output_tokens, extra_tokens.to(output_tokens.dtype)])
        count = inputs.prompt_tokens.shape[0]
        num_outputs = output_tokens.shape[0]
        tokens = torch.cat([output_tokens.expand(count, -1, -1), inputs.prompt_tokens], dim=1)
        keep = None if inputs.keep is None else F.pad(inputs.keep, (num_outputs, 0), value=True)

        index, grid = inputs.image_index, inputs.image_embedding.shape[-2:]
        if inputs.known is not None:
            image, positions = inputs.known.image, inputs.known.positions
        else:
            image = inputs.image_embedding
            if inputs.dense.shape[0] > 1 and index is not None:  # masks make the image tokens differ by prompt at once
                image, index = image.index_select(0, index), None
            image, positions = _as_tokens(image + inputs.dense), _as_tokens(inputs.image_pe)
        tokens, image = self.transformer(tokens, image, positions, keep=keep, image_index=index, known=inputs.known)
        rows = None
        if floor is not None:
            scores = self.iou_head(tokens[:, 0])
            best = torch.stack([scores[:, c] for c in floor.candidates]).amax(dim=0)
            rows = (best > floor.iou).nonzero()[:, 0]
            if len(rows) < count:
                tokens, image = tokens[rows], image[rows]
        return TrunkOutput(
            gelu(self.upscaling(_cut(image.unflatten(1, grid), inputs.cells))),
            tokens[:, 0],
            tokens[:, 1 : 1 + NUM_CANDIDATES],
            tokens[:, 1 + NUM_CANDIDATES : num_outputs],
            rows,
        )

    def masks(self, trunk: TrunkOutput, candidates: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mask logits and predicted IoU of the candidates asked for.

        Returns:
            logits (N, M, 4h, 4w) and iou (N, M).
        """
        feature = trunk.mask_feature
        n, height, width, _ = feature.shape
        scores: Tensor = self.iou_head(trunk.iou_token)
        if not candidates:
            return feature.new_zeros((n, 0, height, width)), scores[:, :0]
        iou = torch.stack([scores[:, c] for c in candidates], dim=1)  # a list as an index would wait for a GPU
        weights = torch.stack([self.hypernetworks[c](trunk.mask_tokens[:, c]) for c in candidates], dim=1)
        return mask_product(weights, feature), iou

    def forward(
        self, inputs: DecoderInput, candidates: Sequence[int] = (0,), floor: ScoreFloor | None = None
    ) -> DecoderOutput:
        """Plain SAM: masks of the candidates, no HQ logits."""
        trunk = self.run(inputs, floor=floor)
        logits, iou = self.masks(trunk, candidates)
        return DecoderOutput(logits, None, iou, rows=trunk.rows)
