"""Evaluation: mIoU and boundary mIoU of a model on data sets, every object once, in any number of processes.

`python evaluate.py CONFIG.yaml [key=value ...]`; under ``torchrun`` the same command uses all its processes.
"""

from __future__ import annotations

import logging
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hqsam.data import ImageRecord, load_object_masks, open_dataset
from hqsam.engine.allocator import keep_freed_memory
from hqsam.engine.config import describe_settings, load_config
from hqsam.engine.distributed import World, configure_logging, gather_objects, join_world
from hqsam.engine.evaluation.config import EvalConfig, EvalOptions
from hqsam.engine.evaluation.pictures import write_case_pictures
from hqsam.engine.evaluation.plan import THIN, EvalItem, is_thin, plan_items, shard
from hqsam.engine.evaluation.protocols import INSIDE, MaskPath, make_path
from hqsam.engine.evaluation.report import EvalResult, format_markdown, write_report
from hqsam.errors import ConfigError, DataError, HqsamError
from hqsam.images import read_image
from hqsam.metrics import MaskSample, MaskScores
from hqsam.metrics.mask_scores import mean_of_records, mean_of_sets
from hqsam.models import Sam
from hqsam.registry import create_model

logger = logging.getLogger(__name__)

USAGE = """usage: evaluate.py CONFIG.yaml [key=value ...]

example: python evaluate.py configs/eval/eval_hq.yaml model.name=hq_vit_tiny.embedded output_dir=runs/eval
"""
_VERSIONS = ("hqsam", "torch", "timm", "numpy", "opencv-python")


class EvaluationStopped(Exception):
    """An evaluation was asked to stop on one of its processes; there is no result."""


