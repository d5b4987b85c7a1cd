"""Boxes around masks: XYXY, inclusive pixels, so an object one pixel wide has x0 == x1."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def mask_to_box(mask: NDArray[np.generic]) -> NDArray[np.float32] | None:
    """Tight box of the non-zero pixels.

    Args:
        mask: (H, W) bool or integer.

    Returns:
        (4,) float32 [x0, y0, x1, y1], inclusive, or None for an empty mask.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return None
    rows = np.flatnonzero(mask.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float32)


def masks_to_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of many masks.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, 4) float32 XYXY, inclusive; zeros for an empty mask.
    """
    columns, rows = masks.any(dim=1), masks.any(dim=2)  # (N, W), (N, H)
    x0, y0 = columns.to(torch.uint8).argmax(1), rows.to(torch.uint8).argmax(1)
    x1 = columns.shape[1] - 1 - columns.flip(1).to(torch.uint8).argmax(1)
    y1 = rows.shape[1] - 1 - rows.flip(1).to(torch.uint8).argmax(1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).to(torch.float32)
    return torch.where(columns.any(dim=1, keepdim=True), boxes, 0.0)
