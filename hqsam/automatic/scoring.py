"""From low-resolution logits to measured, filtered run lengths of one crop, a few full-size masks at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hqsam.automatic.grids import Crop
from hqsam.automatic.runs import encode_transposed, run_boxes
from hqsam.postprocess import upscale_logits
from hqsam.upsampling import WindowUpscaler, products_are_exact

CPU_PIXELS, GPU_PIXELS = 2**22, 2**25
"""Full-size pixels held at a time; at least one mask."""

CROP_EDGE = 20
"""A box within this many pixels of a crop's edge is a part of something larger (Segment Anything, appendix B)."""


class Found(NamedTuple):
    """K masks that passed, in the order in which they were given."""

    rows: Tensor  # (K,) int64, which of the given masks
    runs: list[bytes]  # in the frame of the image
    boxes: Tensor  # (K, 4) int64 XYXY, inclusive, in the frame of the crop
    stability: Tensor  # (K,) float32


@dataclass(frozen=True)
class CropScorer:
    """Thresholds, measures and encodes the masks of one crop.

    Attributes:
        crop: the crop.
        image_hw: (H, W) of the whole image.
        input_hw: (height, width) of the resized crop inside the model's input.
        image_size: side S of the model's input.
        mask_threshold: logits above it are inside.
        stability_offset: see `stability_thresh`.
        stability_thresh: masks are dropped whose stability is lower: the IoU of the mask at the threshold plus and
            minus the offset. At 0 or below nothing is dropped.
    """

    crop: Crop
    image_hw: tuple[int, int]
    input_hw: tuple[int, int]
    image_size: int
    mask_threshold: float
    stability_offset: float
    stability_thresh: float

    def __call__(self, logits: Tensor) -> Found:
        """Measure (N, 4h, 4w) float32 logits."""
        height, width = self.crop.size
        on_cpu = logits.device.type == "cpu"
        if on_cpu and products_are_exact():
            step, threshold = max(1, CPU_PIXELS // (height * width)), self._threshold_windows
        else:
            pixels = CPU_PIXELS if on_cpu else GPU_PIXELS
            step, threshold = max(1, pixels // max(height * width, self.image_size**2)), self._threshold
        parts = [self._keep(start, *threshold(logits[start : start + step])) for start in range(0, len(logits), step)]
        if not parts:
            none = torch.zeros(0)
            return Found(none.long(), [], torch.zeros((0, 4), dtype=torch.int64), none)
        rows, runs, boxes, stability = zip(*parts, strict=True)
        return Found(torch.cat(rows), [run for part in runs for run in part], torch.cat(boxes), torch.cat(stability))

    def _threshold(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(n, W, H) bool masks, transposed, and (n, 2) pixels above the higher and the lower threshold."""
        low = logits[:, None].transpose(-1, -2)
        full = upscale_logits(low, self.input_hw[::-1], self.crop.size[::-1], self.image_size)[:, 0]
        levels = (self.mask_threshold + self.stability_offset, self.mask_threshold - self.stability_offset)
        counts = torch.stack([(full > level).flatten(1).sum(1) for level in levels], dim=1)
        return full > self.mask_threshold, counts.cpu()

    def _threshold_windows(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The same on a CPU, where most of a picture need not be computed."""
        height, width = self.crop.size
        inside = torch.zeros((len(logits), width, height), dtype=torch.bool, device=logits.device)
        counts = torch.zeros((len(logits), 2), dtype=torch.int64, device=logits.device)
        high, low = self.mask_threshold + self.stability_offset, self.mask_threshold - self.stability_offset
        upscale = WindowUpscaler(logits.shape[-1], self.input_hw, self.crop.size, self.image_size)
        for row, mask in enumerate(logits):
            window = upscale(mask, low)
            if window is not None:
                torch.gt(window.logits, self.mask_threshold, out=inside[row, window.x, window.y])
                for column, level in enumerate((high, low)):
                    counts[row, column] = int(np.count_nonzero((window.logits > level).numpy()))
        return inside, counts

    def _keep(self, start: int, inside: Tensor, counts: Tensor) -> Found:
        inner, outer = counts.unbind(1)
        stability = torch.where(outer > 0, inner / outer, 0.0)  # the original's 0 / 0 would not be valid JSON
        rows = torch.arange(len(inside))
        if self.stability_thresh > 0:
            rows = rows[stability >= self.stability_thresh]
        runs = encode_transposed(inside[rows.to(inside.device)])
        boxes = run_boxes(runs, *self.crop.size)
        if self.crop.size != self.image_hw:
            away = (~self._at_crop_edge(boxes)).nonzero()[:, 0]
            rows, boxes = rows[away], boxes[away]
            runs = encode_transposed(self._in_image(inside[rows.to(inside.device)]))
        return Found(rows + start, runs, boxes, stability[rows])

    def _at_crop_edge(self, boxes: Tensor) -> Tensor:
        """(N,) bool: boxes that end near an edge of the crop which is not near one of the image."""
        x0, y0, _, _ = self.crop.box
        height, width = self.image_hw
        boxes = boxes + torch.tensor([x0, y0, x0, y0])
        at_crop, at_image = (
            (boxes - torch.tensor(edge)).abs() <= CROP_EDGE for edge in (self.crop.box, (0, 0, width, height))
        )
        return (at_crop & ~at_image).any(dim=1)

    def _in_image(self, inside: Tensor) -> Tensor:
        """(n, w, h) masks of the crop as (n, W, H) masks of the image."""
        x0, y0, x1, y1 = self.crop.box
        height, width = self.image_hw
        return F.pad(inside, (y0, height - y1, x0, width - x1))
