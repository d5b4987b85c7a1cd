"""Training: samples/s and memory of `hqsam train` against the published loop, on the same samples."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.rounds import TUNED, Job, alternate, medians, run_job
from benchmarks.tables import describe, train_table

WORKER = "benchmarks.train_worker"
MODELS = ("vit_tiny", "vit_b", "vit_l", "vit_h", "test_vit", "test_tiny")
RECIPE_SAMPLES = 531_000
"""Samples of the published recipe: 12 epochs of HQSeg-44K."""
BASE = "published"


@dataclass(frozen=True)
class Variant:
    """A way of training.

    Attributes:
        name: in the table.
        kind: of loop, see `benchmarks.train_worker`.
        options: what differs from the common settings.
        environment: variables of its process.
        needs: "" or what the machine must have: "cpu", "bf16".
    """

    name: str
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""


VARIANTS = (
    Variant(BASE, "published"),
    Variant("published, tuned allocator", "published", environment=TUNED, needs="cpu"),
    Variant("ours", "ours"),
    Variant("ours, allocator left alone", "ours", environment={"HQSAM_MALLOC": "0"}, needs="cpu"),
    Variant("ours, bf16", "ours", {"amp": "bf16"}, needs="bf16"),
    Variant("ours, 4 prompts an image", "ours", {"prompts": 4}),
    Variant("ours, bf16, 4 prompts an image", "ours", {"amp": "bf16", "prompts": 4}, needs="bf16"),
    Variant("ours, kept encoder outputs", "ours", {"keep": "features"}),
)
QUICK_VARIANTS = (BASE, "ours", "ours, kept encoder outputs")


@dataclass(frozen=True)
class Settings:
    """What all variants of a run have in common; zeros are filled in by device."""

    device: str
    batch: int
    rounds: int
    steps: int
    warmup: int
    seconds: float
    workers: int
    threads: int
    pictures: int

    def spec(self, kind: str, model: str, data: Path, keep: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a worker is told."""
        common = {name: getattr(self, name) for name in ("device", "steps", "warmup", "seconds", "workers", "threads")}
        kept = str(keep) if "keep" in options else None
        own = {"kind": kind, "model": f"hq_{model}", "data": str(data), "batch": self.batch, "prompts": 1, "amp": "off"}
        return {**common, **own, **options, "keep": kept}


def available(variant: Variant, facts: Mapping[str, Any]) -> bool:
    """Whether a variant means something on this machine."""
    has = {"": True, "cpu": facts["machine"]["device"] == "cpu", "bf16": facts["bf16_units"]}
    return bool(has[variant.needs])


def add_ratios(
    rows: dict[str, dict[str, Any]], variants: Sequence[Variant], facts: Mapping[str, Any], model: str
) -> None:
    """Write to each row what follows from it: the ratio to the published loop, the share of the peak, the recipe."""
    base = rows.get(BASE, {}).get("samples_per_second")
    for variant in variants:
        row, prompts = rows[variant.name], variant.options.get("prompts", 1)
        flop = facts["flop"][f"hq_{model}"][str(prompts)]
        # A kept output spares the encoder: what is useful there is the decoder's work alone.
        useful = (flop["decoder"] + (0.0 if "keep" in variant.options else flop["encoder"])) / prompts
        rate = facts["matrix_rates"]["bfloat16" if variant.options.get("amp") == "bf16" else "float32"]
        row["ratio"] = row["samples_per_second"] / base if base else None
        row["matrix_share"] = useful * row["samples_per_second"] / rate
        row["recipe_hours"] = RECIPE_SAMPLES / row["samples_per_second"] / 3600