Loaded = tuple[EvalItem, NDArray[np.uint8], list[NDArray[np.uint8]]]


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

    Every process of the group has to call this with the same arguments; each predicts a contiguous part of the images
    and all of them get the result. The numbers do not depend on the number of processes.

    Args:
        model: the model; an HQ model whose head is untrained is scored as the plain SAM that it contains.
        records: images of one or several data sets, from `open_dataset`. A set of the result is a record's source.
        options: protocol, prompts and limits.
        world: the group; None for this process alone.
        progress: show a progress bar (on the first process).
        stop: asked before every image; True ends the evaluation, on every process once each has ended its part.

    Returns:
        The numbers in percent. Objects without a pixel have no box; they are left out and counted in the protocol.

    Raises:
        ValueError: the model cannot give what the options ask for.
        DataError: unreadable images or masks, an image twice, or nothing to score.
        EvaluationStopped: `stop` said so, on any process.
    """
    options, world = options or EvalOptions(), world or World()
    items = plan_items(records, options.max_per_source)
    mine = shard(items, world.rank, world.size)
    path = make_path(model, options)
    scores, left_out, stopped = MaskScores(options.dilation_ratio), [], False
    was_training = model.training
    model.eval()
    try:
        loaded = _read_ahead(mine, options.workers)
        for item, image, targets in _track(loaded, len(mine), progress and world.is_main):
            if stopped := stop():
                break
            filled = {k: t for k, t in zip(item.objects, targets, strict=True) if (t > INSIDE).any()}
            left_out += [f"{item.set}/{item.image}, object {k}" for k in item.objects if k not in filled]
            _score_image(path, scores, item, image, filled)
    finally:
        model.train(was_training)
    merged = MaskScores(options.dilation_ratio)
    parts = gather_objects((scores.state(), left_out, stopped), world)
    if any(part[2] for part in parts):
        raise EvaluationStopped
    merged.merge(part[0] for part in parts)
    empty = [name for part in parts for name in part[1]]
    if empty:
        logger.warning("%d objects have no pixel and are left out, first %s", len(empty), empty[0])
    if not merged.state():
        raise DataError(f"nothing to score: none of {len(empty)} objects has a pixel; are the masks empty?")
    return _summarise(merged, items, {**_describe(model, path, options), "objects_left_out": len(empty)})


def _score_image(
    path: MaskPath,
    scores: MaskScores,
    item: EvalItem,
    image: NDArray[np.uint8],
    targets: dict[int, NDArray[np.uint8]],
) -> None:
    if not targets:
        return
    predictions = path(image, list(targets.values()))
    for (position, target), predicted in zip(targets.items(), predictions, strict=True):
        scores.update(MaskSample(item.set, item.image, position, "box", predicted, target > INSIDE))


def _summarise(scores: MaskScores, items: Sequence[EvalItem], protocol: dict[str, Any]) -> EvalResult:
    computed = scores.compute()
    names = list(dict.fromkeys(item.set for item in items))
    sets = {name: computed[name] for name in names if name in computed}
    thin = {(item.set, item.image, k) for item in items for k in item.objects if is_thin(item, k)}
    records = scores.state()
    thin_records = [record for record in records if (record.set, record.image, record.object) in thin]
    slices = {f"thin >= {THIN}": mean_of_records(thin_records)} if thin_records else {}
    return EvalResult(sets, mean_of_sets(sets), protocol, slices, records)


def _describe(model: Sam, path: MaskPath, options: EvalOptions) -> dict[str, Any]:
    return {
        **path.describe(),
        "prompt": options.prompts,
        "box_source": "tight box of the true mask, inclusive pixels",
        "true_mask": f"grey value > {INSIDE}",
        "resolution": model.image_size,
        "dilation_ratio": options.dilation_ratio,
        "average": "over the objects of a set, then over sets",
        "max_per_source": "all" if options.max_per_source is None else options.max_per_source,
        "model": {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _VERSIONS}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _load(item: EvalItem) -> Loaded:
    image = read_image(item.record.image)
    objects = [item.record.objects[position] for position in item.objects]
    return item, image, load_object_masks(objects, image.shape[:2], item.record.image)


def _read_ahead(items: Sequence[EvalItem], workers: int) -> Iterator[Loaded]:
    """Images and masks in order; with workers the next ones are decoded while the model computes."""
    if workers == 0:
        yield from map(_load, items)
        return
    waiting: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            waiting.append(pool.submit(_load, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _track(loaded: Iterable[Loaded], total: int, visible: bool) -> Iterator[Loaded]:
    if not visible:
        yield from loaded
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("evaluation, images", total=total)
        for entry in loaded:
            yield entry
            bar.advance(task)


def run(config: EvalConfig, world: World | None = None) -> EvalResult:
    """Evaluate as configured and write the run folder (on the first process).

    Raises:
        HqsamError: the configuration, a checkpoint or the data are unusable; nothing was written.
    """
    world = world or World()
    records = _open_sets(config)
    with _as_config_error():
        name, checkpoint = config.model.name, config.model.checkpoint
        if checkpoint is None and "." not in name:
            checkpoint = "pretrained"
        dtype: Literal["auto"] | None = "auto" if config.model.dtype == "auto" else None
        model = create_model(name, checkpoint, device=world.device, dtype=dtype)
        options = EvalOptions(
            protocol=config.protocol,
            refine=None if config.refine == "none" else config.refine,
            prompts=config.prompts,
            columns=tuple(config.columns),  # type: ignore[arg-type]
            max_per_source=config.data.max_per_source,
            dilation_ratio=config.dilation_ratio,
            workers=config.data.workers,
        )
        path = make_path(model, options)
    result = evaluate(model, records, options, world=world, progress=True)
    result.protocol["model"] = {"name": name, "checkpoint": checkpoint or name, **result.protocol["model"]}
    result.protocol["data"] = list(config.data.sets)
    if world.is_main:
        folder = Path(config.output_dir)
        write_report(result, folder)
        items = plan_items(records, options.max_per_source)
        write_case_pictures(path, items, result.records, config.plots, folder / "plots")
    return result


def _open_sets(config: EvalConfig) -> list[ImageRecord]:
    if not config.data.sets:
        raise ConfigError("data.sets is empty: name at least one data set, folder or index.json pack")
    root = None if config.data.root is None else Path(config.data.root)
    return [record for name in config.data.sets for record in open_dataset(name, root=root)]


@contextmanager
def _as_config_error() -> Iterator[None]:
    """A model name or column that does not exist is a mistake in the configuration here."""
    try:
        yield
    except HqsamError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Program of `evaluate.py`.

    Args:
        arguments: configuration file and overrides; None takes those of the command line.

    Returns:
        Exit status: 0, or 2 for bad input with one message on the standard error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        rows = [f"  {key:22} {default:12} {text}" for key, default, text in describe_settings(EvalConfig)]
        stream = sys.stdout if arguments else sys.stderr
        stream.write("\n".join([USAGE, "keys and defaults:", *rows]) + "\n")
        return 0 if arguments else 2
    try:
        config = load_config(EvalConfig, arguments[0], arguments[1:])
        with join_world(config.device) as world:
            configure_logging(world)
            keep_freed_memory(world.device)
            result = run(config, world)
            if world.is_main:
                sys.stdout.write(format_markdown(result))
    except HqsamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
