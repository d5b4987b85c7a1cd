"""Prompts that a careful user would give, simulated from a true mask at the size of the image.

Clicks at the centre of what is wrong, as in the literature on interactive segmentation (Xu et al., CVPR 2016; Sofiiuk
et al., ICIP 2022), random points, and boxes with noise. The trainer's clicks (`hqsam.engine.clicks`) are another thing:
random pixels of the error, on the device, at low resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Click(NamedTuple):
    """One click, in pixels of the image."""

    x: int
    y: int
    positive: bool  # on the object; False: on something else


def central_click(mask: NDArray[np.bool_]) -> Click:
    """The pixel that is farthest from everything outside, the image's border included; the first of equals.

    This is where SAM's evaluation of single points clicks (Segment Anything, section 7.1).

    Args:
        mask: (H, W) bool.

    Raises:
        ValueError: no pixel is inside.
    """
    if not mask.any():
        raise ValueError(f"a mask of {mask.shape} has no pixel inside: there is nothing to click on")
    y, x = np.unravel_index(np.argmax(_depth(mask)), mask.shape)
    return Click(int(x), int(y), True)


def correction_click(pred: NDArray[np.bool_], truth: NDArray[np.bool_], before: Sequence[Click] = ()) -> Click | None:
    """The next click: at the centre of the deepest region that is wrong.

    Deepest is the region with the pixel farthest from what is right. Where a missed and a surplus region are equally
    deep, the surplus one is clicked. A pixel is never clicked twice.

    Args:
        pred: (H, W) bool, the last answer; nothing inside for the first click.
        truth: (H, W) bool.
        before: the clicks so far.

    Returns:
        The click; None where every wrong pixel, if there is one, was clicked already.
    """
    missed, surplus = _depth(truth & ~pred), _depth(pred & ~truth)
    for click in before:
        missed[click.y, click.x] = surplus[click.y, click.x] = 0
    positive = bool(missed.max() > surplus.max())
    depth = missed if positive else surplus
    place = int(np.argmax(depth))
    if depth.flat[place] == 0:
        return None
    y, x = divmod(place, depth.shape[1])
    return Click(x, y, positive)


def surplus_click(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], min_depth: float = 3.0
) -> tuple[Click, NDArray[np.bool_]] | None:
    """A negative click at the centre of the deepest region that an answer took too much, and that region.

    Args:
        pred: (H, W) bool, the answer.
        truth: (H, W) bool.
        min_depth: pixels from the click to the nearest one that is no surplus or beyond the image; nobody clicks on a
            thinner fringe.

    Returns:
        The click and the (H, W) bool region, connected over edges and corners, that it is in; None where no surplus is
        deep enough.
    """
    import cv2

    surplus = pred & ~truth
    depth = _depth(surplus)
    y, x = divmod(int(np.argmax(depth)), depth.shape[1])
    if depth[y, x] < max(min_depth, 1.0):  # every pixel of a surplus has at least 1
        return None
    _, labels = cv2.connectedComponents(surplus.astype(np.uint8), connectivity=8)
    region: NDArray[np.bool_] = labels == labels[y, x]
    return Click(x, y, False), region


def random_pixels(inside: NDArray[np.bool_], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Different random pixels of a mask, all equally likely.

    Args:
        inside: (H, W) bool.
        count: how many; if the mask has fewer, all of them come.
        rng: source of randomness.

    Returns:
        (count, 2) float32 xy.

    Raises:
        ValueError: no pixel is inside.
    """
    pixels = np.flatnonzero(inside)
    if not pixels.size:
        raise ValueError(f"a mask of {inside.shape} has no pixel inside: there is nothing to click on")
    chosen = rng.choice(pixels, min(count, pixels.size), replace=False, shuffle=False)
    xy: NDArray[np.float32] = np.stack([chosen % inside.shape[1], chosen // inside.shape[1]], axis=1).astype(np.float32)
    return xy


def shaken_box(
    box: NDArray[np.float32], scale: float, hw: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A box with the noise of DN-DETR (Li et al., CVPR 2022, section 4): moved, and stretched or shrunk.

    Its centre moves by up to `scale` / 2 of a side along each axis and each side changes by a factor within 1 - `scale`
    and 1 + `scale`, all uniform; then it is cut at the image's border.

    Args:
        box: (4,) XYXY, inclusive pixels.
        scale: 0 leaves the box as it is.
        hw: (H, W) of the image.
        rng: source of randomness; four numbers are drawn, whatever the scale.

    Returns:
        (4,) float32 XYXY within the image, not rounded.

    Raises:
        ValueError: `scale` is not within 0 and 1: a side would become negative.
    """
    if not 0 <= scale <= 1:
        raise ValueError(f"the noise of a box must be within 0 and 1, got {scale}")
    draws = rng.uniform(-1, 1, 4)
    sides = box[2:] - box[:2] + 1
    centre = (box[:2] + box[2:]) / 2 + draws[:2] * scale / 2 * sides
    half = (sides * (1 + draws[2:] * scale) - 1) / 2
    half = np.maximum(half, 0)
    limits = np.array([hw[1] - 1, hw[0] - 1])
    corners = np.clip(np.stack([centre - half, centre + half]), 0, limits)
    flat: NDArray[np.float32] = corners.reshape(4).astype(np.float32)
    return flat


def _depth(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distance of every pixel inside to the nearest one outside; beyond the image is outside."""
    import cv2

    padded = np.pad(region, 1).astype(np.uint8)
    depth: NDArray[np.float32] = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1].copy()
    return depth
