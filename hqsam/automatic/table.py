"""Masks that were found so far, as columns; the masks themselves only as run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class MaskTable:
    """K masks of one image.

    Attributes:
        runs: K compressed COCO run lengths in the frame of the image.
        boxes: (K, 4) int64 XYXY, inclusive pixels; zeros for an empty mask.
        scores: (K,) float32 predicted IoU.
        stability: (K,) float32 in [0, 1].
        points: (K, 2) float64 xy of the point that each mask answers, in pixels of the image.
        crops: (K, 4) int64 XYXY of the crop that it was found in, the maximum exclusive.
    """

    runs: list[bytes]
    boxes: Tensor
    scores: Tensor
    stability: Tensor
    points: NDArray[np.float64]
    crops: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.runs)

    @classmethod
    def cat(cls, parts: Sequence[MaskTable]) -> MaskTable:
        """Join tables in order; none at all give an empty one."""
        if not parts:
            scores = torch.zeros(0)
            boxes = torch.zeros((0, 4), dtype=torch.int64)
            return cls([], boxes, scores, scores, np.zeros((0, 2)), np.zeros((0, 4), np.int64))
        return cls(
            [run for part in parts for run in part.runs],
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.stability for part in parts]),
            np.concatenate([part.points for part in parts]),
            np.concatenate([part.crops for part in parts]),
        )

    def select(self, rows: Tensor) -> MaskTable:
        """The rows of an int64 index, in its order."""
        index = rows.numpy()
        return MaskTable(
            [self.runs[row] for row in index.tolist()],
            self.boxes[rows],
            self.scores[rows],
            self.stability[rows],
            self.points[index],
            self.crops[index],
        )

    def moved_to(self, crop: tuple[int, int, int, int]) -> MaskTable:
        """Boxes and points found in a crop (XYXY), in the frame of the image; the masks are in that frame already."""
        x0, y0, _, _ = crop
        offset = torch.tensor([x0, y0, x0, y0])
        return replace(self, boxes=self.boxes + offset, points=self.points + np.array([x0, y0]))

    def suppress(self, iou_threshold: float, scores: Tensor | None = None) -> MaskTable:
        """Without the masks whose box overlaps that of a better one; best first, equals in their order.

        Args:
            iou_threshold: boxes that overlap by more than this IoU are of the same object.
            scores: (K,) which mask is better; None is the predicted IoU.
        """
        from torchvision.ops import batched_nms

        classes = torch.zeros(len(self), dtype=torch.int64)
        scores = self.scores if scores is None else scores
        return self.select(batched_nms(self.boxes.float(), scores, classes, iou_threshold))

    def suppress_between_crops(self, iou_threshold: float) -> MaskTable:
        """`suppress`, where the masks of smaller crops are the better ones."""
        x0, y0, x1, y1 = torch.from_numpy(self.crops).unbind(1)
        return self.suppress(iou_threshold, 1 / ((x1 - x0) * (y1 - y0)))
