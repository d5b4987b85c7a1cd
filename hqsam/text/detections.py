"""What a text detector finds: boxes with a score and the phrase that they answer.

Shape legend: N boxes. Boxes are XYXY in pixels of the original image, inside it, with positive width and height.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Detections(NamedTuple):
    """Boxes that answer phrases, best score first."""

    boxes: NDArray[np.float32]  # (N, 4)
    scores: NDArray[np.float32]  # (N,) 0..1
    phrase_index: NDArray[np.int64]  # (N,) which of the phrases

    def rows(self, chosen: NDArray[np.generic] | slice) -> Detections:
        """Some of them, by a slice, a boolean mask (N,) or indices."""
        return Detections(self.boxes[chosen], self.scores[chosen], self.phrase_index[chosen])


class TextDetector(Protocol):
    """Whatever turns phrases into boxes; `TransformersDetector` is one, a caller may bring another."""

    def detect(self, image: NDArray[np.uint8], phrases: Sequence[str], threshold: float) -> Detections:
        """Find what the phrases name.

        Args:
            image: (H, W, 3) uint8 RGB.
            phrases: one or more, e.g. "a dog".
            threshold: lowest score that counts, 0..1.

        Returns:
            Boxes with scores above the threshold; none when nothing was found.
        """


def make_detections(boxes: ArrayLike, scores: ArrayLike, phrase_index: ArrayLike, size: tuple[int, int]) -> Detections:
    """Raw boxes as `Detections`: cut at the border, without what is outside, empty or not finite, best first.

    Args:
        boxes: (N, 4) XYXY in original pixels; models answer beyond the border, and in their own padding.
        scores: (N,).
        phrase_index: (N,).
        size: (H, W) of the image.
    """
    height, width = size
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    corners[:, 0::2] = corners[:, 0::2].clip(0, width)
    corners[:, 1::2] = corners[:, 1::2].clip(0, height)
    values = np.asarray(scores, dtype=np.float32).reshape(-1)
    index = np.asarray(phrase_index, dtype=np.int64).reshape(-1)
    finite = np.isfinite(corners).all(axis=1) & np.isfinite(values)
    real = finite & (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    kept = Detections(corners, values, index).rows(real)
    return kept.rows(np.argsort(-kept.scores, kind="stable"))


def suppress(detections: Detections, iou: float) -> Detections:
    """Keep the best of boxes that overlap, whatever their phrases.

    Args:
        detections: best first.
        iou: a box goes if its IoU with a better one that stays is above this; 1 keeps all.

    Raises:
        ValueError: `iou` outside 0..1.
    """
    if not 0.0 <= iou <= 1.0:
        raise ValueError(f"the IoU of the suppression must be within 0..1, got {iou}")
    import torch
    from torchvision.ops import nms

    kept = nms(torch.from_numpy(detections.boxes), torch.from_numpy(detections.scores), iou)
    return detections.rows(kept.numpy())
