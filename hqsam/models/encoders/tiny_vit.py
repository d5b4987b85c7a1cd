"""Adapter: MobileSAM's TinyViT from timm, with the neck that MobileSAM adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hqsam.models.encoders.in_parts import suits_parts
from hqsam.models.encoders.timm_backbones import build_tiny_vit, forget_attention_biases, set_drop_path
from hqsam.models.encoders.tiny_in_parts import run_conv_block, run_window_block
from hqsam.models.heap import let_heap_keep
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

    Attributes:
        in_parts: compute blocks band by band (`hqsam.models.encoders.tiny_in_parts`), or as timm does. None chooses
            as `SamViTEncoder` does.
    """

    def __init__(self, spec: TinyViTSpec, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size
        self.early_channels = spec.widths[2]
        self.in_parts: bool | None = None
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
        if suits_parts(self, images) if self.in_parts is None else self.in_parts:
            return self._forward_in_parts(images)
        stages = self.backbone.stages
        # Channels last suits the depthwise convolutions and spares the attention blocks, which want it, a copy each.
        x = images.contiguous(memory_format=torch.channels_last)
        x = stages[1](stages[0](self.backbone.patch_embed(x)))
        early = stages[2].downsample(x)
        x = stages[2].blocks(early.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return ImageFeatures(self.neck(stages[3](x)), early)

    def _forward_in_parts(self, images: Tensor) -> ImageFeatures:
        let_heap_keep()
        first, *others = self.backbone.stages
        finals, earlies = [], []
        for image in images:
            x = self.backbone.patch_embed(image[None].contiguous(memory_format=torch.channels_last))
            x = x[0].permute(1, 2, 0).contiguous()
            for block in first.blocks:
                x = run_conv_block(block, x, residual=True)
            for number, stage in enumerate(others):
                x = run_conv_block(stage.downsample, x, residual=False)
                if number == 1:
                    earlies.append(x.permute(2, 0, 1).clone())
                for block in stage.blocks:
                    x = run_window_block(block, x)
            finals.append(x.permute(2, 0, 1))
        return ImageFeatures(self.neck(torch.stack(finals)), torch.stack(earlies))

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: patches, each of the four stages, the neck. Layer-wise learning rates go by it."""
        parts = [self.backbone.patch_embed, *self.backbone.stages, self.neck]
        return [list(part.parameters()) for part in parts]

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth in training (`hqsam.models.drop_path`): 0 in the first block, `rate` in the last."""
        set_drop_path(self.backbone, rate)
