"""Frozen image encoders behind one interface: `forward(images) -> ImageFeatures`, `img_size`, `early_channels`.

A new backbone is one adapter file and one row in `build_encoder`.
"""

from __future__ import annotations

from torch import nn

from hqsam.models.encoders.sam_vit import SamViTEncoder, SamViTSpec
from hqsam.models.encoders.tiny_vit import TinyViTEncoder, TinyViTSpec

EncoderSpec = SamViTSpec | TinyViTSpec


def build_encoder(spec: EncoderSpec, image_size: int) -> nn.Module:
    """Build the encoder that a spec describes, with random weights."""
    if isinstance(spec, SamViTSpec):
        return SamViTEncoder(spec, image_size)
    return TinyViTEncoder(spec, image_size)


__all__ = ["EncoderSpec", "SamViTEncoder", "SamViTSpec", "TinyViTEncoder", "TinyViTSpec", "build_encoder"]
