"""Cost curves: time and memory against the number of prompts, the size, the batch and the number of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.inference import PICTURE
from benchmarks.rounds import Job, run_job
from benchmarks.tables import machine_lines
from hqsam.engine.plots import Line, draw_plot

WORKER = "benchmarks.curves_worker"
MODELS = ("hq_vit_tiny", "hq_vit_b", "hq_test_tiny")


@dataclass(frozen=True)
class Curve:
    """What grows, and how far; `quick` is how far it goes to see whether it runs."""

    name: str
    title: str
    unit: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    model: str | None = None


CURVES = (
    Curve("prompts", "boxes on one image, 64 at a time, run lengths kept", "boxes", (1, 64, 256, 1024, 4096), (1, 3)),
    Curve("at_once", "boxes on one image in one call", "boxes", (1, 16, 64, 256, 1024), (1, 3)),
    Curve("side", "one box on a new square image", "pixels a side", (256, 512, 1024, 2048, 4096, 8192), (64, 96)),
    Curve("batch", "images with a box each, encoded together", "images", (1, 2, 4, 8), (1, 2)),
    Curve("images", "images with a box each, one after the other", "images", (1, 10, 50, 100, 150, 200), (1, 3)),
    Curve("calls", "the same on a tiny model", "images", (1, 100, 500, 1000, 1500, 2000), (1, 3), "hq_test_tiny"),
)


def run(
    curves: Sequence[Curve], model: str, device: str, threads: int, sizes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Measure the curves, each in a process of its own.

    Returns:
        The machine and the points by curve, as JSON values.
    """
    common = {"device": device, "threads": threads, "picture": str(PICTURE)}
    result: dict[str, Any] = {"benchmark": "curves", "model": model}
    result |= run_job(Job("facts", WORKER, {"curve": "facts", **common}))
    result["curves"] = {}
    for curve in curves:
        kind = "images" if curve.name == "calls" else curve.name
        spec = {"curve": kind, "model": curve.model or model, "sizes": list(sizes[curve.name]), **common}
        result["curves"][curve.name] = run_job(Job(curve.name, WORKER, spec))["points"]
    return result


def curve_table(curve: Curve, model: str, points: Sequence[Mapping[str, Any]]) -> Table:
    """One row a size; a row of images one after the other covers those since the row before."""
    steps = [point["size"] for point in points]
    if curve.name in ("images", "calls"):
        steps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    table = Table(title=f"{curve.model or model}: {curve.title}", title_justify="left")
    for head in (curve.unit, "s", "ms each", "MB above the model", "of it returned"):
        table.add_column(head, justify="right")
    for point, step in zip(points, steps, strict=True):
        each = point["seconds"] / (1 if curve.name == "side" else step) * 1e3
        above = "" if point["above_mb"] is None else f"{point['above_mb']:.0f}"
        returned = f"{point['returned_mb']:.0f}" if point["returned_mb"] else ""
        table.add_row(str(point["size"]), f"{point['seconds']:.3g}", f"{each:.3g}", above, returned)
    return table


def draw_curves(folder: Path, curves: Sequence[Curve], result: Mapping[str, Any]) -> None:
    """A plot of time and one of memory for each curve."""
    folder.mkdir(parents=True, exist_ok=True)
    for curve in curves:
        points = result["curves"][curve.name]
        sizes = [float(point["size"]) for point in points]
        seconds = [point["seconds"] for point in points]
        if curve.name in ("images", "calls"):
            seconds = [sum(seconds[: k + 1]) for k in range(len(seconds))]
        draw_plot(folder / f"{curve.name}_s.png", f"s, {curve.title}", [Line("s", sizes, seconds)], x_label=curve.unit)
        if all(point["above_mb"] is not None for point in points):
            above = [max(0.0, point["above_mb"] - point["returned_mb"]) for point in points]
            title = f"MB above the model and what is returned, {curve.title}"
            draw_plot(folder / f"{curve.name}_mb.png", title, [Line("MB", sizes, above)], x_label=curve.unit)


def command(
    curve: Annotated[list[str] | None, typer.Option(help=f"{', '.join(c.name for c in CURVES)}; repeat.")] = None,
    model: Annotated[str, typer.Option(help=f"{', '.join(MODELS)}.")] = "hq_vit_tiny",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 leaves its default.")] = 0,
    largest: Annotated[int | None, typer.Option(min=1, help="Leave out sizes above it.")] = None,
    plots: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write plots there.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")] = None,
    quick: Annotated[bool, typer.Option(help="Small sizes on a tiny model: does it run?")] = False,
) -> None:
    """Cost curves: time and memory against prompts, image size, batch and number of images.

    \b
    python -m benchmarks curves
    python -m benchmarks curves --curve prompts --curve images --plots plots
    """
    model = "hq_test_tiny" if quick else model
    for value, legal, option in (
        (model, MODELS, "--model"),
        *((n, tuple(c.name for c in CURVES), "--curve") for n in curve or []),
    ):
        if value not in legal:
            raise typer.BadParameter(f"{option} {value!r} is unknown; there are: {', '.join(legal)}")
    wanted = [c for c in CURVES if not curve or c.name in curve]
    sizes = {c.name: [n for n in (c.quick if quick else c.sizes) if largest is None or n <= largest] for c in wanted}
    if empty := [name for name, left in sizes.items() if not left]:
        raise typer.BadParameter(f"--largest {largest} leaves nothing of {', '.join(empty)}")
    result = run(wanted, model, device, threads or int(quick), sizes)
    output = Console()
    for line in machine_lines(result):
        output.print(line, highlight=False)
    for each in wanted:
        output.print(curve_table(each, model, result["curves"][each.name]))
    if plots is not None:
        draw_curves(plots, wanted, result)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
