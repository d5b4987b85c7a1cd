"""Evaluation of prompts other than the true box: clicks, random points, single points, boxes with noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hqsam.data import ImageRecord, load_object_masks
from hqsam.data.clicks import Click, central_click, correction_click, random_pixels, shaken_box, surplus_click
from hqsam.data.seeding import make_generator
from hqsam.engine.evaluation.columns import COLUMNS, choose_columns, column_scores, describe_scores
from hqsam.engine.evaluation.plan import plan_items
from hqsam.engine.evaluation.protocols import INSIDE, tight_box
from hqsam.images import read_image
from hqsam.metrics import mask_iou
from hqsam.metrics.boundary import DILATION_RATIO
from hqsam.metrics.clicks import NOC_TARGETS, PromptRecord, PromptSample, PromptScores, score_prompts
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.types import SCORE_SOURCES, Fusion, Refine, ScoreSource, Upsampling

PromptKind = Literal["clicks", "points", "point", "boxes", "negative", "corrections"]
Mask = NDArray[np.bool_]
Scores = dict[str, float]
"""Source -> what it says of a mask; empty where no correlations are measured."""


@dataclass(frozen=True, kw_only=True)
class ClickOptions:
    """What is asked.

    Attributes:
        prompts: which of the six: "clicks", each at the centre of what is still wrong; "points", random points of the
            object; "point", its central point alone, as in SAM's evaluation of single points; "boxes", the true box
            with noise; "negative", the true box and then one negative click where its answer took most of something
            else, with the box and the answer's logits; "corrections", the true box and then clicks as in "clicks".
        clicks: how many clicks.
        points: numbers of random points; smaller sets are the beginning of larger ones.
        noise: scales of the noise of the box, see `hqsam.data.clicks.shaken_box`.
        seed: of points and noise. They depend on it, the image and the object alone, so all columns get the same.
        noc_targets: mask IoU that the number of clicks is counted to.
        columns: "sam", "hq", "sum"; empty for all that the model has.
        max_per_source: only the first objects of each source; None for all.
        dilation_ratio: ring width of the boundary IoU as a share of the image diagonal.
        score: what chooses among three masks of a point, as in `SamPredictor.predict`.
        correlation: measure how well every score that the model has goes with the true IoU; each prompt is then
            answered once more for each further score.
        heed: `heed_clicks` of `SamPredictor.predict`.
        refine: of masks with HQ, as there; "again" and "again+again" go with the prompts "boxes" and "negative", since
            answers to clicks are fed back anyway and a single point has three.
        upsampling: of masks with HQ, as there.
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
    score: ScoreSource | None = None
    correlation: bool = False
    heed: bool = False
    refine: Refine = "none"
    upsampling: Upsampling = "bilinear"

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
        if self.heed and self.correlation:
            raise ValueError("scores are of masks before clicks are heeded: measure correlation without heed")
        if self.refine not in ("none", "again", "again+again"):
            raise ValueError(f'refine must be "none", "again" or "again+again", got {self.refine!r}')
        if self.refine != "none" and not set(self.prompts) <= {"boxes", "negative"}:
            raise ValueError(f"refine={self.refine!r} is for the prompts boxes and negative, got {list(self.prompts)}")
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


_Step = tuple[str, tuple[Mask, Scores]]
"""Name of a step, the mask and what is said of it."""


