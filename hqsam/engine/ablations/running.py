"""Training and evaluating one variant, as far as that is not done yet, and the file that says what is done."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hqsam.checkpoints import atomic_path
from hqsam.engine.ablations.config import Variant
from hqsam.engine.config import default_values, flatten_config
from hqsam.engine.distributed import World, from_main
from hqsam.engine.evaluation.config import EvalConfig
from hqsam.engine.evaluation.program import run as run_evaluation
from hqsam.engine.evaluation.runner import EvaluationStopped
from hqsam.engine.logs import read_entries
from hqsam.engine.signals import StopSignals
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.training import Run, finish, open_run
from hqsam.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

RESULT = "result.json"
_FREE = (
    "output_dir",
    "resume",
    "device",
    "plots",
    "data.root",
    "data.workers",
    "data.batch_size",
    "data.check",
    "data.val",
    "data.val_holdout",
    "data.val_per_source",
    "data.val_synthetic",
    "loop.log_every",
    "loop.val_every",
    "loop.save_every",
    "loop.keep_last",
    "loop.encode_batch",
    "loop.panels",
)
"""Settings that change no number of the table."""

Content = dict[str, Any]


def run_variant(variant: Variant, world: World) -> bool:
    """Train and evaluate a variant; what its result file has already is not done again. Every process calls this.

    Returns:
        False if a signal ended it; the same call goes on from there.

    Raises:
        ConfigError: its folder holds a run with other settings.
        HqsamError: see `train` and `evaluate`.
    """
    result = from_main(lambda: read_result(variant), world)
    settings = identity(variant.train)
    _require_same(variant, result.get("settings", settings), settings)
    if "training" not in result:
        logger.info("%s: training", variant.name)
        run = open_run(variant.train, world)
        result = {"name": variant.name, "settings": settings}
        _write(variant, result, world)  # before the first step, so that none is taken with other settings
        if not finish(run):
            return False
        result["training"] = _facts(run)
        _write(variant, result, world)
        del run
    for title, config in variant.evaluations.items():
        wanted = {"settings": identity(config)}
        done = result.setdefault("evaluations", {}).get(title)
        if done is not None and done["settings"] == wanted["settings"]:
            continue
        logger.info("%s: evaluation %s", variant.name, title)
        with StopSignals() as signals:
            try:
                scores = run_evaluation(config, world, signals)
            except EvaluationStopped:
                return False
        result["evaluations"][title] = {**wanted, **scores.as_dict()}
        _write(variant, result, world)
    return True


def read_result(variant: Variant) -> Content:
    """What is done of a variant; empty where nothing is.

    Raises:
        DataError: the file is damaged.
    """
    path = variant.folder / RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it, the variant is then evaluated again") from error
    if not isinstance(content, dict) or "settings" not in content:
        raise DataError(f"{path} is not the result of a variant; delete it")
    return content


def finished_result(variant: Variant, result: Content) -> Content | None:
    """A result as the table takes it, with the evaluations that are asked for; None if one is missing or outdated."""
    if "training" not in result or _differences(result["settings"], identity(variant.train)):
        return None
    evaluations = result.get("evaluations", {})
    for title, config in variant.evaluations.items():
        if title not in evaluations or evaluations[title]["settings"] != identity(config):
            return None
    return {**result, "evaluations": {title: evaluations[title] for title in variant.evaluations}}


def identity(config: TrainConfig | EvalConfig) -> Content:
    """Every setting that a number may depend on, as JSON has it."""
    values = {key: value for key, value in flatten_config(config).items() if key not in _FREE}
    if isinstance(config, TrainConfig):  # where features are kept is free; whether they are is half precision or full
        values["data.keep_features"] = values["data.keep_features"] is not None
    else:
        del values["model.checkpoint"]  # which training has written
    content: Content = json.loads(json.dumps(values))
    return content


def _require_same(variant: Variant, done: Content, wanted: Content) -> None:
    if found := _differences(done, wanted):
        lines = [f"{key} was {was!r}, is {now!r}" for key, (was, now) in found.items()]
        raise ConfigError(
            f"{variant.folder} holds the variant {variant.name!r} with other settings:\n  "
            + "\n  ".join(lines)
            + "\nset them back, delete the folder, or name another output_dir"
        )


def _differences(done: Content, wanted: Content) -> dict[str, tuple[Any, Any]]:
    """Settings that differ; one that did not exist then was what its default is now."""
    defaults: Content = json.loads(json.dumps(default_values(TrainConfig)))
    known = {**{key: value for key, value in defaults.items() if key in wanted}, **done}
    return {key: (known.get(key), value) for key, value in wanted.items() if known.get(key) != value}


def _facts(run: Run) -> Content:
    """What the table says about a finished training run."""
    return {
        "head": run.trainer.model.head,
        "parameters": sum(parameter.numel() for parameter in run.trainer.parameters),
        "images": len(run.records.train),
        "generated": run.config.data.synthetic,
        "steps": run.trainer.step,
        "samples": run.trainer.step * run.trainer.plan.global_batch,
        "seconds": round(from_main(lambda: training_seconds(run.folder), run.world), 2),
    }


def training_seconds(folder: Path) -> float:
    """Seconds of all steps of a run, over interruptions: without encoding, validation and what was lost."""
    total, before = 0.0, 0
    for entry in read_entries(folder / "log.jsonl"):
        if "step_seconds" in entry:
            total += (entry["step"] - before) * entry["step_seconds"]
            before = entry["step"]
    return total


def _write(variant: Variant, result: Mapping[str, Any], world: World) -> None:
    def write() -> None:
        with atomic_path(variant.folder / RESULT) as temporary:
            temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    from_main(write, world)
