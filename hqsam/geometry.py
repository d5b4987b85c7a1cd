"""How images and coordinates get from original pixels to the model's input frame, and back.

SAM's rule: the long side becomes the model's input size, each side is rounded on its own, coordinates scale per axis by
new / old size, padding is at the bottom and on the right (segment-anything, `ResizeLongestSide`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the NumPy path is for programs without torch too
    from torch import Tensor

_Coords = TypeVar("_Coords", NDArray[np.float64], "Tensor")


def resized_hw(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Size (height, width) of an image whose long side becomes `long_side`; each side is at least one pixel.

    Raises:
        ValueError: a side is not positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image needs at least one pixel on each side, got {height} x {width} (height x width)")
    scale = long_side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


class ResizeLongestSide:
    """Resize images, points and boxes so that the long side is `target_length` (drop-in name of SAM).

    The NumPy path resizes uint8 images with PIL's antialiased bilinear filter, which is what the published weights
    expect; the tensor path is torch's antialiased bilinear filter and differs from it by rounding.
    """

    def __init__(self, target_length: int) -> None:
        self.target_length = target_length

    def apply_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 -> (h, w, 3) uint8 with max(h, w) = `target_length`."""
        from PIL import Image

        height, width = resized_hw(image.shape[0], image.shape[1], self.target_length)
        if image.shape[:2] == (height, width):
            return np.array(image)
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def apply_coords(self, coords: NDArray[np.generic], original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """(..., 2) xy in pixels of the (H, W) original -> the same points in the resized frame, float64."""
        return self._scale(np.array(coords, dtype=np.float64), original_size)

    def apply_boxes(self, boxes: NDArray[np.generic], original_size: tuple[int, ...]) -> NDArray[np.float64]:
        """(N, 4) XYXY in pixels of the (H, W) original -> (N, 4) in the resized frame, float64."""
        return self.apply_coords(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float -> (B, C, h, w) with max(h, w) = `target_length`."""
        from torch.nn import functional as F

        size = self.get_preprocess_shape(image.shape[2], image.shape[3], self.target_length)
        return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """(..., 2) xy tensor in pixels of the (H, W) original -> float32 points in the resized frame."""
        return self._scale(coords.detach().clone().float(), original_size)

    def apply_boxes_torch(self, boxes: Tensor, original_size: tuple[int, ...]) -> Tensor:
        """(N, 4) XYXY tensor in pixels of the (H, W) original -> (N, 4) float32 in the resized frame."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def _scale(self, coords: _Coords, original_size: tuple[int, ...]) -> _Coords:
        """Scale in place: `coords` is already a private copy."""
        old_h, old_w = original_size
        new_h, new_w = self.get_preprocess_shape(old_h, old_w, self.target_length)
        coords[..., 0] *= new_w / old_w
        coords[..., 1] *= new_h / old_h
        return coords

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Size (height, width) after resizing; see `resized_hw`."""
        return resized_hw(oldh, oldw, long_side_length)
