"""The only file that touches timm: builds its backbones with the settings that SAM's weights were trained with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from hqsam.models.drop_path import DropPath
from hqsam.models.linear import replace_linear

if TYPE_CHECKING:
    from timm.models.tiny_vit import TinyVit
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    from hqsam.models.encoders.sam_vit import SamViTSpec
    from hqsam.models.encoders.tiny_vit import TinyViTSpec


def build_sam_vit(spec: SamViTSpec, image_size: int) -> VisionTransformerSAM:
    """timm's plain ViT for SAM, with its neck and without a classifier."""
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    backbone = VisionTransformerSAM(
        img_size=image_size,
        patch_size=16,
        num_classes=0,
        embed_dim=spec.width,
        depth=spec.depth,
        num_heads=spec.num_heads,
        global_attn_indexes=spec.global_blocks,
        window_size=spec.window_size,
        use_rel_pos=True,
        neck_chans=256,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # timm's default is 1e-5
    )
    backbone.head = nn.Identity()
    replace_linear(backbone)
    return backbone


def build_tiny_vit(spec: TinyViTSpec) -> TinyVit:
    """timm's TinyViT as MobileSAM uses it: the last stage keeps its resolution, no classifier."""
    from timm.models.tiny_vit import TinyVit

    # By class and not by name: importing other SAM packages replaces timm's registered `tiny_vit_*` functions.
    backbone = TinyVit(
        num_classes=0,
        embed_dims=spec.widths,
        depths=spec.depths,
        num_heads=spec.num_heads,
        window_sizes=spec.window_sizes,
        drop_path_rate=0.0,
    )
    backbone.head = nn.Identity()
    replace_linear(backbone)
    backbone.stages[3].downsample.conv2.conv.stride = (1, 1)
    return backbone


_BRANCHES = ("drop_path", "drop_path1", "drop_path2")


def set_drop_path(backbone: nn.Module, rate: float) -> None:
    """Let residual branches be left out, with a chance that rises from 0 in the first block to `rate` in the last.

    timm's own would draw from torch's global generator, and differently for every way to spread images over processes.
    """
    blocks = [module for module in backbone.modules() if any(hasattr(module, name) for name in _BRANCHES)]
    for number, block in enumerate(blocks):
        for name in _BRANCHES:
            if hasattr(block, name):
                setattr(block, name, DropPath(rate * number / max(1, len(blocks) - 1)))


def forget_attention_biases(backbone: nn.Module) -> None:
    """Drop what timm's TinyViT keeps of its attention biases in eval mode: it goes stale when weights change."""
    for module in backbone.modules():
        cache = getattr(module, "attention_bias_cache", None)
        if cache is not None:
            cache.clear()
