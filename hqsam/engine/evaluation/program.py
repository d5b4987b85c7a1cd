"""The program `python evaluate.py CONFIG.yaml [key=value ...]`; under ``torchrun`` it uses all the processes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hqsam.data import data_root
from hqsam.engine.allocator import keep_freed_memory
from hqsam.engine.config import describe_settings, load_config
from hqsam.engine.distributed import World, configure_logging, join_world
from hqsam.engine.evaluation.config import EvalConfig
from hqsam.engine.evaluation.opening import open_task
from hqsam.engine.evaluation.report import EvalResult, format_markdown, write_report
from hqsam.engine.evaluation.runner import EvaluationStopped, RunOptions, Timing, run_task
from hqsam.engine.evaluation.showing import remove_pictures
from hqsam.engine.signals import STOPPED, StopSignals
from hqsam.errors import ConfigError, HqsamError
from hqsam.features import weights_fingerprint
from hqsam.models import Sam
from hqsam.registry import create_model

logger = logging.getLogger(__name__)

USAGE = """usage: evaluate.py CONFIG.yaml [key=value ...]

example: python evaluate.py configs/eval/eval_hq.yaml model.name=hq_vit_tiny.embedded output_dir=runs/eval
"""


def run(config: EvalConfig, world: World | None = None, signals: StopSignals | None = None) -> EvalResult:
    """Evaluate as configured and write the run folder (on the first process).

    Args:
        config: the settings.
        world: the group; None for this process alone.
        signals: a signal ends the evaluation after the current images; the same call goes on from there.

    Raises:
        HqsamError: the configuration, a checkpoint or the data are unusable; nothing was written.
        EvaluationStopped: a signal came, to this process or another.
    """
    world = world or World()
    if not config.data.sets:
        raise ConfigError("data.sets is empty: name at least one data set, folder or index.json pack")
    with _as_config_error():
        name, checkpoint = config.model.name, config.model.checkpoint
        if checkpoint is None and "." not in name:
            checkpoint = "pretrained"
        model = _open_model(config, name, checkpoint, world)
        task, show = open_task(config, model)
    folder = Path(config.output_dir)

    def label(result: EvalResult) -> None:
        result.protocol["model"] = {"name": name, "checkpoint": checkpoint or name, **result.protocol["model"]}
        result.protocol["data"] = list(config.data.sets)
        if config.data.sources or config.data.holdout != "all":
            result.protocol["part"] = {"sources": config.data.sources or "all", "holdout": config.data.holdout}

    def write(result: EvalResult, timing: Timing) -> None:
        label(result)
        remove_pictures(folder)
        write_report(result, folder, timing.as_dict())

    options = RunOptions(
        workers=config.data.workers,
        progress=True,
        stop=lambda: signals is not None and signals.received,
        kept=folder / "partial",
        identity={"weights": weights_fingerprint(model), "data": _places(config)},
        title=f"evaluation, {config.task}",
        write=write,
    )
    result, _ = run_task(task, world, options)
    if world.is_main:
        show(result, folder)
    else:
        label(result)
    return result


def _open_model(config: EvalConfig, name: str, checkpoint: str | None, world: World) -> Sam:
    dtype: Literal["auto"] | None = "auto" if config.model.dtype == "auto" else None
    return create_model(name, checkpoint, device=world.device, dtype=dtype).eval()


def _places(config: EvalConfig) -> list[str]:
    """Where the data are: two folders may hold images of the same names."""
    sets = [str(Path(name).resolve()) if Path(name).exists() else name for name in config.data.sets]
    return [str(data_root(config.data.root).resolve()), *sets]


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
        Exit status: 0; 2 for bad input with one message on the standard error; 143 when a signal stopped it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        rows = [f"  {key:22} {default:12} {text}" for key, default, text in describe_settings(EvalConfig)]
        stream = sys.stdout if arguments else sys.stderr
        stream.write("\n".join([USAGE, "keys and defaults:", *rows]) + "\n")
        return 0 if arguments else 2
    try:
        config = load_config(EvalConfig, arguments[0], arguments[1:])
        with join_world(config.device) as world, StopSignals() as signals:
            configure_logging(world)
            keep_freed_memory(world.device)
            result = run(config, world, signals)
            if world.is_main:
                sys.stdout.write(format_markdown(result))
    except EvaluationStopped:
        logger.warning("stopped by %s; the same command goes on from here", signals.name)
        return STOPPED
    except HqsamError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
