"""Boundaries of everything in an image, from the masks of a grid of points (Segment Anything, appendix D.2).

Every point of the grid is asked, nothing is filtered, duplicates are dropped. Of each mask the gradient of its
probability counts along its outline; the map is the largest over all masks, thinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqsam.automatic.edge_maps import FloatMap, Outline, join_outlines, mask_outline, thin_edges
from hqsam.automatic.grids import point_grid
from hqsam.automatic.search import CPU_POINTS, GPU_POINTS
from hqsam.features import PredictorFeatures
from hqsam.images import as_rgb_uint8
from hqsam.models import Sam, select_masks
from hqsam.models.selection import MULTIMASK_CANDIDATES
from hqsam.postprocess import PIXELS_AT_ONCE, upscale_logits
from hqsam.predictor import SamPredictor
from hqsam.types import Fusion, ImageFeatures, Prompts

_Found = tuple[list[Outline], list[float]]
"""Outlines, and SAM's score of each mask."""


class SamEdgeDetector:
    """Find the boundaries of an image by asking a grid of points.

    Args:
        model: the model.
        points_per_side: points along each side of the image.
        box_nms_thresh: of two masks whose boxes overlap by more than this IoU, the worse-scored is dropped.
        sigma: standard deviation, in pixels, of the Gaussian that smooths the map before it is thinned; 0 for none.
        fusion: "sum", "hq" or "sam" as in `SamPredictor.predict`; None is the model's default. Each point gives three
            masks, with "hq" one.
        thin: thin the map; False leaves the smoothed one.

    Raises:
        ValueError: a number out of its range, or a fusion that the model cannot give.
    """

    def __init__(
        self,
        model: Sam,
        *,
        points_per_side: int = 16,
        box_nms_thresh: float = 0.7,
        sigma: float = 0.8,
        fusion: Fusion | None = None,
        thin: bool = True,
    ) -> None:
        if points_per_side < 1:
            raise ValueError(f"points_per_side must be at least 1, got {points_per_side}")
        if not 0 <= box_nms_thresh <= 1 or not sigma >= 0:
            raise ValueError(
                f"box_nms_thresh must be within 0 and 1 and sigma at least 0, got {box_nms_thresh} and {sigma}"
            )
        self.predictor = SamPredictor(model)
        self.points_per_side = points_per_side
        self.box_nms_thresh = box_nms_thresh
        self.sigma = sigma
        self.fusion: Fusion = model.resolve_fusion(fusion)
        self.thin = thin

    def detect(self, image: NDArray[np.uint8], *, features: PredictorFeatures | None = None) -> FloatMap:
        """The boundary map of an image.

        Memory follows the outlines of the masks, not their number times the image's size.

        Args:
            image: (H, W, 3) uint8 RGB; see `as_rgb_uint8`.
            features: of this image, from `SamPredictor.get_features`, so that it is not encoded again.

        Returns:
            (H, W) float32 in [0, 1]; all zero if no mask has a pixel.

        Raises:
            ValueError: the image is of another kind, or the features are of another image or model.
        """
        return self.detect_columns(image, (self.fusion,), features=features)[self.fusion]

    def detect_columns(
        self, image: NDArray[np.uint8], fusions: Sequence[Fusion], *, features: PredictorFeatures | None = None
    ) -> dict[Fusion, FloatMap]:
        """The boundary maps of several fusions; "hq" and "sum" share what they compute.

        Args:
            image: see `detect`.
            fusions: which maps.
            features: see `detect`.

        Raises:
            ValueError: see `detect`; a fusion that the model cannot give.
        """
        rgb = as_rgb_uint8(image)
        for fusion in fusions:
            self.predictor.model.resolve_fusion(fusion)
        if features is None:
            self.predictor.set_image(rgb)
        else:
            self.predictor.load_features(features, rgb)
        hw = rgb.shape[:2]
        found = self._outlines(hw, fusions)
        self.predictor.reset_image()
        maps = {name: join_outlines(self._without_duplicates(*found[name]), hw, self.sigma) for name in fusions}
        return {name: thin_edges(edges) for name, edges in maps.items()} if self.thin else maps

    @torch.no_grad()
    def _outlines(
        self, hw: tuple[int, int], fusions: Sequence[Fusion]
    ) -> dict[Fusion, tuple[list[Outline], list[float]]]:
        """Outlines and scores of all masks that have a pixel."""
        predictor, model = self.predictor, self.predictor.model
        # not get_features(), which sums up all weights of the encoder to say whose features they are
        early = cast(list[Tensor], predictor.interm_features)[0].permute(0, 3, 1, 2)
        features = ImageFeatures(predictor.get_image_embedding(), early)
        input_hw = cast(tuple[int, int], predictor.input_size)
        prepared = predictor.prepared(use_hq=not set(fusions) <= {"sam"})
        grid = predictor.transform.apply_coords(point_grid(self.points_per_side) * np.array([hw[1], hw[0]]), hw)
        points = torch.from_numpy(grid).to(torch.float32)[:, None]
        found: dict[Fusion, _Found] = {fusion: ([], []) for fusion in fusions}
        for batch in points.split(CPU_POINTS if model.device.type == "cpu" else GPU_POINTS):
            prompts = Prompts.from_parts(batch, torch.ones(batch.shape[:2], dtype=torch.int64)).to(model.device)
            outputs = {
                use_hq: model.decode(
                    features,
                    prompts,
                    candidates=MULTIMASK_CANDIDATES,
                    use_hq=use_hq,
                    prepared=prepared,
                    shown=input_hw,
                )
                for use_hq in {fusion != "sam" for fusion in fusions}
            }
            for fusion, (outlines, scores) in found.items():
                logits, iou = select_masks(outputs[fusion != "sam"], multimask=True, fusion=fusion, candidates="all")
                masks = _full_size(logits.float().flatten(0, 1), input_hw, hw, model.image_size)
                for mask, score in zip(masks, iou.flatten().tolist(), strict=True):
                    outline = mask_outline(mask, model.mask_threshold)
                    if outline is not None:
                        outlines.append(outline)
                        scores.append(score)
        return found

    def _without_duplicates(self, outlines: list[Outline], scores: list[float]) -> list[Outline]:
        from torchvision.ops import nms

        if not outlines:
            return []
        boxes = torch.tensor([outline.box for outline in outlines], dtype=torch.float32)
        kept = nms(boxes, torch.tensor(scores), self.box_nms_thresh)
        return [outlines[row] for row in kept.tolist()]


def _full_size(logits: Tensor, input_hw: tuple[int, int], hw: tuple[int, int], image_size: int) -> Iterator[FloatMap]:
    """(N, 4h, 4w) logits one by one at the size of the image, of which a few exist at a time."""
    step = max(1, PIXELS_AT_ONCE // max(hw[0] * hw[1], image_size**2))
    for part in logits.split(step):
        yield from upscale_logits(part[:, None], input_hw, hw, image_size)[:, 0].cpu().numpy()
