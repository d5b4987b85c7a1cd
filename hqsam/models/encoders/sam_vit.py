"""SAM's plain ViT (ViT-B, L, H): timm's modules and weights; on a CPU its blocks are computed part by part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hqsam.models.encoders.in_parts import run_block, suits_parts
from hqsam.models.encoders.timm_backbones import build_sam_vit, set_drop_path
from hqsam.models.heap import let_heap_keep
from hqsam.types import ImageFeatures


@dataclass(frozen=True, kw_only=True)
class SamViTSpec:
    """Dimensions of a plain ViT encoder; patch 16, decomposed relative position, 256-channel neck."""

    width: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    window_size: int = 14


class SamViTEncoder(nn.Module):
    """Normalised images to SAM's final embedding and the early feature of HQ-SAM.

    The early feature is the output of the first global-attention block (HQ-SAM section 3.2).

    Attributes:
        in_parts: compute blocks part by part (`hqsam.models.encoders.in_parts`), or as timm does. None chooses: in
            parts on a CPU, unless there is a gradient or the model is being traced, compiled or exported.
    """

    def __init__(self, spec: SamViTSpec, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size
        self.global_blocks = spec.global_blocks
        self.early_channels = spec.width
        self.in_parts: bool | None = None
        self._early_block = spec.global_blocks[0]
        self.backbone = build_sam_vit(spec, image_size)

    def forward(self, images: Tensor) -> ImageFeatures:
        """(B, 3, S, S) normalised -> embedding (B, 256, S/16, S/16), early feature (B, width, S/16, S/16)."""
        if suits_parts(self, images) if self.in_parts is None else self.in_parts:
            return self._forward_in_parts(images)
        embedding, (early,) = self.backbone.forward_intermediates(images, indices=[self._early_block])
        return ImageFeatures(embedding, early)

    def _forward_in_parts(self, images: Tensor) -> ImageFeatures:
        let_heap_keep()
        net = self.backbone
        x = (net.patch_embed(images) + net.pos_embed).contiguous()  # (B, h, w, C)
        early = torch.empty_like(x)
        for image, kept in zip(x, early, strict=True):
            for number, block in enumerate(net.blocks):
                run_block(block, image)
                if number == self._early_block:
                    kept.copy_(image)
        return ImageFeatures(net.neck(x.permute(0, 3, 1, 2)), early.permute(0, 3, 1, 2))

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: patches and positions, each block, the neck. Layer-wise learning rates go by it."""
        backbone = self.backbone
        stem = [*backbone.patch_embed.parameters(), *([] if backbone.pos_embed is None else [backbone.pos_embed])]
        return [stem, *(list(block.parameters()) for block in backbone.blocks), list(backbone.neck.parameters())]

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth in training (`hqsam.models.drop_path`): 0 in the first block, `rate` in the last."""
        set_drop_path(self.backbone, rate)
