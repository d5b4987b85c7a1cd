"""Boundary AP of masks that are there already: ours against the published method, in one process, the same numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.instance_masks import generate_set
from benchmarks.machine import describe_machine
from hqsam.metrics import InstanceScores

RATIO = 0.02
_NAMES = ("ap_b", "ap_b50", "ap_b75", "ap_bs", "ap_bm", "ap_bl")


class Clock:
    """Wall and processor seconds of a piece of work; the latter hardly depend on what else the machine does."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def time(self, work: Callable[[], Any]) -> Any:
        """Do it and note how long it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return result

    def row(self) -> dict[str, Any]:
        """Medians, and the numbers of each round."""
        return {
            "seconds": median(self.wall),
            "cpu_seconds": median(self.cpu),
            "seconds_rounds": self.wall,
            "cpu_seconds_rounds": self.cpu,
        }


def run(images: int, masks: int, rounds: int, report: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure both in alternating rounds.

    Args:
        images: of the generated set.
        masks: instances of each image, and as many predictions.
        rounds: turns of both.
        report: told what was just done.

    Returns:
        The machine, the settings, the numbers and the times, as JSON values.

    Raises:
        ValueError: the two do not give the same numbers.
    """
    import cv2

    from benchmarks.published_boundary import as_dataset, as_results, boundary_ap

    cv2.setNumThreads(1)
    truth, records = generate_set(images, masks)
    report("masks made")
    clocks = {"published method": Clock(), "ours": Clock(), "ours, AP and both boundary APs": Clock()}
    published, ours, everything = clocks.values()
    for turn in range(rounds):
        dataset, results = as_dataset(truth), as_results(records, "sum")
        expected = published.time(lambda: boundary_ap(dataset, results, RATIO))  # noqa: B023  runs at once
        report(f"round {turn + 1}: published method")
        found = ours.time(lambda: _ours(truth, records, ("ap_b",)))
        values = [found.get(name, -1.0) for name in _NAMES]
        if values != [-1.0 if value == -1 else 100.0 * value for value in expected.tolist()]:
            raise ValueError(f"the published method gives {expected.tolist()}, ours in percent {values}")
        everything.time(lambda: _ours(truth, records, ("ap", "ap_b", "ap_b_strict")))
        report(f"round {turn + 1}: ours")
    rows = {name: clock.row() for name, clock in clocks.items()}
    for row in rows.values():
        row["ratio"] = rows["published method"]["seconds"] / row["seconds"]
        row["cpu_ratio"] = rows["published method"]["cpu_seconds"] / row["cpu_seconds"]
    return {
        "benchmark": "boundary_ap",
        "machine": describe_machine(torch.device("cpu")),
        "settings": {"images": images, "masks": masks, "rounds": rounds, "ratio": RATIO},
        "numbers": dict(zip(_NAMES, values, strict=True)),
        "variants": rows,
    }


def _ours(truth: Any, records: Any, metrics: tuple[str, ...]) -> dict[str, float]:
    scores = InstanceScores({"made": truth}, metrics=metrics)
    scores.merge([records])
    return scores.compute()["made"]["sum"]


def command(
    images: Annotated[int, typer.Option(min=1, help="Images; COCO's val2017 has 5000.")] = 5000,
    masks: Annotated[int, typer.Option(min=1, help="Instances of an image, and as many predictions.")] = 7,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of both; the median counts.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")] = None,
    quick: Annotated[bool, typer.Option(help="20 images: does it run?")] = False,
) -> None:
    """Boundary AP: from masks to the numbers, against the published method.

    \b
    python -m benchmarks boundary_ap
    python -m benchmarks boundary_ap --images 500 --rounds 3 --json boundary_ap.json
    python -m benchmarks boundary_ap --quick
    """
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("making masks", total=None)
        count = 20 if quick else images
        result = run(count, masks, rounds, lambda text: bar.update(task, description=f"done: {text}"))
    output = Console()
    machine, settings = result["machine"], result["settings"]
    output.print(f"{machine['cpu']}, one thread; median of {rounds} rounds", highlight=False)
    output.print(f"{settings['images']} images of 480 x 640, {masks} instances and predictions each", highlight=False)
    for name, row in result["variants"].items():
        wall, cpu = (f"{row[f'{kind}seconds']:8.2f} {unit}" for kind, unit in (("", "s"), ("cpu_", "CPU s")))
        output.print(f"{name:32} {wall} {cpu} {row['ratio']:6.2f}x {row['cpu_ratio']:6.2f}x CPU", highlight=False)
    numbers = ", ".join(f"{name} {value:.2f}" for name, value in result["numbers"].items())
    output.print(f"both: {numbers}", highlight=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
