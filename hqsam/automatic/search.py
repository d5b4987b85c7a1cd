"""Asking a grid of points in each crop of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hqsam.answering import Answer
from hqsam.automatic.grids import Crop
from hqsam.automatic.scoring import CropScorer
from hqsam.automatic.table import MaskTable
from hqsam.encoding import encode_images
from hqsam.geometry import ResizeLongestSide
from hqsam.models import PreparedImages, Sam
from hqsam.segmentation import answer_confident_prompts
from hqsam.types import ImageFeatures, Prompts

CPU_POINTS, GPU_POINTS = 16, 64
"""Points whose low-resolution masks are held at a time: more gain nothing, and memory must not follow the caller."""

GPU_CROPS = 4
"""Crops encoded together on a GPU; on a CPU one at a time is as fast and smaller."""

Progress = Callable[[int, int], None]
"""Called with the points that are done and all of them, over all crops of an image."""


@dataclass(frozen=True, kw_only=True)
class GridSearch:
    """One image and how it is searched; see `SamAutomaticMaskGenerator` for the numbers.

    Attributes:
        model: the model.
        image: (H, W, 3) uint8 RGB.
        crops: what is searched, in order.
        grids: (P, 2) xy in [0, 1] by layer.
        answer: which masks of a point are wanted.
    """

    model: Sam
    image: NDArray[np.uint8]
    crops: Sequence[Crop]
    grids: Sequence[NDArray[np.float64]]
    answer: Answer
    points_per_batch: int
    pred_iou_thresh: float
    stability_thresh: float
    stability_offset: float
    nms_thresh: float
    progress: Progress | None

    def tables(self, known: ImageFeatures | None) -> Iterator[MaskTable]:
        """The masks of each crop in turn, without duplicates in it, in the frame of the image.

        Args:
            known: encoder outputs of the whole image, if there are any.
        """
        done = 0
        for crop, features in self._encoded(known):
            yield self._search_crop(crop, features, done)
            done += len(self.grids[crop.layer])

    @torch.no_grad()
    def _search_crop(self, crop: Crop, features: ImageFeatures, done: int) -> MaskTable:
        total = sum(len(self.grids[other.layer]) for other in self.crops)
        height, width = crop.size
        points = self.grids[crop.layer] * np.array([width, height])
        scorer = self._scorer(crop)
        answer = replace(self.answer, shown=scorer.input_hw)  # nobody looks at the padding
        prepared = self.model.prepare(features, use_hq=self.answer.fusion != "sam")
        parts = []
        step = min(self.points_per_batch, CPU_POINTS if self.model.device.type == "cpu" else GPU_POINTS)
        for start in range(0, len(points), step):
            batch = points[start : start + step]
            parts.append(self._ask(batch, features, prepared, scorer, answer))
            if self.progress is not None:
                self.progress(done + start + len(batch), total)
        return MaskTable.cat(parts).suppress(self.nms_thresh).moved_to(crop.box)

    def _scorer(self, crop: Crop) -> CropScorer:
        height, width = self.image.shape[:2]
        return CropScorer(
            crop=crop,
            image_hw=(height, width),
            input_hw=ResizeLongestSide.get_preprocess_shape(*crop.size, self.model.image_size),
            image_size=self.model.image_size,
            mask_threshold=self.model.mask_threshold,
            stability_offset=self.stability_offset,
            stability_thresh=self.stability_thresh,
        )

    def _ask(
        self,
        points: NDArray[np.float64],
        features: ImageFeatures,
        prepared: PreparedImages,
        scorer: CropScorer,
        answer: Answer,
    ) -> MaskTable:
        """Masks of a batch of points that pass the filters; boxes and points still in the frame of the crop."""
        moved = ResizeLongestSide(self.model.image_size).apply_coords(points, scorer.crop.size)
        coords = torch.from_numpy(moved).to(torch.float32)[:, None]
        prompts = Prompts.from_parts(coords, torch.ones(coords.shape[:2], dtype=torch.int64))
        floor = self.pred_iou_thresh if self.pred_iou_thresh > 0 else None
        logits, scores, kept = answer_confident_prompts(self.model, features, prompts, answer, prepared, min_iou=floor)
        if kept is not None:
            points = points[kept.cpu().numpy()]
        flat, per_point = scores.flatten(), scores.shape[1]
        chosen = torch.arange(len(flat), device=flat.device)
        if self.pred_iou_thresh > 0:
            chosen = (flat > self.pred_iou_thresh).nonzero()[:, 0]
        found = scorer(logits.flatten(0, 1)[chosen])
        rows = chosen.cpu()[found.rows]
        return MaskTable(
            found.runs,
            found.boxes,
            flat.cpu()[rows],
            found.stability,
            points[rows.numpy() // per_point],
            np.tile(np.array(scorer.crop.box, dtype=np.int64), (len(rows), 1)),
        )

    def _encoded(self, known: ImageFeatures | None) -> Iterator[tuple[Crop, ImageFeatures]]:
        """Each crop with its encoder outputs (of one image), encoded a few crops together."""
        crops = [crop for crop in self.crops if len(self.grids[crop.layer])]
        if known is not None and crops and crops[0].layer == 0:
            yield crops.pop(0), known
        step = 1 if self.model.device.type == "cpu" else GPU_CROPS
        for start in range(0, len(crops), step):
            group = crops[start : start + step]
            boxes = [crop.box for crop in group]
            features, _ = encode_images(self.model, [self.image[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes])
            for row, crop in enumerate(group):
                yield crop, ImageFeatures(*(feature[row : row + 1] for feature in features))
