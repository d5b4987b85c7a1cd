"""Checking prompts that come as arrays, in pixels of the original image. Nothing here needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def require_any(*parts: ArrayLike | None) -> None:
    """Refuse a prompt without any part.

    Raises:
        ValueError: all parts are None.
    """
    if all(part is None for part in parts):
        raise ValueError("no prompt given: pass point_coords with point_labels, a box, or a mask_input")


def check_boxes(box: ArrayLike | None, original_hw: tuple[int, ...]) -> tuple[NDArray[np.float64] | None, bool]:
    """Boxes of an image of the size (H, W).

    Args:
        box: (4,) or (N, 4) XYXY.
        original_hw: (H, W).

    Returns:
        (N, 4) or None, and whether they came as an array of boxes.

    Raises:
        ValueError: another shape, NaN or infinity, a box that is inverted or wholly outside.
    """
    if box is None:
        return None, False
    boxes = finite(box, "box")
    many = boxes.ndim == 2
    if boxes.shape != (4,) and (not many or boxes.shape[1] != 4 or len(boxes) == 0):
        raise ValueError(f"box must have shape (4,) or (N, 4), XYXY pixels, got {boxes.shape}")
    boxes = boxes.reshape(-1, 4)
    height, width = original_hw
    x0, y0, x1, y1 = boxes.T
    for wrong, what in (
        ((x1 < x0) | (y1 < y0), "inverted (x1 < x0 or y1 < y0)"),
        ((x1 < 0) | (y1 < 0) | (x0 >= width) | (y0 >= height), f"outside the {width} x {height} image"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"box {boxes[row].tolist()} is {what}; boxes are [x0, y0, x1, y1] in pixels")
    return boxes, many


def check_points(
    coords: ArrayLike | None, labels: ArrayLike | None, lead: tuple[int, ...]
) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None]:
    """Points and their labels.

    Args:
        coords: (K, 2) xy, or (N, K, 2) beside N boxes.
        labels: (K,) or (N, K).
        lead: (N,) beside an array of N boxes, else ().

    Returns:
        (N, K, 2) and (N, K), or None for both.

    Raises:
        ValueError: one without the other, another shape, NaN or infinity, a label other than -1, 0, 1.
    """
    if (coords is None) != (labels is None):
        raise ValueError("point_coords and point_labels come together: pass both or neither")
    if coords is None or labels is None:
        return None, None
    points, kinds = finite(coords, "point_coords"), finite(labels, "point_labels")
    if lead == (1,) and points.ndim == 2 and kinds.ndim == 1:  # beside one box, as programs for SAM pass them
        points, kinds = points[None], kinds[None]
    if points.ndim != len(lead) + 2 or points.shape[: len(lead)] != lead or points.shape[-1] != 2:
        raise ValueError(f"point_coords must have shape {shape_text(*lead, 'K', 2)}, xy pixels, got {points.shape}")
    if kinds.shape != points.shape[:-1]:
        raise ValueError(f"point_labels must have shape {points.shape[:-1]}, got {kinds.shape}")
    if not np.isin(kinds, (-1, 0, 1)).all():
        raise ValueError(f"point_labels must be 1 (foreground), 0 (background) or -1 (ignored), got {kinds.tolist()}")
    count = lead[0] if lead else 1
    return points.reshape(count, -1, 2), kinds.reshape(count, -1).astype(np.int64)


def finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """The values as float64.

    Raises:
        ValueError: not numbers, NaN or infinite; the message begins with `name`.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {values!r}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity in {array.tolist() if array.size < 20 else name}")
    return array


def shape_text(*sides: Any) -> str:
    """A shape as Python writes it, for messages."""
    return f"({', '.join(map(str, sides))})" if len(sides) != 1 else f"({sides[0]},)"
