"""`hqsam train` and `hqsam evaluate`, the same programs as train.py and evaluate.py, and `hqsam ablate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

Config = Annotated[str | None, typer.Argument(metavar="CONFIG", help="YAML file, e.g. one of configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that replace those of the file.")
]
Keys = Annotated[bool, typer.Option("--keys", help="List every setting with its default, and stop.")]


def train(config: Config = None, overrides: Overrides = None, keys: Keys = False) -> None:
    """Train an HQ head on images with masks; SAM stays frozen.

    \b
    hqsam train configs/train/smoke.yaml output_dir=runs/smoke
    hqsam train configs/train/hq_vit_l.yaml model.checkpoint=sam_vit_l_0b3195.pth
    torchrun --nproc_per_node=8 train.py configs/train/hq_vit_l.yaml model.checkpoint=sam_vit_l_0b3195.pth
    """
    if not keys:
        _require(config)
    from hqsam.engine.training import main

    _run(main, config, overrides, keys)


def evaluate(config: Config = None, overrides: Overrides = None, keys: Keys = False) -> None:
    """Measure SAM, HQ and SAM+HQ side by side on data sets with masks.

    \b
    hqsam evaluate configs/eval/hqseg44k_val.yaml model.checkpoint=sam_hq_vit_l.pth
    hqsam evaluate configs/eval/eval_hq.yaml data.sets=[data/samples] output_dir=runs/samples
    """
    if not keys:
        _require(config)
    from hqsam.engine.evaluation import main

    _run(main, config, overrides, keys)


def ablate(
    config: Config = None,
    overrides: Overrides = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="Run this variant alone; may be repeated.")
    ] = None,
    keys: Keys = False,
) -> None:
    """Train and evaluate variants of one run, and write one table.

    \b
    hqsam ablate configs/ablations/smoke.yaml
    hqsam ablate configs/ablations/hq_vit_tiny.yaml --only full train.loop.max_steps=100
    """
    if not keys:
        _require(config)
    from hqsam.engine.ablations import main

    _run(partial(main, only=only or ()), config, overrides, keys)


def _require(config: str | None) -> None:
    if config is None:
        raise ValueError("CONFIG is missing: give a YAML file, e.g. one of configs/ (--keys lists the settings)")


def _run(program: Callable[[list[str]], int], config: str | None, overrides: list[str] | None, keys: bool) -> None:
    arguments = ["--help"] if keys else [config or "", *(overrides or [])]
    raise typer.Exit(program(arguments))
