"""Intersection over union of binary masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mask_iou(pred: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """Intersection over union.

    Args:
        pred: (H, W) bool.
        target: (H, W) bool.

    Returns:
        A number in [0, 1]. Two empty masks agree: 1.0. One empty mask: 0.0.

    Raises:
        ValueError: another dtype or number of dimensions, or two different shapes.
    """
    check_pair(pred, target)
    union = np.count_nonzero(pred | target)
    return np.count_nonzero(pred & target) / union if union else 1.0


def check_mask(name: str, mask: NDArray[np.bool_]) -> None:
    """Refuse anything but an (H, W) bool array: 0/255 taken for a mask has cost others whole evaluations.

    Raises:
        ValueError: `mask` is something else; the message uses `name`.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2:
        received = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"{name} must be an (H, W) bool array, got {received}; threshold it first")


def check_pair(pred: NDArray[np.bool_], target: NDArray[np.bool_]) -> None:
    """Refuse two masks that are no (H, W) bool arrays of one shape.

    Raises:
        ValueError: they are not.
    """
    check_mask("pred", pred)
    check_mask("target", target)
    if pred.shape != target.shape:
        raise ValueError(f"pred and target must have the same shape, got {pred.shape} and {target.shape}")
