"""Frozen image encoders behind one interface: `forward(images) -> ImageFeatures`, `img_size`, `early_channels`.

A new backbone is one adapter file and one row in `build_encoder`.
"""

from __future__ import annotations

from torch import nn

from hqsam.models.encoders.sam_vit import SamViTEncoder, SamViTSpec
from hqsam.models.encoders.tiny_vit import TinyViTEncoder, TinyViTSpec

EncoderSpec = SamViTSpec | TinyViTSpec

STRIDE = 16
"""Input pixels a side of one position of the image embedding, in every encoder."""


def build_encoder(spec: EncoderSpec, image_size: int) -> nn.Module:
    """Build the encoder that a spec describes, with random weights.

    Args:
        spec: its dimensions.
        image_size: side of the square input in pixels.

    Raises:
        ValueError: the input is not a positive multiple of 16.
    """
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < STRIDE or image_size % STRIDE:
        raise ValueError(f"image_size must be a positive multiple of {STRIDE} pixels, got {image_size!r}")
    if isinstance(spec, SamViTSpec):
        return SamViTEncoder(spec, image_size)
    return TinyViTEncoder(spec, image_size)


__all__ = ["EncoderSpec", "SamViTEncoder", "SamViTSpec", "TinyViTEncoder", "TinyViTSpec", "build_encoder"]
