"""Pictures of masks: a translucent colour with its contour, and titled panels side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]

YELLOW: Color = (255, 205, 0)
RED: Color = (235, 70, 60)
BLUE: Color = (40, 140, 255)
"""RGB colours used for truth, plain SAM and HQ-SAM."""

_GAP, _TITLE_SIZE = 8, 16


def draw_mask(
    image: NDArray[np.uint8], mask: NDArray[np.bool_], color: Color = BLUE, alpha: float = 0.45
) -> NDArray[np.uint8]:
    """Blend a mask into an image and draw its contour.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        mask: (H, W) bool.
        color: RGB, 0..255.
        alpha: opacity inside the mask in [0, 1]; the contour is always opaque.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: image, mask or alpha are something else.
    """
    import cv2

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the image must be (H, W, 3) uint8 RGB, got {image.dtype} {image.shape}")
    if mask.shape != image.shape[:2] or mask.dtype != np.bool_:
        raise ValueError(f"the mask must be bool {image.shape[:2]} like the image, got {mask.dtype} {mask.shape}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be within 0..1, got {alpha}")
    out = image.copy()
    blended = image[mask] * (1.0 - alpha) + np.array(color) * alpha
    out[mask] = np.rint(blended).astype(np.uint8)
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # A fixed width would hide thin objects in small pictures and vanish in large ones.
    width = max(1, round(math.hypot(*mask.shape) / 700))
    cv2.drawContours(out, contours, -1, color, width)
    return out


def draw_box(
    image: NDArray[np.uint8], box: Sequence[float] | NDArray[np.generic], color: Color = YELLOW
) -> NDArray[np.uint8]:
    """Draw the outline of an XYXY box (pixels of the image) into a copy of an (H, W, 3) uint8 image."""
    import cv2

    out = image.copy()
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    cv2.rectangle(out, (x0, y0), (x1, y1), color, max(1, round(math.hypot(*image.shape[:2]) / 500)))
    return out


def enlarge(image: NDArray[np.uint8], part_xyxy: Sequence[float], long_side: int = 512) -> NDArray[np.uint8]:
    """Cut a part out of an (H, W, 3) uint8 image and resize it so that its long side has `long_side` pixels.

    Raises:
        ValueError: the part [x0, y0, x1, y1) has no pixel inside the image.
    """
    from PIL import Image

    height, width = image.shape[:2]
    x0, y0, x1, y1 = (round(float(value)) for value in part_xyxy)
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x0 >= x1 or y0 >= y1:
        raise ValueError(f"the part {list(part_xyxy)} has no pixel inside the {width} x {height} image")
    scale = long_side / max(x1 - x0, y1 - y0)
    size = (max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1))
    return np.array(Image.fromarray(image[y0:y1, x0:x1]).resize(size, Image.Resampling.LANCZOS))


def side_by_side(panels: Sequence[NDArray[np.uint8]], titles: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Panels in a row on white, each under its title.

    Args:
        panels: (h, w, 3) uint8 RGB each; the sizes may differ, nothing is resized.
        titles: one line of text for each panel, or none.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: no panels, panels of another kind, or another number of titles.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not panels or any(panel.ndim != 3 or panel.shape[2] != 3 or panel.dtype != np.uint8 for panel in panels):
        received = [f"{panel.dtype} {panel.shape}" for panel in panels]
        raise ValueError(f"side_by_side needs (h, w, 3) uint8 panels, at least one, got {received}")
    if titles and len(titles) != len(panels):
        raise ValueError(f"each of {len(panels)} panels needs a title, got {len(titles)}")
    font = ImageFont.load_default(_TITLE_SIZE)
    top = _GAP + (_TITLE_SIZE + _GAP if titles else 0)
    # A title is never cut: a narrow panel gets a column as wide as its title.
    texts = titles or [""] * len(panels)
    widths = [max(panel.shape[1], math.ceil(font.getlength(text))) for panel, text in zip(panels, texts, strict=True)]
    size = (sum(widths) + _GAP * (len(panels) + 1), max(panel.shape[0] for panel in panels) + top + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for panel, text, width in zip(panels, texts, widths, strict=True):
        draw.text((left, _GAP // 2), text, fill="black", font=font)
        sheet.paste(Image.fromarray(panel), (left, top))
        left += width + _GAP
    return np.array(sheet)