class ClickTask:
    """Prompts every object and scores the answers.

    Args:
        model: the model.
        records: from `open_dataset`.
        options: what is asked.

    Raises:
        ValueError: a column or score that the model cannot give.
        DataError: no image, or one twice.
    """

    def __init__(self, model: Sam, records: Sequence[ImageRecord], options: ClickOptions | None = None) -> None:
        self.options = options or ClickOptions()
        self.predictor = SamPredictor(model)
        self.columns = choose_columns(model, self.options.columns)
        self.scores = column_scores(model, self.columns, self.options.score)
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
        records = []
        for k, target in todo:
            for kind in self.options.prompts:
                found = self.answers(kind, target, (item.key, k))
                masks = {column: {step: mask for step, (mask, _) in steps.items()} for column, steps in found.items()}
                scores = {column: {step: by for step, (_, by) in steps.items()} for column, steps in found.items()}
                kept = scores if self.options.correlation else {}
                removed = _removed(masks, target) if kind == "negative" else {}
                sample = PromptSample(item.set, item.image, k, kind, masks, [target], kept, removed)
                records.append(score_prompts(sample, self.options.dilation_ratio))
        return records

    def left_out(self, item: ClickItem, loaded: LoadedImage) -> list[str]:
        """Objects without a pixel."""
        return [
            f"{item.set}/{item.image}, object {k}"
            for k, target in zip(item.objects, loaded.targets, strict=True)
            if not target.any()
        ]

    def answers(
        self, kind: PromptKind, target: Mask, key: tuple[str, int]
    ) -> dict[str, dict[str, tuple[Mask, Scores]]]:
        """Column -> step -> mask of one object of the image that is set, and its scores.

        Args:
            kind: of prompts.
            target: (H, W) bool, with a pixel inside.
            key: of the image and the object, for the random draws.
        """
        make = {
            "clicks": self._clicks,
            "points": self._points,
            "point": self._point,
            "boxes": self._boxes,
            "negative": self._negative,
            "corrections": self._corrections,
        }[kind]
        return {column: dict(make(target, column, key)) for column in self.columns}

    def _clicks(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[_Step]:
        nothing = (np.zeros_like(target), Scores())
        for number, answer in enumerate(self._corrected(target, column, nothing), start=1):
            yield f"click{number}", answer

    def _corrections(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[_Step]:
        box = tight_box(target.view(np.uint8) * 255)
        masks, scores, logits = self._predict(column, box=box, multimask_output=False)
        answer = (masks[0], _of_row(scores, 0))
        yield "corrected0", answer
        for number, better in enumerate(self._corrected(target, column, answer, box, logits), start=1):
            yield f"corrected{number}", better

    def _corrected(
        self,
        target: Mask,
        column: Fusion,
        answer: tuple[Mask, Scores],
        box: NDArray[np.float32] | None = None,
        logits: NDArray[np.float32] | None = None,
    ) -> Iterator[tuple[Mask, Scores]]:
        """Each answer's low-resolution logits are the next prompt's mask; where nothing is wrong the answer stays."""
        clicks: list[Click] = []
        for _ in range(self.options.clicks):
            click = correction_click(answer[0], target, clicks)
            if click is not None:
                clicks.append(click)
                points = np.array([[c.x, c.y] for c in clicks], dtype=np.float32)
                labels = np.array([c.positive for c in clicks], dtype=np.int64)
                answer, logits = self._ask(column, points, labels, box, logits)
            yield answer

    def _points(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[_Step]:
        rng = make_generator(self.options.seed, "points", *key)
        drawn = rng.permutation(random_pixels(target, max(self.options.points), rng))
        for count in self.options.points:
            points = drawn[:count]
            yield f"points{count}", self._ask(column, points, np.ones(len(points), dtype=np.int64))[0]

    def _point(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[_Step]:
        """All that the column has for the central point: three masks, or HQ's one."""
        click = central_click(target)
        masks, scores, _ = self._predict(
            column, point_coords=np.array([[click.x, click.y]]), point_labels=np.array([1]), candidates="all"
        )
        best = int(np.argmax(scores[self.scores[column]]))
        oracle = max(range(len(masks)), key=lambda row: mask_iou(masks[row], target))
        for step, row in (("point", best), ("oracle", oracle)):
            yield step, (masks[row], _of_row(scores, row))

    def _boxes(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[_Step]:
        true_box = tight_box(target.view(np.uint8) * 255)
        for scale in self.options.noise:
            rng = make_generator(self.options.seed, "boxes", *key)  # the same draws at every scale
            box = shaken_box(true_box, scale, target.shape, rng)
            masks, scores, _ = self._predict(column, box=box, multimask_output=False)
            yield f"noise{scale:g}", (masks[0], _of_row(scores, 0))

    def _negative(self, target: Mask, column: Fusion, key: tuple[str, int]) -> Iterator[_Step]:
        box = tight_box(target.view(np.uint8) * 255)
        masks, scores, logits = self._predict(column, box=box, multimask_output=False)
        yield "box", (masks[0], _of_row(scores, 0))
        found = surplus_click(masks[0], target)
        if found is not None:
            point = np.array([[found[0].x, found[0].y]])
            masks, scores, _ = self._predict(
                column,
                point_coords=point,
                point_labels=np.array([0]),
                box=box,
                mask_input=logits,
                multimask_output=False,
            )
        yield "negative", (masks[0], _of_row(scores, 0))

    def _ask(
        self,
        column: Fusion,
        points: NDArray[np.float32],
        labels: NDArray[np.int64],
        box: NDArray[np.float32] | None = None,
        logits: NDArray[np.float32] | None = None,
    ) -> tuple[tuple[Mask, Scores], NDArray[np.float32]]:
        """(H, W) mask and (1, 4h, 4w) logits. A single point is ambiguous: it gets the best-scored of three masks."""
        masks, scores, low = self._predict(
            column,
            point_coords=points,
            point_labels=labels,
            box=box,
            mask_input=logits,
            multimask_output=box is None and len(points) == 1,
            candidates="all" if self.options.correlation else "best",
        )
        best = int(np.argmax(scores[self.scores[column]]))
        return (masks[best], _of_row(scores, best)), low[best : best + 1]

    def _predict(
        self, column: Fusion, **prompt: Any
    ) -> tuple[NDArray[np.bool_], dict[ScoreSource, NDArray[np.float32]], NDArray[np.float32]]:
        """(C, H, W) masks, their scores by source (the one in use first), (C, 4h, 4w) logits."""
        first = self.scores[column]
        refine = "none" if column == "sam" else self.options.refine
        upsampling = "bilinear" if column == "sam" else self.options.upsampling
        prompt = {**prompt, "fusion": column, "refine": refine, "heed_clicks": self.options.heed}
        prompt["upsampling"] = upsampling
        masks, scores, low = self.predictor.predict(**prompt, score=first)
        found = {first: scores}
        has_own = column != "sam" and self.predictor.model.score_head is not None
        for source in SCORE_SOURCES if self.options.correlation and has_own else ():
            if source != first:
                found[source] = self.predictor.predict(**prompt, score=source)[1]
        return masks, found, low

    def describe(self) -> Mapping[str, Any]:
        """What distinguishes these numbers from others, for the reports."""
        o = self.options
        texts = {
            "clicks": f"{o.clicks} clicks at the centre of the deepest wrong region, the first at the object's centre; "
            "logits fed back",
            "points": f"{', '.join(map(str, o.points))} random points of the object, seed {o.seed}",
            "point": "the object's central point; best-scored of the masks, and the best of them (oracle)",
            "negative": "true box, then with it a negative click at the centre of its answer's deepest surplus region, "
            "if that is 3 pixels deep; logits fed back",
            "corrections": f"true box, then with it {o.clicks} clicks as in clicks; logits fed back",
            "boxes": f"true box with noise of scale {', '.join(f'{s:g}' for s in o.noise)}, seed {o.seed}",
        }
        return {
            "prompts": {kind: texts[kind] for kind in o.prompts},
            "masks": "a single point: best-scored of three masks; several points or a box: the single mask",
            "columns": list(self.columns),
            "score_source": describe_scores(self.scores),
            "noc_targets": list(o.noc_targets),
            "dilation_ratio": o.dilation_ratio,
            **({"correlation": "scores with the truth"} if o.correlation else {}),
            **({"heed": "masks with HQ heed points"} if o.heed else {}),
            **({"refine": f"masks with HQ: {o.refine}"} if o.refine != "none" else {}),
            **({"upsampling": f"masks with HQ: {o.upsampling}"} if o.upsampling != "bilinear" else {}),
            "resolution": self.predictor.model.image_size,
            "max_per_source": "all" if o.max_per_source is None else o.max_per_source,
        }


def _removed(masks: Mapping[str, Mapping[str, Mask]], target: Mask) -> dict[str, dict[str, float]]:
    """Column -> which share of what its negative click was put on is gone; see `PromptRecord`."""
    removed = {}
    for column, steps in masks.items():
        found = surplus_click(steps["box"], target)
        if found is not None:
            click, region = found
            left = steps["negative"]
            shares = {"pixel": float(not left[click.y, click.x]), "region": 1 - float(left[region].mean())}
            removed[column] = shares
    return removed


def _of_row(scores: Mapping[ScoreSource, NDArray[np.float32]], row: int) -> Scores:
    return {source: float(values[row]) for source, values in scores.items()}
