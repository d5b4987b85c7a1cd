"""Evaluation of soft mattes: the probability of each column's mask against a measured matte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.data import ImageRecord, load_object_masks
from hqsam.engine.evaluation.clicks import ClickItem
from hqsam.engine.evaluation.columns import choose_columns
from hqsam.engine.evaluation.plan import plan_items
from hqsam.engine.evaluation.protocols import INSIDE, tight_box
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.metrics.mattes import MatteRecord, MatteSample, MatteScores, score_mattes
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.types import Fusion

_CERTAIN = 30.0
"""Logits beyond this are as certain as float32 can say."""


@dataclass(frozen=True, kw_only=True)
class MatteOptions:
    """What is asked.

    Attributes:
        columns: "sam", "hq", "sum"; empty for all that the model has.
        max_per_source: only the first objects of each source; None for all.
    """

    columns: tuple[Fusion, ...] = ()
    max_per_source: int | None = None


class LoadedMattes(NamedTuple):
    """What a thread reads ahead."""

    image: NDArray[np.uint8]  # (H, W, 3)
    masks: list[NDArray[np.uint8]]  # (H, W) 0..255, whose boxes are the prompts
    mattes: list[NDArray[np.uint8]]  # (H, W) 0..255


class MatteTask:
    """Prompts every object that has a matte with the box of its mask and scores the soft answers.

    Args:
        model: the model.
        records: from `open_dataset`; objects without a matte are left out.
        options: what is asked.

    Raises:
        ValueError: a column that the model cannot give.
        DataError: no object has a matte, or an image comes twice.
    """

    def __init__(self, model: Sam, records: Sequence[ImageRecord], options: MatteOptions | None = None) -> None:
        self.options = options or MatteOptions()
        self.columns = choose_columns(model, self.options.columns)
        self.predictor = SamPredictor(model)
        with_mattes = [record for record in records if any(obj.alpha is not None for obj in record.objects)]
        if not with_mattes:
            raise DataError(f"none of {len(records)} images has a matte: index.json names one as `alpha`")
        self.items: Sequence[ClickItem] = []
        for item in plan_items(with_mattes, self.options.max_per_source):
            objects = tuple(k for k in item.objects if item.record.objects[k].alpha is not None)
            self.items.append(ClickItem(item.record.key, item.set, item.image, item.record, objects))
        self.evaluator = MatteScores()

    def load(self, item: ClickItem) -> LoadedMattes:
        """Read an image, its masks and its mattes.

        Raises:
            DataError: a file that cannot be read.
        """
        image = read_image(item.record.image)
        objects = [item.record.objects[position] for position in item.objects]
        masks, mattes = (
            load_object_masks(objects, image.shape[:2], item.record.image, use_alpha=use) for use in (False, True)
        )
        return LoadedMattes(image, masks, mattes)

    def run(self, item: ClickItem, loaded: LoadedMattes) -> list[MatteRecord]:
        """The records of one image; an object whose mask has no pixel cannot be prompted and gets none."""
        todo = [
            (k, tight_box(mask), matte)
            for k, mask, matte in zip(item.objects, loaded.masks, loaded.mattes, strict=True)
            if (mask > INSIDE).any()
        ]
        if todo:
            self.predictor.set_image(loaded.image)
        records = []
        for k, box, matte in todo:
            mattes: dict[str, NDArray[Any]] = {}
            for column in self.columns:
                logits, _, _ = self.predictor.predict(
                    box=box,
                    multimask_output=False,
                    return_logits=True,
                    fusion=column,
                    refine="none",
                    upsampling="bilinear",
                )
                mattes[column] = 1 / (1 + np.exp(-np.clip(logits[0], -_CERTAIN, _CERTAIN)))
            records.append(score_mattes(MatteSample(item.set, item.image, k, "box", mattes, matte)))
        return records

    def left_out(self, item: ClickItem, loaded: LoadedMattes) -> list[str]:
        """Objects without a pixel."""
        return [
            f"{item.set}/{item.image}, object {k}"
            for k, mask in zip(item.objects, loaded.masks, strict=True)
            if not (mask > INSIDE).any()
        ]

    def describe(self) -> Mapping[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        return {
            "prompts": "tight box of the true mask, inclusive pixels",
            "masks": "single mask; the matte is the sigmoid of its logits at the size of the image",
            "score": "whole image; SAD and gradient error in thousands, MSE within 0 and 1",
            "columns": list(self.columns),
            "resolution": self.predictor.model.image_size,
            "max_per_source": "all" if self.options.max_per_source is None else self.options.max_per_source,
        }
