"""From a configuration to the task that it asks for, and to what shows the results."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

from hqsam.data import ImageRecord, data_root, open_dataset, open_videos, select_records
from hqsam.data.boundaries import read_bsds
from hqsam.engine.evaluation.clicks import ClickOptions, ClickTask
from hqsam.engine.evaluation.config import EvalConfig, EvalOptions, TaskName
from hqsam.engine.evaluation.edges import EdgeOptions, EdgeTask
from hqsam.engine.evaluation.instances import InstanceOptions, open_instance_task
from hqsam.engine.evaluation.masks import MaskTask
from hqsam.engine.evaluation.mattes import MatteOptions, MatteTask
from hqsam.engine.evaluation.one_by_one import OneByOne
from hqsam.engine.evaluation.proposal_sets import open_proposal_sets
from hqsam.engine.evaluation.proposals import ProposalOptions, ProposalTask
from hqsam.engine.evaluation.report import EvalResult
from hqsam.engine.evaluation.showing import show_curves, show_edges, show_masks
from hqsam.engine.evaluation.task import Task
from hqsam.engine.evaluation.video import VideoOptions, VideoTask
from hqsam.errors import ConfigError
from hqsam.metrics import InstanceRecord, ProposalRecord
from hqsam.metrics.clicks import PromptRecord
from hqsam.metrics.edges import EdgeRecord
from hqsam.metrics.mattes import MatteRecord
from hqsam.models import Sam
from hqsam.types import ScoreSource

AnyTask = Task[Any, Any, Any]
Show = Callable[[EvalResult, Path], None]
"""Writes plots and pictures of a result into its run folder."""
_OF_SOME_TASKS: dict[str, tuple[tuple[TaskName, ...], Any]] = {
    "protocol": (("masks",), "predictor"),
    "refine": (("masks",), "default"),
    "upsampling": (("masks",), "default"),
    "dilation_ratio": (("masks", "video", "clicks"), 0.02),
    "score": (("clicks", "instances", "proposals"), "default"),
    "data.max_per_source": (("masks", "clicks", "mattes"), None),
    "data.sources": (("masks", "clicks", "mattes"), []),
    "data.holdout": (("masks", "clicks", "mattes"), "all"),
}
"""Keys that other tasks would pass over in silence -> who looks at them, and their default."""


def open_task(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    """The task of a configuration, and what shows its results.

    Raises:
        DataError: data sets are missing or unusable.
        ValueError: the model cannot give what is asked for.
    """
    for key, (tasks, default) in _OF_SOME_TASKS.items():
        if config.task not in tasks and attrgetter(key)(config) != default:
            raise ConfigError(f"{key} belongs to task={', '.join(tasks)}, not to task={config.task}")
    return _OPENERS[config.task](config, model)


def _masks(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    options = EvalOptions(
        protocol=config.protocol,
        refine=None if config.refine == "default" else config.refine,
        upsampling=None if config.upsampling == "default" else config.upsampling,
        prompts=config.prompts,
        columns=tuple(config.columns),  # type: ignore[arg-type]
        max_per_source=config.data.max_per_source,
        dilation_ratio=config.dilation_ratio,
        workers=config.data.workers,
        batch_size=config.data.batch_size,
    )
    task = MaskTask(model, _open_images(config), options)
    return task, lambda result, folder: show_masks(task, result, config.plots, folder)


def _instances(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    keys = config.instances
    options = InstanceOptions(
        columns=tuple(config.columns),  # type: ignore[arg-type]
        top_k=keys.top_k,
        max_images=keys.max_images,
        score=keys.score,
        rules=None if keys.rules == "auto" else keys.rules,
        class_agnostic=keys.class_agnostic,
        metrics=tuple(keys.metrics),
        score_source=_score(config),
    )
    inner = open_instance_task(model, _only_set(config), keys.boxes, options, root=_root(config))
    title = "instance AP and boundary AP in percent"
    return OneByOne(inner, model, name="instances", title=title, make_record=InstanceRecord), _show_nothing


def _video(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    keys = config.video
    options = VideoOptions(
        prompts=keys.prompts,
        boxes=None if keys.boxes is None else Path(keys.boxes),
        columns=tuple(config.columns),  # type: ignore[arg-type]
        frames=keys.frames,
        step=keys.step,
        margin=keys.margin,
        point=keys.point,
        dilation_ratio=config.dilation_ratio,
    )
    return VideoTask(model, open_videos(_only_set(config), root=_root(config)), options), _show_nothing


def _clicks(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    keys = config.clicks
    options = ClickOptions(
        prompts=tuple(keys.prompts),  # type: ignore[arg-type]
        clicks=keys.clicks,
        points=tuple(keys.points),
        noise=tuple(keys.noise),
        seed=keys.seed,
        score=_score(config),
        correlation=keys.correlation,
        heed=keys.heed,
        refine=keys.refine,
        upsampling=keys.upsampling,
        columns=tuple(config.columns),  # type: ignore[arg-type]
        max_per_source=config.data.max_per_source,
        dilation_ratio=config.dilation_ratio,
    )
    inner = ClickTask(model, _open_images(config), options)
    title = "IoU and boundary IoU in percent by prompt, and numbers of clicks"
    task = OneByOne(inner, model, name="clicks", title=title, make_record=PromptRecord)
    return task, lambda result, folder: show_curves(result, config.plots, folder)


def _edges(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    keys = config.edges
    options = EdgeOptions(
        columns=tuple(config.columns),  # type: ignore[arg-type]
        points_per_side=keys.points_per_side,
        thresholds=keys.thresholds,
        tolerance=keys.tolerance,
        max_images=keys.max_images,
    )
    prefix, _, split = _only_set(config).rpartition("_")
    if prefix != "bsds500":
        raise ConfigError(
            "task=edges takes bsds500_train, bsds500_val or bsds500_test, found below data.root; "
            f"got {config.data.sets[0]!r}"
        )
    inner = EdgeTask(model, read_bsds(data_root(_root(config)), split), options)
    title = "boundaries in percent"
    task = OneByOne(inner, model, name="edges", title=title, make_record=EdgeRecord, counted="images")
    return task, lambda result, folder: show_edges(result, config.plots, folder)


def _mattes(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    options = MatteOptions(
        columns=tuple(config.columns),  # type: ignore[arg-type]
        max_per_source=config.data.max_per_source,
    )
    inner = MatteTask(model, _open_images(config), options)
    title = "errors of soft masks: SAD in thousands, MSE, gradient"
    return OneByOne(inner, model, name="mattes", title=title, make_record=MatteRecord), _show_nothing


def _proposals(config: EvalConfig, model: Sam) -> tuple[AnyTask, Show]:
    keys = config.proposals
    options = ProposalOptions(
        columns=tuple(config.columns),  # type: ignore[arg-type]
        points_per_side=keys.points_per_side,
        box_nms_thresh=keys.box_nms_thresh,
        max_images=keys.max_images,
        score=_score(config),
    )
    sets = open_proposal_sets(
        config.data.sets, root=_root(config), max_images=keys.max_images, class_agnostic=keys.class_agnostic
    )
    inner = ProposalTask(model, sets, options)
    title = "average recall of proposals in percent"
    return OneByOne(inner, model, name="proposals", title=title, make_record=ProposalRecord), _show_nothing


_OPENERS: dict[TaskName, Callable[[EvalConfig, Sam], tuple[AnyTask, Show]]] = {
    "masks": _masks,
    "instances": _instances,
    "video": _video,
    "clicks": _clicks,
    "edges": _edges,
    "mattes": _mattes,
    "proposals": _proposals,
}


def _open_images(config: EvalConfig) -> list[ImageRecord]:
    records = [record for name in config.data.sets for record in open_dataset(name, root=_root(config))]
    return select_records(records, sources=config.data.sources or None, holdout=config.data.holdout)


def _score(config: EvalConfig) -> ScoreSource | None:
    return None if config.score == "default" else config.score


def _show_nothing(result: EvalResult, folder: Path) -> None:
    """For tasks whose numbers say it all."""


def _only_set(config: EvalConfig) -> str:
    if len(config.data.sets) != 1:
        raise ConfigError(f"task={config.task} takes one data set at a time, got data.sets={config.data.sets}")
    return config.data.sets[0]


def _root(config: EvalConfig) -> Path | None:
    return None if config.data.root is None else Path(config.data.root)