def run(
    models: Sequence[str],
    settings: Settings,
    names: Sequence[str] = (),
    images: str | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure every model's variants in alternating rounds.

    Args:
        models: keys of `MODELS`.
        settings: common to all.
        names: of the variants; empty for all that the machine can do.
        images: a data set to train on, as `data.train` takes it; None generates pictures.
        report: told what was just done.

    Returns:
        The machine, the settings, and by model each variant's medians, as JSON values.
    """
    with tempfile.TemporaryDirectory(prefix="hqsam-benchmark-") as temporary:
        folders = {} if images else {f"hq_{model}": str(Path(temporary, model, "data")) for model in models}
        facts = run_job(Job("facts", WORKER, _facts_spec(models, settings, folders)))
        report("machine")
        wanted = [variant for variant in VARIANTS if not names or variant.name in names]
        variants = [variant for variant in wanted if available(variant, facts)]
        result: dict[str, Any] = {"benchmark": "train", **facts, "settings": vars(settings).copy(), "models": {}}
        result["left_out"] = [variant.name for variant in wanted if variant not in variants]
        for model in models:
            data = Path(images).resolve() if images else Path(temporary, model, "data")
            keep = Path(temporary, model, "kept")
            jobs = [
                Job(v.name, WORKER, settings.spec(v.kind, model, data, keep, v.options), v.environment)
                for v in variants
            ]
            done = alternate(jobs, settings.rounds, partial(_report_job, report, model))
            rows = {name: medians(results) for name, results in done.items()}
            for row in rows.values():  # only the first round encodes the views that are kept
                row["encode_seconds"] = max(row.pop("encode_seconds_rounds"))
                row["views_encoded"] = max(row.pop("views_encoded_rounds"))
            add_ratios(rows, variants, facts, model)
            result["models"][model] = rows
    return result


def _report_job(report: Callable[[str], None], model: str, job: Job) -> None:
    report(f"{model}: {job.name}")


def _facts_spec(models: Sequence[str], settings: Settings, folders: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": "facts",
        "device": settings.device,
        "threads": settings.threads,
        "models": [f"hq_{model}" for model in models],
        "prompts": sorted({variant.options.get("prompts", 1) for variant in VARIANTS}),
        "folders": folders,
        "pictures": settings.pictures,
    }


def command(
    model: Annotated[list[str] | None, typer.Option(help="vit_b, vit_tiny, vit_l, vit_h; repeat for several.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images a step; the published number is 4.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of all variants; the median counts.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a turn, at least.")] = 3,
    warmup: Annotated[int, typer.Option(min=1, help="Steps before the clock starts.")] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Timed seconds a turn, at least.")] = 5.0,
    workers: Annotated[int, typer.Option(min=0, help="Loading processes.")] = 2,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 leaves its default.")] = 0,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures to generate.")] = 8,
    images: Annotated[str | None, typer.Option(help="Train on this folder or index.json instead.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant, by its name; repeat.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")] = None,
    quick: Annotated[bool, typer.Option(help="A small model, few steps: does it run?")] = False,
) -> None:
    """Training: samples/s, waiting for data and memory, against the published loop.

    \b
    python -m benchmarks train
    python -m benchmarks train --model vit_b --batch 1 --steps 2 --json train.json
    python -m benchmarks train --quick
    """
    models, names = list(model or ["vit_b", "vit_tiny"]), list(variant or [])
    settings = Settings(device, batch, rounds, steps, warmup, seconds, workers, threads, pictures)
    if quick:
        models, names = list(model or ["test_vit"]), names or list(QUICK_VARIANTS)
        settings = Settings(device, 2, 1, 2, 1, 0.0, min(workers, 1), threads or 1, 4)
    _check(models, names)
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=None)
        result = run(models, settings, names, images, lambda text: bar.update(task, description=f"done: {text}"))
    output = Console()
    for line in describe(result):
        output.print(line, highlight=False)
    for name in models:
        output.print(train_table(name, result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _check(models: Sequence[str], names: Sequence[str]) -> None:
    for value, legal, option in (
        *((name, MODELS, "--model") for name in models),
        *((name, tuple(v.name for v in VARIANTS), "--variant") for name in names),
    ):
        if value not in legal:
            raise typer.BadParameter(f"{option} {value!r} is unknown; there are: {'; '.join(legal)}")
