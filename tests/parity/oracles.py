"""Reference models with the same numbers as ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from hqsam.checkpoints import to_memory_names
from hqsam.models import Sam, SamViTSpec, TinyViTSpec
from hqsam.registry import ModelSpec, build_model
from tests.helpers import fill_parameters, require_oracle


def build_pair(spec: ModelSpec, seed: int = 0) -> tuple[nn.Module, Sam]:
    """The reference implementation and ours for one spec, with equal deterministic weights, in eval mode."""
    in_hq_package = spec.hq or isinstance(spec.encoder, TinyViTSpec)
    package = require_oracle("segment_anything_hq" if in_hq_package else "segment_anything")
    modeling = __import__(f"{package.__name__}.modeling", fromlist=["Sam"])
    prompt = modeling.PromptEncoder(
        embed_dim=256,
        image_embedding_size=(spec.image_size // 16,) * 2,
        input_image_size=(spec.image_size,) * 2,
        mask_in_chans=16,
    )
    oracle = modeling.Sam(_encoder(modeling, spec), prompt, _decoder(modeling, spec))
    fill_parameters(oracle, seed).eval()
    ours = build_model(spec)
    ours.load_state_dict(to_memory_names(oracle.state_dict(), hq=spec.hq))
    return oracle.eval(), ours.eval()


def _encoder(modeling: Any, spec: ModelSpec) -> nn.Module:
    encoder = spec.encoder
    if isinstance(encoder, SamViTSpec):
        return modeling.ImageEncoderViT(
            depth=encoder.depth,
            embed_dim=encoder.width,
            img_size=spec.image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=encoder.num_heads,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=encoder.global_blocks,
            window_size=encoder.window_size,
            out_chans=256,
        )
    tiny = modeling.TinyViT(
        img_size=spec.image_size,
        num_classes=1,
        embed_dims=list(encoder.widths),
        depths=list(encoder.depths),
        num_heads=list(encoder.num_heads),
        window_sizes=list(encoder.window_sizes),
        drop_path_rate=0.0,
    )
    # The reference gathers attention biases when eval() is called: keep it from using those of the first weights.
    tiny.train()
    return tiny


def _decoder(modeling: Any, spec: ModelSpec) -> nn.Module:
    options: dict[str, Any] = {
        "num_multimask_outputs": 3,
        "transformer": modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
        "transformer_dim": 256,
        "iou_head_depth": 3,
        "iou_head_hidden_dim": 256,
    }
    if not spec.hq:
        return modeling.MaskDecoder(**options)
    encoder = spec.encoder
    early = encoder.width if isinstance(encoder, SamViTSpec) else encoder.widths[2]
    return modeling.MaskDecoderHQ(vit_dim=early, **options)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the range of `a`."""
    return float((a - b).abs().max() / (a.max() - a.min()))
