"""SAM's prompt encoder: points, box corners and masks become tokens and a dense map (Segment Anything, appendix A).

Shape legend: N prompts, K tokens per prompt, C = 256 channels, (h, w) the image embedding's grid, S input size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.layers import LayerNorm2d
from hqsam.types import NEGATIVE, PAD, Prompts


class PositionEncoding(nn.Module):
    """Random Fourier features of positions in [0, 1]^2 (Tancik et al. 2020, as used by SAM)."""

    frequencies: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, channels // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """(..., 2) xy in [0, 1] -> (..., C), at least in float32: half precision cannot tell pixels apart."""
        dtype = torch.promote_types(self.frequencies.dtype, torch.float32)
        angles = 2 * math.pi * ((2 * positions.to(dtype) - 1) @ self.frequencies.to(dtype))
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PositionEncoding:
        """Follow the model to another device but never below float32."""
        exact = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frequencies.is_floating_point() and self.frequencies.element_size() < exact.element_size() <= 4:
            self.frequencies = exact.to(self.frequencies.device)
        return self


class PromptEncoder(nn.Module):
    """Turn prompts into sparse tokens (N, K, C) and a dense map that is added to the image embedding.

    Args:
        dim: channels of the tokens.
        image_size: side S of the model's square input in pixels; a multiple of 16.
        mask_channels: hidden channels of the mask downscaling.
    """

    def __init__(self, dim: int = 256, image_size: int = 1024, mask_channels: int = 16) -> None:
        super().__init__()
        self.dim = dim
        self.image_size = image_size
        self.grid_size = image_size // 16
        self.positions = PositionEncoding(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point = nn.Embedding(1, dim)
        self.no_mask = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, stride=2),
            LayerNorm2d(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, stride=2),
            LayerNorm2d(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, dim, 1),
        )

    @property
    def mask_input_size(self) -> tuple[int, int]:
        """Size (height, width) of mask prompts: four times the image embedding's grid."""
        return 4 * self.grid_size, 4 * self.grid_size

    def get_dense_pe(self) -> Tensor:
        """Positions of the image embedding's grid: (1, C, h, w)."""
        steps = torch.arange(self.grid_size, device=self.positions.frequencies.device, dtype=torch.float32)
        centres = (steps + 0.5) / self.grid_size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        encoded: Tensor = self.positions(torch.stack([x, y], dim=-1))
        return encoded.permute(2, 0, 1)[None].to(self.no_mask.weight.dtype)

    def embed_tokens(self, coords: Tensor, kinds: Tensor) -> Tensor:
        """Encode points and box corners.

        Args:
            coords: (N, K, 2) xy in model-input pixels; a pixel's centre is at +0.5.
            kinds: (N, K) int64, see `hqsam.types`.

        Returns:
            (N, K, C): position plus the vector of its kind; "not a point" has no position, padding is zero.
        """
        dtype = self.no_mask.weight.dtype
        positions = self.positions((coords + 0.5) / self.image_size).to(dtype)
        # Rows in the order of the kinds: padding -2, not a point -1, then 0 ... 3.
        padding = torch.zeros_like(self.not_a_point.weight)
        points = [embedding.weight for embedding in self.point_embeddings if isinstance(embedding, nn.Embedding)]
        table = torch.cat([padding, self.not_a_point.weight, *points])
        return torch.where((kinds >= NEGATIVE)[..., None], positions, 0.0) + F.embedding(kinds - PAD, table)

    def embed_dense(self, prompts: Prompts) -> Tensor:
        """The map that is added to the image embedding.

        Returns:
            (N, C, h, w) where prompts carry masks, else (1, C, 1, 1), the same for all.
        """
        nothing = self.no_mask.weight.view(1, -1, 1, 1)
        if prompts.masks is None:
            return nothing
        embedded: Tensor = self.mask_downscaling(prompts.masks.to(nothing.dtype))
        if prompts.has_mask is None:
            return embedded
        return torch.where(prompts.has_mask[:, None, None, None], embedded, nothing)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """SAM's own call (drop-in): embed prompts that were given in parts.

        Args:
            points: (N, K, 2) xy in model-input pixels and (N, K) labels, or None.
            boxes: (N, 4) XYXY in model-input pixels, or None.
            masks: (N, 1, 4h, 4w) logits, or None.

        Returns:
            sparse (N, K', C) and dense (N, C, h, w) embeddings.
        """
        coords, labels = points if points is not None else (None, None)
        prompts = Prompts.from_parts(coords, labels, boxes, masks)
        device = self.no_mask.weight.device
        sparse = self.embed_tokens(prompts.coords.to(device), prompts.kinds.to(device))
        dense = self.embed_dense(prompts)
        return sparse, dense.expand(len(prompts), -1, self.grid_size, self.grid_size)
