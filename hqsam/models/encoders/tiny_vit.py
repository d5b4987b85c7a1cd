"""Adapter: MobileSAM's TinyViT from timm, with the neck that MobileSAM adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hqsam.models.encoders.timm_backbones import build_tiny_vit, forget_attention_biases, set_drop_path
from hqsam.models.layers import LayerNorm2d
from hqsam.types import ImageFeatures


@dataclass(frozen=True, kw_only=True)
class TinyViTSpec:
    """Dimensions of a TinyViT encoder, stage by stage."""

    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    num_heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    window_sizes: tuple[int, int, int, int] = (7, 7, 14, 7)


class TinyViTEncoder(nn.Module):
    """Normalised images to MobileSAM's embedding and the early feature of Light HQ-SAM.

    The early feature is the output of the third stage's input downsampling.
    """

    def __init__(self, spec: TinyViTSpec, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size
        self.early_channels = spec.widths[2]
        self.backbone = build_tiny_vit(spec)
        self.neck = nn.Sequential(
            nn.Conv2d(spec.widths[3], 256, 1, bias=False),
            LayerNorm2d(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            LayerNorm2d(256),
        )

    def forward(self, images: Tensor) -> ImageFeatures:
        """(B, 3, S, S) normalised -> embedding (B, 256, S/16, S/16), early feature (B, widths[2], S/16, S/16)."""
        forget_attention_biases(self.backbone)
        stages = self.backbone.stages
        # Channels last suits the depthwise convolutions and spares the attention blocks, which want it, a copy each.
        x = images.contiguous(memory_format=torch.channels_last)
        x = stages[1](stages[0](self.backbone.patch_embed(x)))
        early = stages[2].downsample(x)
        x = stages[2].blocks(early.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return ImageFeatures(self.neck(stages[3](x)), early)

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: patches, each of the four stages, the neck. Layer-wise learning rates go by it."""
        parts = [self.backbone.patch_embed, *self.backbone.stages, self.neck]
        return [list(part.parameters()) for part in parts]

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth in training (`hqsam.models.drop_path`): 0 in the first block, `rate` in the last."""
        set_drop_path(self.backbone, rate)
