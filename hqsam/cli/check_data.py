"""`hqsam check-data`: what is wrong with images and masks, before they are trained on."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hqsam.cli.options import JsonFlag

if TYPE_CHECKING:
    from hqsam.data.check import DataReport, OpenedSet

DEFECTS = 1
_CONFIG_SUFFIXES = (".yaml", ".yml")

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="WHAT...",
        help="Training configurations (with KEY=VALUE settings), data set names, folders, IMAGES:MASKS or index.json.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write pictures of the suspects, report.md and report.json.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes; 0 works in one. Default: one for each core, at most 16."),
]
Root = Annotated[
    str | None, typer.Option("--root", metavar="DIR", help="Where named sets are. Default: $HQSAM_DATA or data/.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Look at every file, also at those that an earlier check saw.")]


def check_data(
    targets: Targets,
    out: Out = None,
    workers: Workers = None,
    root: Root = None,
    fresh: Fresh = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at every image and mask, and say what is wrong with them.

    \b
    hqsam check-data data/samples
    hqsam check-data configs/train/smoke.yaml --out runs/check
    hqsam check-data my_images my_validation_images --json

    Errors keep an image or an object from being trained on; warnings and hints are for a person to look at. The sets
    are compared with each other, and a configuration's training data with its validation data, for photographs that
    occur twice. Exit code 0: no errors in the data; 1: errors; 2: bad usage.
    """
    from hqsam.data.check import VerdictCache, check_sets, default_cache_folder
    from hqsam.engine.terminal import progress_bar, terminal

    start = time.perf_counter()
    sets = _open(targets, root)
    with progress_bar(visible=terminal().is_terminal and not as_json) as bar:
        task = bar.add_task("images", total=sum(len(part.records) for part in sets))
        report = check_sets(
            sets,
            workers=min(16, os.cpu_count() or 1) if workers is None else workers,
            cache=VerdictCache(None if fresh else default_cache_folder()),
            advance=lambda count: bar.advance(task, count),
        )
    report.seconds = time.perf_counter() - start
    if out is not None:
        _write(report, sets, out)
    if as_json:
        typer.echo(json.dumps(report.to_json()))
    else:
        _print(report, out)
    raise typer.Exit(DEFECTS if report.findings("error") else 0)


def _open(targets: Sequence[str], root: str | None) -> list[OpenedSet]:
    """Everything that was named; settings belong to the configurations.

    Raises:
        ValueError: something cannot be opened, or settings without a configuration.
    """
    from hqsam.data import open_dataset
    from hqsam.data.check import OpenedSet
    from hqsam.data.folders import collecting_defects

    settings = [text for text in targets if re.match(r"[a-z_.]+=", text)]
    named = [text for text in targets if text not in settings]
    configs = [text for text in named if text.endswith(_CONFIG_SUFFIXES)]
    if settings and not configs:
        raise ValueError(f"{settings[0]!r} is a setting of a training configuration, and none was named")
    sets = []
    for text in named:
        if text in configs:
            sets += _open_config(text, settings, root, prefix=f"{text} " if len(named) > 1 else "")
            continue
        with collecting_defects() as defects:
            records = open_dataset(text, root=root)
        sets.append(OpenedSet(text, records, defects, use_alpha=True))
    if not sets:
        raise ValueError("WHAT is missing: name a training configuration, a data set, a folder or an index.json")
    return sets


def _open_config(path: str, settings: Sequence[str], root: str | None, prefix: str) -> list[OpenedSet]:
    from dataclasses import replace

    from hqsam.engine.config import load_config
    from hqsam.engine.data_check import open_sets
    from hqsam.engine.train_config import TrainConfig

    # a checkpoint that the user gives with each run is not needed here
    config = load_config(TrainConfig, path, ["model.checkpoint=null", *settings])
    if root is not None:
        config.data.root = root
    opened = open_sets(config.data, tolerant=True)
    if not opened:
        raise ValueError(f"{path} names no files: data.train and data.val are empty")
    return [replace(part, name=f"{prefix}{part.name}") for part in opened]


def _write(report: DataReport, sets: Sequence[OpenedSet], out: Path) -> None:
    from hqsam.data.check.pictures import contact_sheet
    from hqsam.images import write_image

    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(report.to_markdown(), encoding="utf-8")
    for number, (part, opened) in enumerate(zip(report.sets, sets, strict=True), start=1):
        records = {record.key: record for record in opened.records}
        for kind in dict.fromkeys(finding.kind for finding in part.findings if finding.kind != "mixed_masks"):
            chosen = [finding for finding in part.findings if finding.kind == kind]
            name = f"{number}_{kind}.png" if len(sets) > 1 else f"{kind}.png"
            write_image(out / name, contact_sheet(chosen, records, use_alpha=opened.use_alpha))


def _print(report: DataReport, out: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from hqsam.data.check.findings import KINDS
    from hqsam.data.check.report import describe_mask_files, first_examples

    console = Console()
    for part in report.sets:
        text = f"{part.name}: {part.images} images, {part.objects} objects; masks: {describe_mask_files(part)}"
        console.print(text, highlight=False, markup=False)
    groups = report.by_kind()
    if groups:
        table = Table("", "what", "count", "examples")
        for kind, found in groups.items():
            color = {"error": "red", "warning": "yellow", "hint": "blue"}[KINDS[kind].severity]
            label = f"[{color}]{KINDS[kind].severity}[/]"
            table.add_row(label, KINDS[kind].title, str(len(found)), first_examples(found))
        console.print(table)
    counts = {severity: len(report.findings(severity)) for severity in ("error", "warning", "hint")}
    summary = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
    console.print(
        f"{summary} ({report.seconds:.1f} s)" + (f", wrote {out}" if out else ""), highlight=False, markup=False
    )
