"""Evaluation of prompts other than the true box: clicks, random points, single points, boxes with noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hqsam.data import ImageRecord, load_object_masks
from hqsam.data.clicks import Click, central_click, correction_click, random_pixels, shaken_box
from hqsam.data.seeding import make_generator
from hqsam.engine.evaluation.columns import COLUMNS, choose_columns
from hqsam.engine.evaluation.plan import plan_items
from hqsam.engine.evaluation.protocols import INSIDE, tight_box
from hqsam.images import read_image
from hqsam.metrics import mask_iou
from hqsam.metrics.boundary import DILATION_RATIO
from hqsam.metrics.clicks import NOC_TARGETS, PromptRecord, PromptSample, PromptScores, score_prompts
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.types import Fusion

PromptKind = Literal["clicks", "points", "point", "boxes"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ClickOptions:
    """What is asked.

    Attributes:
        prompts: which of the four: "clicks", each at the centre of what is still wrong; "points", random points of the
            object; "point", its central point alone, as in SAM's evaluation of single points; "boxes", the true box
            with noise.
        clicks: how many clicks.
        points: numbers of random points; smaller sets are the beginning of larger ones.
        noise: scales of the noise of the box, see `hqsam.data.clicks.shaken_box`.
        seed: of points and noise. They depend on it, the image and the object alone, so all columns get the same.
        noc_targets: mask IoU that the number of clicks is counted to.
        columns: "sam", "hq", "sum"; empty for all that the model has.
        max_per_source: only the first objects of each source; None for all.
        dilation_ratio: ring width of the boundary IoU as a share of the image diagonal.
    """

    prompts: tuple[PromptKind, ...] = ("clicks",)
    clicks: int = 20
    points: tuple[int, ...] = (1, 3, 5, 7, 9)
    noise: tuple[float, ...] = (0.0, 0.2, 0.4)
    seed: int = 0
    noc_targets: tuple[float, ...] = NOC_TARGETS
    columns: tuple[Fusion, ...] = ()
    max_per_source: int | None = None
    dilation_ratio: float = DILATION_RATIO

    def __post_init__(self) -> None:
        """Refuse what cannot be asked, before anything is computed.

        Raises:
            ValueError: an unknown kind of prompt or column, none or one twice, or a number out of its range.
        """
        for name, given, legal in (("prompts", self.prompts, get_args(PromptKind)), ("columns", self.columns, COLUMNS)):
            if not set(given) <= set(legal) or len(set(given)) < len(given):
                raise ValueError(f"{name} must be different ones of {', '.join(legal)}, got {list(given)}")
        if not self.prompts:
            raise ValueError(f"prompts is empty: name some of {', '.join(get_args(PromptKind))}")
        if self.clicks < 1 or not self.points or min(self.points) < 1:
            raise ValueError(f"clicks and points must be at least 1, got {self.clicks} and {list(self.points)}")
        for name, numbers in (("points", self.points), ("noise", self.noise)):
            if len(set(numbers)) < len(numbers):
                raise ValueError(f"{name} must be different numbers, got {list(numbers)}")
        if not self.noise or not all(0 <= scale <= 1 for scale in self.noise):
            raise ValueError(f"noise must be scales within 0 and 1, got {list(self.noise)}")


class ClickItem(NamedTuple):
    """One image and the objects on it that are evaluated."""

    key: str
    set: str
    image: str
    record: ImageRecord
    objects: tuple[int, ...]


class LoadedImage(NamedTuple):
    """What a thread reads ahead."""

    image: NDArray[np.uint8]  # (H, W, 3)
    targets: tuple[Mask, ...]  # (H, W) bool, one for each object


class ClickTask:
    """Prompts every object and scores the answers.

    Args:
        model: the model.
        records: from `open_dataset`.
        options: what is asked.

    Raises:
        ValueError: a column that the model cannot give.
        DataError: no image, or one twice.
    """

    def __init__(self, model: Sam, records: Sequence[ImageRecord], options: ClickOptions | None = None) -> None:
        self.options = options or ClickOptions()
        self.predictor = SamPredictor(model)
        self.columns = choose_columns(model, self.options.columns)
        self.items: Sequence[ClickItem] = [
            ClickItem(item.record.key, item.set, item.image, item.record, item.objects)
            for item in plan_items(records, self.options.max_per_source)
        ]
        self.evaluator = PromptScores(self.options.dilation_ratio, self.options.noc_targets)

    def load(self, item: ClickItem) -> LoadedImage:
        """Read an image and its objects.

        Raises:
            DataError: a file that cannot be read.
        """
        image = read_image(item.record.image)
        objects = [item.record.objects[position] for position in item.objects]
        masks = load_object_masks(objects, image.shape[:2], item.record.image)
        return LoadedImage(image, tuple(mask > INSIDE for mask in masks))

    def run(self, item: ClickItem, loaded: LoadedImage) -> list[PromptRecord]:
        """Prompt the objects of one image; an object without a pixel cannot be prompted and gets no record."""
        todo = [(k, target) for k, target in zip(item.objects, loaded.targets, strict=True) if target.any()]
        if todo:
            self.predictor.set_image(loaded.image)
        return [
            score_prompts(
                PromptSample(item.set, item.image, k, kind, self.predictions(kind, target, (item.key, k)), [target]),
                self.options.dilation_ratio,
            )
            for k, target in todo
            for kind in self.options.prompts
        ]

    def left_out(self, item: ClickItem, loaded: LoadedImage) -> list[str]:
        """Objects without a pixel."""
        return [
            f"{item.set}/{item.image}, object {k}"
            for k, target in zip(item.objects, loaded.targets, strict=True)
            if not target.any()
        ]

    def predictions(self, kind: PromptKind, target: Mask, key: tuple[str, int]) -> dict[str, dict[str, Mask]]:
        """Column -> step -> mask of one object of the image that is set.

        Args:
            kind: of prompts.
            target: (H, W) bool, with a pixel inside.
            key: of the image and the object, for the random draws.
        """
        make = {"clicks": self._clicks, "points": self._points, "point": self._point, "boxes": self._boxes}[kind]
        return {column: dict(make(target, column, key)) for column in self.columns}

    def _clicks(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[tuple[str, Mask]]:
        """Each answer's low-resolution logits are the next prompt's mask; where nothing is wrong the answer stays."""
        clicks: list[Click] = []
        mask, logits = np.zeros_like(target), None
        for number in range(1, self.options.clicks + 1):
            click = correction_click(mask, target, clicks)
            if click is not None:
                clicks.append(click)
                points = np.array([[c.x, c.y] for c in clicks], dtype=np.float32)
                labels = np.array([c.positive for c in clicks], dtype=np.int64)
                mask, logits = self._ask(column, points, labels, logits)
            yield f"click{number}", mask

    def _points(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[tuple[str, Mask]]:
        rng = make_generator(self.options.seed, "points", *key)
        drawn = rng.permutation(random_pixels(target, max(self.options.points), rng))
        for count in self.options.points:
            points = drawn[:count]
            yield f"points{count}", self._ask(column, points, np.ones(len(points), dtype=np.int64), None)[0]

    def _point(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[tuple[str, Mask]]:
        """All that the column has for the central point: three masks, or HQ's one."""
        click = central_click(target)
        masks, scores, _ = self.predictor.predict(
            np.array([[click.x, click.y]]), np.array([1]), fusion=column, candidates="all"
        )
        yield "point", masks[int(np.argmax(scores))]
        yield "oracle", max(masks, key=lambda mask: mask_iou(mask, target))

    def _boxes(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[tuple[str, Mask]]:
        true_box = tight_box(target.view(np.uint8) * 255)
        for scale in self.options.noise:
            rng = make_generator(self.options.seed, "boxes", *key)  # the same draws at every scale
            box = shaken_box(true_box, scale, target.shape, rng)
            masks, _, _ = self.predictor.predict(box=box, multimask_output=False, fusion=column)
            yield f"noise{scale:g}", masks[0]

    def _ask(
        self, column: Fusion, points: NDArray[np.float32], labels: NDArray[np.int64], logits: NDArray[np.float32] | None
    ) -> tuple[Mask, NDArray[np.float32]]:
        """(H, W) mask and (1, 4h, 4w) logits. A single point is ambiguous: it gets the best-scored of three masks."""
        masks, scores, low = self.predictor.predict(
            points, labels, mask_input=logits, multimask_output=len(points) == 1, fusion=column
        )
        best = int(np.argmax(scores))
        return masks[best], low[best : best + 1]

    def describe(self) -> Mapping[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        o = self.options
        texts = {
            "clicks": f"{o.clicks} clicks at the centre of the deepest wrong region, the first at the object's centre; "
            "logits fed back",
            "points": f"{', '.join(map(str, o.points))} random points of the object, seed {o.seed}",
            "point": "the object's central point; best-scored of the masks, and the best of them (oracle)",
            "boxes": f"true box with noise of scale {', '.join(f'{s:g}' for s in o.noise)}, seed {o.seed}",
        }
        return {
            "prompts": {kind: texts[kind] for kind in o.prompts},
            "masks": "a single point: best-scored of three masks; several points or a box: the single mask",
            "columns": list(self.columns),
            "noc_targets": list(o.noc_targets),
            "dilation_ratio": o.dilation_ratio,
            "resolution": self.predictor.model.image_size,
            "max_per_source": "all" if o.max_per_source is None else o.max_per_source,
        }
