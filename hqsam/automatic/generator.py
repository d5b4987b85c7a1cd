"""Every object of an image without prompts: a grid of points is asked, the answers are filtered and deduplicated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hqsam.answering import Answer
from hqsam.automatic.grids import checked_grids, image_crops, layer_grids
from hqsam.automatic.presets import Preset, preset_options
from hqsam.automatic.records import OUTPUT_MODES, MaskRecord, OutputMode, make_records
from hqsam.automatic.regions import clean_regions
from hqsam.automatic.search import GridSearch, Progress
from hqsam.automatic.table import MaskTable
from hqsam.features import PredictorFeatures
from hqsam.images import as_rgb_uint8
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.types import CANDIDATES, Candidates, Fusion, ImageFeatures, ScoreSource


class SamAutomaticMaskGenerator:
    """Find the objects of an image by asking a grid of points (Segment Anything, appendix B).

    Arguments, defaults and records are those of `segment_anything_hq` 0.3; what follows `output_mode` is ours. The
    thresholds, `output_mode`, `candidates`, `fusion`, `score` and `progress` are attributes that may be changed between
    images; what is searched (the grid and the crops) is fixed.

    Args:
        model: the model.
        points_per_side: points along each side of the image; None where `point_grids` are given.
        points_per_batch: points decoded together, at most 64, on a CPU 16: more gain nothing there. Changes no record.
        pred_iou_thresh: masks with a lower predicted IoU are dropped; at 0 or below none is.
        stability_score_thresh: masks whose IoU between a higher and a lower threshold is smaller are dropped; at 0 or
            below none is.
        stability_score_offset: how far those two thresholds are from the mask's own, in logits.
        box_nms_thresh: of two masks of a crop whose boxes overlap by more than this IoU, the worse-scored is dropped.
        crop_n_layers: layers of crops that are searched too; layer i has 2^i x 2^i crops.
        crop_nms_thresh: the same between crops, where the mask of the smaller crop stays.
        crop_overlap_ratio: overlap of the first layer's crops, as a fraction of the image's short side.
        crop_n_points_downscale_factor: layer i has 1 / factor^i as many points a side.
        point_grids: instead of `points_per_side`, (P, 2) xy within [0, 1] for the image and for each layer of crops.
        min_mask_region_area: holes and islands of fewer pixels are removed from the masks; 0 leaves them.
        output_mode: "binary_mask" for (H, W) bool, "uncompressed_rle", or "coco_rle" for text that JSON can hold.
        fusion: "sum", "hq" or "sam" as in `SamPredictor.predict`; None is the model's default.
        candidates: "all" keeps each of SAM's three masks of a point, fused with HQ's, not the best-scored alone.
        progress: told how many points are done after each batch.
        score: what "predicted_iou" is, which thresholds, duplicates and the choice among candidates go by: "sam", or
            "own" and "own_boundary" as in `SamPredictor.predict`; None is the model's default.

    Raises:
        ValueError: not exactly one of `points_per_side` and `point_grids`, an unknown output mode, a number out of its
            range, or a fusion or score that the model cannot give.
    """

    def __init__(  # noqa: PLR0917  the original's signature
        self,
        model: Sam,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[ArrayLike] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
        *,
        fusion: Fusion | None = None,
        candidates: Candidates = "best",
        progress: Progress | None = None,
        score: ScoreSource | None = None,
    ) -> None:
        self.predictor = SamPredictor(model)
        self.points_per_batch = _at_least("points_per_batch", points_per_batch, 1)
        self.pred_iou_thresh = _within("pred_iou_thresh", pred_iou_thresh, -math.inf)
        self.stability_score_thresh = _within("stability_score_thresh", stability_score_thresh, -math.inf)
        self.stability_score_offset = _within("stability_score_offset", stability_score_offset, 0.0)
        self.box_nms_thresh = _within("box_nms_thresh", box_nms_thresh, 0.0, 1.0)
        self.crop_n_layers = _at_least("crop_n_layers", crop_n_layers, 0)
        self.crop_nms_thresh = _within("crop_nms_thresh", crop_nms_thresh, 0.0, 1.0)
        self.crop_overlap_ratio = _within("crop_overlap_ratio", crop_overlap_ratio, 0.0, 1.0)
        factor = _at_least("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1)
        self.crop_n_points_downscale_factor = factor
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("pass exactly one of points_per_side and point_grids; None stands for the other")
        if point_grids is not None:
            self.point_grids = checked_grids(point_grids, self.crop_n_layers)
        elif points_per_side is not None:
            side = _at_least("points_per_side", points_per_side, 1)
            self.point_grids = layer_grids(side, self.crop_n_layers, factor)
        self.min_mask_region_area = _within("min_mask_region_area", min_mask_region_area, 0.0)
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"output_mode must be one of {OUTPUT_MODES}, got {output_mode!r}")
        self.output_mode: OutputMode = output_mode
        if candidates not in CANDIDATES:
            raise ValueError(f"candidates must be one of {CANDIDATES}, got {candidates!r}")
        self.fusion: Fusion | None = model.resolve_fusion(fusion)
        self.score = _askable(model, score, self.fusion)
        self.candidates: Candidates = candidates
        self.progress = progress

    @classmethod
    def preset(cls, model: Sam, name: Preset = "default", **overrides: Any) -> SamAutomaticMaskGenerator:
        """A generator with settings by name; docs/automatic.md says what they find and what they cost.

        Args:
            model: the model.
            name: "fast" asks a quarter of the points, "default" is the original's defaults, "dense" searches crops
                too, is less strict and removes small regions.
            overrides: arguments of the generator that replace those of the preset.

        Raises:
            ValueError: unknown name, or as the generator.
        """
        return cls(model, **preset_options(name, overrides))

    def generate(
        self,
        image: NDArray[np.uint8],
        multimask_output: bool = True,
        *,
        features: PredictorFeatures | None = None,
    ) -> list[MaskRecord]:
        """Masks of everything in an image, best-scored first within each crop.

        Args:
            image: (H, W, 3) uint8 RGB; see `as_rgb_uint8`.
            multimask_output: let each point choose among SAM's three masks. With HQ one mask a point comes of it
                (`candidates="all"`: three), from plain SAM always three.
            features: of this image, from `SamPredictor.get_features`, so that it is not encoded again; its crops are.

        Returns:
            One record a mask, with the original's keys; see `MaskRecord`. Nothing found is an empty list.

        Raises:
            ValueError: the image is of another kind, or the features are of another image or model.
        """
        rgb = as_rgb_uint8(image)
        tables = list(self._search(rgb, multimask_output, features))
        table = MaskTable.cat(tables)
        if len(tables) > 1:
            table = table.suppress_between_crops(self.crop_nms_thresh)
        return list(make_records(self._cleaned(table, _hw(rgb)), _hw(rgb), self.output_mode))

    def iterate(
        self,
        image: NDArray[np.uint8],
        multimask_output: bool = True,
        *,
        features: PredictorFeatures | None = None,
    ) -> Iterator[MaskRecord]:
        """The records of each crop as soon as it is searched; full-size masks are made one at a time.

        Duplicates within a crop and small regions are removed as in `generate`. Duplicates between crops cannot be
        known before the end and are not: with `crop_n_layers=0` the records are exactly those of `generate`.

        Args:
            image: see `generate`.
            multimask_output: see `generate`.
            features: see `generate`.

        Raises:
            ValueError: see `generate`.
        """
        rgb = as_rgb_uint8(image)
        tables = self._search(rgb, multimask_output, features)
        records = (make_records(self._cleaned(table, _hw(rgb)), _hw(rgb), self.output_mode) for table in tables)
        return chain.from_iterable(records)

    def _cleaned(self, table: MaskTable, image_hw: tuple[int, int]) -> MaskTable:
        if self.min_mask_region_area <= 0 or not len(table):
            return table
        threshold = max(self.box_nms_thresh, self.crop_nms_thresh)
        return clean_regions(table, image_hw, self.min_mask_region_area, threshold)

    def _search(
        self, image: NDArray[np.uint8], multimask: bool, given: PredictorFeatures | None
    ) -> Iterator[MaskTable]:
        known = None if given is None else self._accepted(given, image)
        fusion = self.predictor.model.resolve_fusion(self.fusion)
        search = GridSearch(
            model=self.predictor.model,
            image=image,
            crops=image_crops(*_hw(image), self.crop_n_layers, self.crop_overlap_ratio),
            grids=self.point_grids,
            answer=Answer(
                multimask=multimask,
                return_logits=False,
                fusion=fusion,
                candidates=self.candidates,
                score=self.predictor.model.resolve_score(self.score, fusion),
            ),
            points_per_batch=self.points_per_batch,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_thresh=self.stability_score_thresh,
            stability_offset=self.stability_score_offset,
            nms_thresh=self.box_nms_thresh,
            progress=self.progress,
        )
        return search.tables(known)

    def _accepted(self, given: PredictorFeatures, image: NDArray[np.uint8]) -> ImageFeatures:
        given.require(self.predictor.model, image if given.image_hash else None)
        if tuple(given.original_size) != _hw(image):
            raise ValueError(f"the features are of an image of size {given.original_size}, this one has {_hw(image)}")
        return given.to(self.predictor.device).image_features


def _askable(model: Sam, score: ScoreSource | None, fusion: Fusion | None) -> ScoreSource | None:
    """The score as it is asked for: what None stands for may change with the fusion."""
    model.resolve_score(score, fusion)
    return score


def _hw(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _at_least(name: str, value: int, minimum: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < minimum:
        raise ValueError(f"{name} must be a whole number, at least {minimum}, got {value!r}")
    return int(value)


def _within(name: str, value: float, low: float, high: float = math.inf) -> float:
    if math.isnan(value) or not low <= value <= high:
        raise ValueError(f"{name} must be a number within {low:g}..{high:g}, got {value!r}")
    return value
