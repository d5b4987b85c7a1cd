"""Instance segmentation: boxes of a detector, or of the annotations, to one mask each, to AP and boundary AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.data.detections import Detections, ImageBoxes, read_detections, true_boxes
from hqsam.data.instance_opening import find_instance_card, open_instances
from hqsam.data.instances import InstanceSet
from hqsam.engine.evaluation.columns import choose_columns, column_scores, describe_scores
from hqsam.engine.evaluation.decoding import decode_boxes, encode_each
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.metrics import InstanceRecord, InstanceScores
from hqsam.metrics.instance_overlaps import METRICS
from hqsam.metrics.instance_records import ImageId, Score
from hqsam.metrics.instances import Rules
from hqsam.models import Sam
from hqsam.rle import Rle, encode_masks
from hqsam.types import Fusion, ScoreSource


@dataclass(frozen=True, kw_only=True)
class InstanceOptions:
    """How instance masks are predicted and scored.

    Attributes:
        columns: of "sam", "hq", "sum"; empty for all that the model has.
        top_k: only the best boxes of each image; None for all. COCO counts 100 of each category, LVIS 300 in all.
        max_images: only the first images of each set; None for all.
        score: what ranks the masks: "box" (the detector's score), "iou" (the mask's predicted IoU), "product" of both.
        rules: "coco" or "lvis"; None: as the set's card says, "coco" for a file.
        class_agnostic: whether classes are not looked at; None: as the set's card says, False for a file.
        metrics: of "ap", "ap_b", "ap_b_strict".
        score_source: what predicts the IoU, as in `SamPredictor.predict`.
    """

    columns: tuple[Fusion, ...] = ()
    top_k: int | None = None
    max_images: int | None = None
    score: Score = "box"
    rules: Rules | None = None
    class_agnostic: bool | None = None
    metrics: tuple[str, ...] = METRICS
    score_source: ScoreSource | None = None


@dataclass(frozen=True)
class InstanceItem:
    """One image and its boxes.

    Attributes:
        set: name of the set.
        image: its id there.
        path: the image file.
        size_hw: (height, width) that the annotations are drawn on.
        boxes: what is prompted with; may be empty.
    """

    set: str
    image: ImageId
    path: Path
    size_hw: tuple[int, int]
    boxes: ImageBoxes

    @property
    def key(self) -> str:
        """Unique among the items of a task."""
        return f"{self.set}/{self.image}"


def read_annotated_image(path: Path, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """An image, (H, W, 3) uint8 RGB, of the size that its annotations are drawn on.

    Raises:
        DataError: it cannot be read, or is of another size.
    """
    image = read_image(path)
    if image.shape[:2] != size_hw:
        raise DataError(
            f"{path} is {image.shape[1]} x {image.shape[0]}, its annotations are drawn on "
            f"{size_hw[1]} x {size_hw[0]} (width x height, upright)"
        )
    return image


class InstanceTask:
    """One single mask for every box, in every column, by `SamPredictor`; scored as `InstanceScores` does.

    Args:
        model: in evaluation mode.
        sets: the annotated sets.
        boxes: for each of them, in the same order.
        options: see `InstanceOptions`; its `top_k` and `max_images` are applied by `open_instance_task`.
        rules: whose rules AP follows.
        class_agnostic: whether classes are not looked at.

    Raises:
        ValueError: the model cannot give a column or score that was asked for.
    """

    def __init__(
        self,
        model: Sam,
        sets: Sequence[InstanceSet],
        boxes: Sequence[Detections],
        options: InstanceOptions | None = None,
        *,
        rules: Rules = "coco",
        class_agnostic: bool = False,
    ) -> None:
        options = options or InstanceOptions()
        self.model = model
        self.columns = choose_columns(model, options.columns)
        self.scores = column_scores(model, self.columns, options.score_source)
        self.options = options
        self._boxes = {each.name: found for each, found in zip(sets, boxes, strict=True)}
        self.items = [
            InstanceItem(each.name, number, path, each.truth.images[number].size_hw, found.images[number])
            for each, found in zip(sets, boxes, strict=True)
            for number, path in sorted(each.images.items())
        ]
        self.evaluator = InstanceScores(
            {each.name: each.truth for each in sets},
            score=options.score,
            rules=rules,
            class_agnostic=class_agnostic,
            metrics=options.metrics,
        )

    def load(self, item: InstanceItem) -> NDArray[np.uint8]:
        """The image, (H, W, 3) uint8 RGB.

        Raises:
            DataError: it cannot be read, or is not of the size that its annotations are drawn on.
        """
        return read_annotated_image(item.path, item.size_hw)

    def run(self, item: InstanceItem, loaded: NDArray[np.uint8]) -> list[InstanceRecord]:
        """Predict the masks of an image; memory is bounded whatever the number of boxes.

        Args:
            item: of `items`.
            loaded: what `load` returned for it.

        Returns:
            One record; without boxes its lists are empty, and the image is not encoded.
        """
        masks: dict[str, list[Rle]] = {column: [] for column in self.columns}
        ious: dict[str, list[float]] = {column: [] for column in self.columns}
        boxes, categories, scores = item.boxes
        if len(boxes):
            (encoded,) = encode_each(self.model, [loaded])
            for chunk in decode_boxes(self.model, encoded, boxes, self.columns, sources=self.scores):
                for column, decoded in chunk.items():
                    masks[column] += encode_masks(decoded.masks)
                    ious[column] += decoded.scores.tolist()
        return [InstanceRecord(item.set, item.image, list(categories), list(scores), ious, masks)]

    def describe(self) -> dict[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        sources = {name: found.describe() for name, found in self._boxes.items()}
        return {
            "prompt": "box, as it is given; XYXY = x, y, x + width, y + height of a detector's box",
            "boxes": sources,
            "top_k": "all" if self.options.top_k is None else self.options.top_k,
            "max_images": "all" if self.options.max_images is None else self.options.max_images,
            "masks": "single mask, upsampled to the original size, logit > 0",
            "resize": "long side to the resolution, padded with zeros at the bottom and on the right",
            "resolution": self.model.image_size,
            "columns": list(self.columns),
            "score_source": describe_scores(self.scores),
            **self.evaluator.describe(),
        }


def open_instance_task(
    model: Sam,
    name: str | Path,
    boxes: str | Path | None = None,
    options: InstanceOptions | None = None,
    *,
    root: str | Path | None = None,
) -> InstanceTask:
    """The task of a named set or an annotation file.

    Args:
        model: in evaluation mode.
        name: see `hqsam.data.instance_opening.open_instances`.
        boxes: JSON file of a detector's boxes; for a group of sets the folder that holds SET.json for each. None
            prompts with the tight boxes of the annotated masks.
        options: see `InstanceOptions`.
        root: where named sets are; None: $HQSAM_DATA, else `data`.

    Raises:
        DataError: annotations, images or boxes are missing or unusable.
        ValueError: the model or the options cannot give what was asked for.
    """
    options = options or InstanceOptions()
    card = find_instance_card(str(name))
    agnostic, rules = options.class_agnostic, options.rules
    if agnostic is None:
        agnostic = card is not None and card.class_agnostic
    if rules is None:
        rules = "coco" if card is None or agnostic else card.rules
    sets = open_instances(name, root=root, class_agnostic=agnostic)
    if rules == "lvis":
        for each in sets:
            _require_lvis(each)
    found = [_boxes_of(each, boxes, options.top_k, agnostic, len(sets) > 1) for each in sets]
    kept = [each.first(options.max_images) for each in sets]
    return InstanceTask(model, kept, found, options, rules=rules, class_agnostic=agnostic)


def _require_lvis(each: InstanceSet) -> None:
    from hqsam.metrics.lvis_matching import require_lvis

    try:
        require_lvis(each.truth)
    except (ImportError, ValueError) as error:
        raise DataError(f"{each.name} cannot be scored by LVIS's rules: {error}") from error


def _boxes_of(
    each: InstanceSet, boxes: str | Path | None, top_k: int | None, class_agnostic: bool, is_group: bool
) -> Detections:
    """All boxes of the whole set, so that a file of another set is noticed however few images are evaluated."""
    if boxes is None:
        return true_boxes(each.truth)
    path = Path(boxes)
    if is_group and not path.is_dir():
        raise DataError(f"boxes of a group of sets are a folder with {each.name}.json and so on, got {path}")
    file = path / f"{each.name}.json" if path.is_dir() else path
    return read_detections(file, each.truth, top_k=top_k, class_agnostic=class_agnostic)
