"""From mask logits to a thin boundary map: arrays in, arrays out (Segment Anything, appendix D.2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatMap = NDArray[np.float32]

_REACH = 3
"""Pixels around a mask's box that the gradient along its outline depends on, and one to spare."""
_RIDGE_SIGMA = 2.0
"""Smoothing, in pixels, under which the direction of an edge is found."""
_SLACK = 1.01
"""A neighbour suppresses a pixel if it is larger by more than this factor, so that rounding breaks no plateau."""


class Outline(NamedTuple):
    """What one mask says about boundaries, at the pixels of its own alone."""

    box: tuple[int, int, int, int]  # XYXY, inclusive pixels
    pixels: NDArray[np.int64]  # (P,) positions in the flattened image
    strength: FloatMap  # (P,) gradient of the probability


def mask_outline(logits: FloatMap, threshold: float = 0.0) -> Outline | None:
    """Gradient of a mask's probability, at the pixels on both sides of its outline.

    The gradient is Sobel's, of the sigmoid of the logits, in units of probability per pixel times 8. The image's border
    is no outline.

    Args:
        logits: (H, W) at the size of the image.
        threshold: logits above it are inside.

    Returns:
        The outline; None for a mask without a pixel.
    """
    import cv2

    inside = logits > threshold
    columns, rows = np.flatnonzero(inside.any(axis=0)), np.flatnonzero(inside.any(axis=1))
    if not columns.size:
        return None
    box = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
    height, width = logits.shape
    x0, y0 = max(box[0] - _REACH, 0), max(box[1] - _REACH, 0)
    window = np.s_[y0 : min(box[3] + _REACH + 1, height), x0 : min(box[2] + _REACH + 1, width)]
    probability = 1 / (1 + np.exp(-np.clip(logits[window], -30, 30)))
    slopes = [cv2.Sobel(probability, cv2.CV_32F, *axis, borderType=cv2.BORDER_REPLICATE) for axis in ((1, 0), (0, 1))]
    part = inside[window].astype(np.uint8)
    square = np.ones((3, 3), dtype=np.uint8)
    y, x = np.nonzero(cv2.dilate(part, square) != cv2.erode(part, square))
    strength: FloatMap = np.hypot(slopes[0][y, x], slopes[1][y, x]).astype(np.float32)
    return Outline(box, (y + y0) * width + x + x0, strength)


def join_outlines(outlines: list[Outline], hw: tuple[int, int], sigma: float) -> FloatMap:
    """The largest strength at every pixel, smoothed and stretched to [0, 1].

    Args:
        outlines: of the masks that are wanted.
        hw: (H, W) of the image.
        sigma: of the Gaussian, in pixels; 0 does not smooth.

    Returns:
        (H, W) float32; all zero where there is no outline.
    """
    import cv2

    joined = np.zeros(hw, dtype=np.float32)
    flat = joined.reshape(-1)
    for outline in outlines:
        flat[outline.pixels] = np.maximum(flat[outline.pixels], outline.strength)
    if sigma > 0:
        joined = cv2.GaussianBlur(joined, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE).astype(np.float32)
    low, high = float(joined.min()), float(joined.max())
    stretched: FloatMap = (joined - low) / (high - low) if high > low else np.zeros_like(joined)
    return stretched


def thin_edges(edges: FloatMap, border: int = 5) -> FloatMap:
    """Keep the pixels that no neighbour across the edge exceeds; the others become 0.

    Across is the direction in which the smoothed map bends most, up or down (the eigenvector of the larger eigenvalue
    of its second derivatives, by magnitude); the two neighbours one pixel away are interpolated bilinearly. This is the
    suppression of Canny's detector for maps that are strong on edges, as boundary detectors use it (Dollar, Zitnick,
    PAMI 2015). Masks often end a pixel or two before the image does; as there, values fade towards its border.

    Args:
        edges: (H, W) in [0, 1], not thin.
        border: pixels over which values fade linearly to 0 at the outermost one; 0 leaves them.

    Returns:
        (H, W) float32 in [0, 1].
    """
    import cv2

    smooth = cv2.GaussianBlur(edges, (0, 0), _RIDGE_SIGMA, borderType=cv2.BORDER_REPLICATE)
    xx, yy, xy = (
        cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3, borderType=cv2.BORDER_REPLICATE)
        for order in ((2, 0), (0, 2), (1, 1))
    )
    # Half of the angle is the eigenvector of the upper eigenvalue, the other one is at right angles; their sum says
    # which is larger. Sobel's second derivatives are all four times too large, which changes no angle.
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.where(xx + yy < 0, np.float32(np.pi / 2), np.float32(0))
    step_x, step_y = np.cos(angle), np.sin(angle)
    y, x = np.indices(edges.shape, dtype=np.float32)
    kept = edges > 0
    for sign in (1, -1):
        near = cv2.remap(edges, x + sign * step_x, y + sign * step_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        kept &= edges * _SLACK >= near
    thinned: FloatMap = np.where(kept, edges, np.float32(0))
    if border > 0:
        height, width = edges.shape
        inward = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
        thinned *= np.minimum(inward / np.float32(border), 1)
    return thinned
