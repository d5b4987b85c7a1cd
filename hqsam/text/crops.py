"""Crops of objects, as CLIP is shown them when a projection is trained (Segment Anything, appendix D.5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hqsam.boxes import mask_to_box
from hqsam.data.augment import OBJECT_THRESHOLD


def object_crop(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], size: int, *, scale: float = 1.0, blank: bool = False
) -> NDArray[np.uint8]:
    """A square around an object.

    The square is centred on the object's box and as long as the box's long side times `scale`, so nothing is
    stretched. What lies beyond the image is black.

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W) 0..255.
        size: side of the result in pixels.
        scale: enlargement of the box, 1 or more.
        blank: make everything outside the object black.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: a mask of another size or without pixels, or a scale below 1.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"image and mask must agree in size, got {image.shape[:2]} and {mask.shape}")
    inside = mask > OBJECT_THRESHOLD
    box = mask_to_box(inside)
    if box is None:
        raise ValueError("an object without pixels has no crop")
    if scale < 1.0:
        raise ValueError(f"the box of a crop is enlarged by 1 or more, got {scale}")
    from PIL import Image

    side = max(1, round(float(max(box[2] - box[0], box[3] - box[1]) + 1) * scale))
    left, top = (round(float(low + high + 1 - side) / 2) for low, high in ((box[0], box[2]), (box[1], box[3])))
    shown = np.where(inside[..., None], image, np.uint8(0)) if blank else image
    square = Image.fromarray(shown).crop((left, top, left + side, top + side))
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))
