"""Boundary IoU: the overlap of the two inner boundary rings (Cheng et al., arXiv 2103.16562, section 4).

The ring of a mask is the mask minus its erosion by d steps of a 3x3 square, with d = max(1, round(ratio * diagonal of
the image)). Outside the image counts as background, so an object cut off by the image has its boundary there too.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.iou import check_mask, check_pair, mask_iou

DILATION_RATIO = 0.02
"""Ring width as a share of the image diagonal: mBIoU and AP_B of the HQ-SAM paper; AP_B-strict takes 0.01."""


def ring_width(image_hw: tuple[int, int], dilation_ratio: float = DILATION_RATIO) -> int:
    """Width d of the boundary ring in pixels, at least 1.

    Raises:
        ValueError: the ratio is not a positive number.
    """
    if not (dilation_ratio > 0 and math.isfinite(dilation_ratio)):
        raise ValueError(f"dilation_ratio must be a positive number, got {dilation_ratio}; the paper uses 0.02")
    return max(1, round(dilation_ratio * math.hypot(*image_hw)))


def boundary_region(mask: NDArray[np.bool_], dilation_ratio: float = DILATION_RATIO) -> NDArray[np.bool_]:
    """The pixels of a mask within the ring width of its outside (chessboard distance).

    Args:
        mask: (H, W) bool.
        dilation_ratio: ring width as a share of the image diagonal.

    Returns:
        (H, W) bool, a subset of `mask`.

    Raises:
        ValueError: the mask is no (H, W) bool array, or the ratio is not positive.
    """
    import cv2

    check_mask("mask", mask)
    width = ring_width(mask.shape, dilation_ratio)
    ring = mask.copy()
    columns = np.flatnonzero(mask.any(axis=0))
    if columns.size == 0:
        return ring
    rows = np.flatnonzero(mask.any(axis=1))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # d erosions by a 3x3 square are one erosion by a square of side 2d + 1, which OpenCV runs as two passes. All that
    # surrounds the object's box is background, as is the padding, so the box alone is enough.
    square = np.ones((2 * width + 1, 2 * width + 1), dtype=np.uint8)
    inside = np.ascontiguousarray(mask[window]).view(np.uint8)
    core = cv2.erode(inside, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    ring[window] &= core == 0
    return ring


def boundary_iou(pred: NDArray[np.bool_], target: NDArray[np.bool_], dilation_ratio: float = DILATION_RATIO) -> float:
    """Intersection over union of the boundary rings alone (the HQ-SAM paper's mBIoU is its mean).

    Args:
        pred: (H, W) bool.
        target: (H, W) bool.
        dilation_ratio: ring width as a share of the image diagonal.

    Returns:
        A number in [0, 1]. Two empty masks: 1.0. One empty mask: 0.0.

    Raises:
        ValueError: another dtype or number of dimensions, two different shapes, or a ratio that is not positive.
    """
    check_pair(pred, target)
    return mask_iou(boundary_region(pred, dilation_ratio), boundary_region(target, dilation_ratio))
