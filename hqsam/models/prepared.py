"""What the decoders compute of images alone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hqsam.models.transformer import ImageTokens


class PreparedImages(NamedTuple):
    """Work on B images that is the same for all their prompts, from `Sam.prepare`. What is None is done when needed."""

    hq_features: Tensor | None = None  # (B, C / 8, 4h, 4w), the image's part of the HQ feature
    tokens: ImageTokens | None = None  # what the transformer's first block computes for prompts without masks
