"""Masks from boxes of the true masks: mIoU and boundary mIoU of a model on image sets, every object once."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.data import ImageRecord, load_object_masks
from hqsam.engine.distributed import World
from hqsam.engine.evaluation.config import EvalOptions
from hqsam.engine.evaluation.plan import THIN, EvalItem, is_thin, plan_items
from hqsam.engine.evaluation.protocols import INSIDE, MaskPath, make_path
from hqsam.engine.evaluation.report import EvalResult
from hqsam.engine.evaluation.runner import RunOptions, run_task
from hqsam.engine.evaluation.task import Outcome, ScorePool
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.metrics import MaskRecord, MaskSample, MaskScores, score_masks
from hqsam.metrics.evaluator import SetScores, mean_of_sets
from hqsam.metrics.mask_scores import mean_of_records
from hqsam.models import Sam
from hqsam.segmentation import GPU_BATCH

logger = logging.getLogger(__name__)

CRUMB = 10
"""Objects of fewer pixels are a slice of their own."""
_VERSIONS = ("hqsam", "torch", "timm", "numpy", "opencv-python")

LoadedImage = tuple[NDArray[np.uint8], list[NDArray[np.uint8]]]
"""(H, W, 3) RGB and the masks, (H, W) grey values, of the item's objects."""


class MaskTask:
    """The task (see `Task`) of scoring single masks, prompted with the box of the true mask.

    Args:
        model: the model; an HQ model whose head is untrained is scored as the plain SAM that it contains.
        records: images of one or several data sets.
        options: protocol, prompts and limits.

    Raises:
        ValueError: the model cannot give what the options ask for.
        DataError: an image twice, or none.
    """

    def __init__(self, model: Sam, records: Sequence[ImageRecord], options: EvalOptions) -> None:
        self.model = model
        self.options = options
        self.path: MaskPath = make_path(model, options)
        self.items = plan_items(records, options.max_per_source)
        self.batch_size = options.batch_size or (1 if model.device.type == "cpu" else GPU_BATCH)

    def key(self, item: EvalItem) -> str:
        """See `Task`."""
        return item.record.key

    def load(self, item: EvalItem) -> LoadedImage:
        """See `Task`."""
        image = read_image(item.record.image)
        objects = [item.record.objects[position] for position in item.objects]
        return image, load_object_masks(objects, image.shape[:2], item.record.image)

    def run(self, group: Sequence[tuple[EvalItem, LoadedImage]], pool: ScorePool) -> list[Outcome[MaskRecord]]:
        """See `Task`; objects without a pixel have no box and are left out."""
        filled = [
            {k: target for k, target in zip(item.objects, targets, strict=True) if (target > INSIDE).any()}
            for item, (_, targets) in group
        ]
        asked = [(image, list(targets.values())) for (_, (image, _)), targets in zip(group, filled, strict=True)]
        some = [pair for pair in asked if pair[1]]
        predicted = self.path(some)
        outcomes = []
        for (item, _), targets in zip(group, filled, strict=True):
            masks = next(predicted) if targets else iter(())
            records = [
                pool.submit(
                    score_masks,
                    MaskSample(item.set, item.image, position, "box", columns, target > INSIDE),
                    self.options.dilation_ratio,
                )
                for (position, target), columns in zip(targets.items(), masks, strict=True)
            ]
            empty = [f"{item.set}/{item.image}, object {k}" for k in item.objects if k not in targets]
            outcomes.append(Outcome(records, empty))
        return outcomes

    def parse(self, entry: dict[str, Any]) -> MaskRecord:
        """See `Task`."""
        return MaskRecord(**entry)

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {
            **self.path.describe(),
            "prompt": self.options.prompts,
            "box_source": "tight box of the true mask, inclusive pixels",
            "true_mask": f"grey value > {INSIDE}",
            "dilation_ratio": self.options.dilation_ratio,
            "average": "over the objects of a set, then over sets",
            "max_per_source": "all" if self.options.max_per_source is None else self.options.max_per_source,
            **describe_model(self.model),
        }

    def summarise(self, records: Sequence[MaskRecord], left_out: Sequence[str]) -> EvalResult:
        """See `Task`."""
        if left_out:
            logger.warning("%d objects have no pixel and are left out, first %s", len(left_out), left_out[0])
        if not records:
            raise DataError(f"nothing to score: none of {len(left_out)} objects has a pixel; are the masks empty?")
        scores = MaskScores(self.options.dilation_ratio)
        scores.merge([list(records)])
        computed = scores.compute()
        names = dict.fromkeys(item.set for item in self.items)
        sets = {name: computed[name] for name in names if name in computed}
        thin = {(item.set, item.image, k) for item in self.items for k in item.objects if is_thin(item, k)}
        ordered = scores.state()
        thin_records = [record for record in ordered if (record.set, record.image, record.object) in thin]
        slices = {f"thin >= {THIN}": mean_of_records(thin_records)} if thin_records else {}
        slices |= crumb_slices(ordered)
        protocol = {**self.describe(), "objects_left_out": len(left_out)}
        return EvalResult(sets, mean_of_sets(sets), protocol, slices, ordered)


def crumb_slices(records: Sequence[MaskRecord]) -> dict[str, SetScores]:
    """The objects that are not tiny, and those that are, where some are: of a pixel or two an IoU says little."""
    crumbs = [record for record in records if record.pixels is not None and record.pixels < CRUMB]
    if not crumbs or len(crumbs) == len(records):
        return {}
    large = [record for record in records if record.pixels is None or record.pixels >= CRUMB]
    return {f"pixels >= {CRUMB}": mean_of_records(large), f"pixels < {CRUMB}": mean_of_records(crumbs)}


def evaluate(
    model: Sam,
    records: Sequence[ImageRecord],
    options: EvalOptions | None = None,
    *,
    world: World | None = None,
    progress: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> EvalResult:
    """Score a model on images with true masks.

    Every process of the group has to call this with the same arguments; each predicts a part of the images and all of
    them get the result. The numbers do not depend on the number of processes.

    Args:
        model: the model; an HQ model whose head is untrained is scored as the plain SAM that it contains.
        records: images of one or several data sets, from `open_dataset`. A set of the result is a record's source.
        options: protocol, prompts and limits.
        world: the group; None for this process alone.
        progress: show a progress bar (on the first process).
        stop: asked before every image; True ends the evaluation, on every process once each has ended its part.

    Returns:
        The numbers in percent; the records on the first process alone. Objects without a pixel have no box; they are
        left out and counted in the protocol.

    Raises:
        ValueError: the model cannot give what the options ask for.
        DataError: unreadable images or masks, an image twice, or nothing to score.
        EvaluationStopped: `stop` said so, on any process.
    """
    options = options or EvalOptions()
    task = MaskTask(model, records, options)
    was_training = model.training
    model.eval()
    try:
        how = RunOptions(options.workers, progress, stop, title="evaluation, images")
        return run_task(task, world or World(), how)[0]
    finally:
        model.train(was_training)


def describe_model(model: Sam) -> dict[str, Any]:
    """What every protocol says about the model and the programs."""
    return {
        "resolution": model.image_size,
        "model": {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
