"""Object proposals: what a dense grid of points finds, to average recall (Segment Anything, 7.3 and appendix D.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.automatic import SamAutomaticMaskGenerator
from hqsam.data.instances import InstanceSet
from hqsam.engine.evaluation.columns import choose_columns, column_scores, describe_scores
from hqsam.engine.evaluation.instances import read_annotated_image
from hqsam.errors import DataError
from hqsam.metrics import ProposalRecord, ProposalSample, ProposalScores
from hqsam.metrics.instance_records import ImageId
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.rle import Rle
from hqsam.types import Fusion, ScoreSource


@dataclass(frozen=True, kw_only=True)
class ProposalOptions:
    """How proposals are made.

    Attributes:
        columns: of "sam", "hq", "sum"; empty for all that the model has.
        points_per_side: of the grid that is asked.
        box_nms_thresh: of two masks whose boxes overlap by more than this IoU, the one of the lower predicted IoU is
            dropped.
        max_images: only the first images of each set; None for all.
        score: what predicts the IoU, as in `SamPredictor.predict`.
    """

    columns: tuple[Fusion, ...] = ()
    points_per_side: int = 64
    box_nms_thresh: float = 0.9
    max_images: int | None = None
    score: ScoreSource | None = None


@dataclass(frozen=True)
class ProposalItem:
    """One image.

    Attributes:
        set: name of the set.
        image: its id there.
        path: the image file.
        size_hw: (height, width) that the annotations are drawn on.
    """

    set: str
    image: ImageId
    path: Path
    size_hw: tuple[int, int]

    @property
    def key(self) -> str:
        """Unique among the items of a task."""
        return f"{self.set}/{self.image}"


class ProposalTask:
    """Asks a grid of points in every image and compares all that it finds with the annotated instances.

    Every column is a search of its own: duplicates are dropped among its masks, so the numbers of proposals differ.

    Args:
        model: in evaluation mode.
        sets: the annotated sets, names unlike each other; see `open_proposal_sets`.
        options: see `ProposalOptions`; its `max_images` is applied here.

    Raises:
        ValueError: the model cannot give a column that was asked for, or a number is out of its range.
        DataError: there is no set.
    """

    def __init__(self, model: Sam, sets: Sequence[InstanceSet], options: ProposalOptions | None = None) -> None:
        self.options = o = options or ProposalOptions()
        if o.max_images is not None and o.max_images < 1:
            raise ValueError(f"max_images must be at least 1 or None, got {o.max_images}")
        if not sets:
            raise DataError("nothing to evaluate: no data set")
        self.predictor = SamPredictor(model)
        self.columns = choose_columns(model, o.columns)
        self.scores = column_scores(model, self.columns, o.score)
        self.generators = {
            column: SamAutomaticMaskGenerator(
                model,
                points_per_side=o.points_per_side,
                pred_iou_thresh=0.0,
                stability_score_thresh=0.0,
                box_nms_thresh=o.box_nms_thresh,
                output_mode="coco_rle",
                fusion=column,
                candidates="all",
                score=self.scores[column],
            )
            for column in self.columns
        }
        kept = [each.first(o.max_images) for each in sets]
        self.items = [
            ProposalItem(each.name, number, path, each.truth.images[number].size_hw)
            for each in kept
            for number, path in sorted(each.images.items())
        ]
        self.evaluator = ProposalScores({each.name: each.truth for each in kept})

    def load(self, item: ProposalItem) -> NDArray[np.uint8]:
        """The image, (H, W, 3) uint8 RGB.

        Raises:
            DataError: it cannot be read, or is not of the size that its annotations are drawn on.
        """
        return read_annotated_image(item.path, item.size_hw)

    def run(self, item: ProposalItem, loaded: NDArray[np.uint8]) -> list[ProposalRecord]:
        """Search an image, encoded once, in every column.

        A mask without a pixel is no proposal. The masks are not kept: the record says which instances they overlap.

        Args:
            item: of `items`.
            loaded: what `load` returned for it.
        """
        self.predictor.set_image(loaded)
        features = self.predictor.get_features()
        self.predictor.reset_image()
        masks: dict[str, list[Rle]] = {}
        scores: dict[str, list[float]] = {}
        for column, generator in self.generators.items():
            found = [record for record in generator.generate(loaded, features=features) if record["area"]]
            masks[column] = [record["segmentation"] for record in found]
            scores[column] = [(record["predicted_iou"] + record["stability_score"]) / 2 for record in found]
        return [self.evaluator.compare(ProposalSample(item.set, item.image, scores, masks))]

    def describe(self) -> dict[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        o = self.options
        return {
            "prompt": f"{o.points_per_side} x {o.points_per_side} points",
            "masks": "three a point, in column hq one; none is filtered out",
            "duplicates": f"boxes that overlap by more than {o.box_nms_thresh:g}; the higher predicted IoU stays",
            "score": "mean of predicted IoU and stability",
            "score_source": describe_scores(self.scores),
            "max_images": "all" if o.max_images is None else o.max_images,
            "resolution": self.predictor.model.image_size,
            "columns": list(self.columns),
            **self.evaluator.describe(),
        }
