"""Learned positions of a plain ViT, brought to another input size.

The absolute positions are a grid of vectors, one for each patch; the relative ones of a block with global attention are
a table over all distances between patches along an axis. Both belong to the input size of the training. Blocks with
windowed attention, and TinyViT as a whole, hold nothing that depends on the input size.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from hqsam.models import Sam

logger = logging.getLogger(__name__)

ABSOLUTE = "image_encoder.pos_embed"
PUBLISHED_GRID = 64
"""Patches a side that the published weights were trained with: 1024 / 16."""


def fit_positions(model: Sam, official: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Interpolate a file's positions where it was made for another input size than the model's.

    Args:
        model: what the tensors are meant for.
        official: official name -> tensor.
        source: where they come from, for the log.

    Returns:
        The same dictionary with other positions; unchanged where the sizes agree, there are no positions, or these
        contradict each other in shape, which the strict check after this reports.
    """
    fitted = dict(official)
    absolute = official.get(ABSOLUTE)
    if absolute is None or absolute.ndim != 4:
        return fitted
    old, new = absolute.shape[1], model.image_size // 16
    tables = _relative_names(model)
    known = [official[name] for name in tables if name in official]
    if old == new or absolute.shape[2] != old or any(t.ndim != 2 or t.shape[0] != 2 * old - 1 for t in known):
        return fitted
    fitted[ABSOLUTE] = resize_absolute(absolute, new)
    fitted.update({name: resize_relative(official[name], 2 * new - 1) for name in tables if name in official})
    level = logging.INFO if old == PUBLISHED_GRID else logging.WARNING
    sides = (16 * old, 16 * new)
    logger.log(level, "%s was made for an input of %d pixels; its positions are interpolated to %d", source, *sides)
    return fitted


def resize_absolute(positions: Tensor, grid: int) -> Tensor:
    """(1, g, g, C) positions of patches -> (1, grid, grid, C) float32: bicubic, antialiased when it shrinks."""
    channels_first = positions.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, (grid, grid), mode="bicubic", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def resize_relative(table: Tensor, length: int) -> Tensor:
    """(L, D) vectors of distances -> (length, D) float32: linear, the rule of SAM's own code for unequal sizes."""
    resized = F.interpolate(table.float().T[None], length, mode="linear", align_corners=False)
    return resized[0].T.contiguous()


def _relative_names(model: Sam) -> list[str]:
    blocks: tuple[int, ...] = getattr(model.image_encoder, "global_blocks", ())
    return [f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for block in blocks for axis in "hw"]
