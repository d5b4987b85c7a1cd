"""Inference: time and memory of encoding, of prompts and of automatic generation against the published package."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.rounds import ROOT, TUNED, Job, alternate, medians, run_job
from benchmarks.tables import machine_lines

WORKER = "benchmarks.inference_worker"
MODELS = ("vit_tiny", "vit_b", "vit_l", "vit_h")
QUICK = ("published", "ours")
BASE = "published"
PICTURE = ROOT / "data" / "samples" / "astronaut.jpg"


@dataclass(frozen=True)
class Variant:
    """A program and how it is run; `needs` is "" or what the machine must have: "cpu", "bf16"."""

    name: str
    program: str
    dtype: str | None = None
    compiled: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""


VARIANTS = (
    Variant(BASE, "published"),
    Variant("published, tuned allocator", "published", environment=TUNED, needs="cpu"),
    Variant("timm", "timm"),
    Variant("timm, tuned allocator", "timm", environment=TUNED, needs="cpu"),
    Variant("ours", "ours"),
    Variant("ours, compiled", "ours", compiled=True),
    Variant("ours, bf16", "ours", dtype="auto", needs="bf16"),
    Variant("ours, bf16, compiled", "ours", dtype="auto", compiled=True, needs="bf16"),
)


@dataclass(frozen=True)
class Question:
    """What is measured; `options` go to the worker."""

    name: str
    title: str
    kind: str
    options: Mapping[str, Any]
    quick: bool = False

    def asks(self, variant: Variant) -> bool:
        """Whether the variant answers this: timm has an encoder and nothing else, and only an encoder is compiled."""
        return self.kind == "encode" or not (variant.program == "timm" or variant.compiled)


QUESTIONS = (
    Question("encode", "set_image: one picture encoded", "encode", {}),
    Question("box1", "one more box on a set image", "boxes", {"count": 1}, quick=True),
    Question("boxes64", "64 boxes on a set image", "boxes", {"count": 64}),
    Question("auto", "automatic generation, default filters", "automatic", {"points": 32, "all": False}),
    Question("auto_all", "automatic generation, nothing filtered", "automatic", {"points": 32, "all": True}),
    Question("start", "import after torch, load, first answer", "start", {}),
)


@dataclass(frozen=True)
class Settings:
    """What all variants have in common."""

    device: str
    rounds: int
    steps: int
    seconds: float
    warmup: int
    threads: int
    points: int | None = None


def run(
    models: Sequence[str],
    questions: Sequence[Question],
    settings: Settings,
    names: Sequence[str] = (),
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure each question of each model, its variants in alternating rounds.

    Returns:
        The machine, the settings, and medians by model, question and variant, as JSON values.
    """
    with tempfile.TemporaryDirectory(prefix="hqsam-benchmark-") as folder:
        weights = {model: str(Path(folder, f"{model}.pth")) for model in models}
        common = {"device": settings.device, "threads": settings.threads}
        facts = run_job(Job("facts", WORKER, {"kind": "facts", "weights": weights, **common}))
        result: dict[str, Any] = {"benchmark": "inference", **facts, "settings": vars(settings).copy(), "models": {}}
        has = {"": True, "cpu": settings.device == "cpu", "bf16": facts["bf16_units"]}
        variants = [v for v in VARIANTS if has[v.needs] and (not names or v.name in names)]
        result["left_out"] = [v.name for v in VARIANTS if not has[v.needs]]
        for model in models:
            rows: dict[str, Any] = {}
            for question in questions:
                jobs = [
                    _job(model, question, variant, settings, weights[model])
                    for variant in variants
                    if question.asks(variant)
                ]
                done = alternate(jobs, settings.rounds, lambda job: report(f"{model}: {job.name}"))  # noqa: B023
                rows[question.name] = {job.name: medians(done[job.name]) for job in jobs}
                _add_ratios(rows[question.name])
            result["models"][model] = rows
        return result


def _job(model: str, question: Question, variant: Variant, settings: Settings, weights: str) -> Job:
    options = dict(question.options)
    if settings.points is not None and "points" in options:
        options["points"] = settings.points
    long = question.kind == "automatic"  # seconds to minutes a call: nothing to warm up for
    spec = {
        "kind": question.kind,
        "program": variant.program,
        "dtype": variant.dtype,
        "compiled": variant.compiled,
        "model": model,
        "weights": weights,
        "picture": str(PICTURE),
        "device": settings.device,
        "threads": settings.threads,
        "warmup": 0 if long else settings.warmup,
        "steps": 1 if long else settings.steps,
        "seconds": 0.0 if long else settings.seconds,
        **options,
    }
    return Job(variant.name, WORKER, spec, variant.environment)


def _add_ratios(rows: dict[str, dict[str, Any]]) -> None:
    base = rows.get(BASE, {}).get("seconds")
    for row in rows.values():
        row["ratio"] = base / row["seconds"] if base and "seconds" in row else None


def result_table(model: str, question: Question, rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a variant."""
    table = Table(title=f"{model}: {question.title}", title_justify="left")
    table.add_column("variant", no_wrap=True)
    heads = (
        ["import s", "load s", "first answer s"] if question.kind == "start" else ["s", "ratio", "MB above the model"]
    )
    heads += ["masks"] if question.kind == "automatic" else []
    for head in heads:
        table.add_column(head, justify="right")
    for name, row in rows.items():
        if question.kind == "start":
            cells = [f"{row[key]:.2f}" for key in ("import_seconds", "load_seconds", "first_seconds")]
        else:
            above = row["above_mb"] if row["gpu_mb"] is None else row["gpu_mb"]
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}x"
            cells = [f"{row['seconds']:.3g}", ratio, "" if above is None else f"{above:.0f}"]
            cells += [str(row["records"])] if "records" in row else []
        table.add_row(name, *cells)
    return table


def command(
    model: Annotated[list[str] | None, typer.Option(help="vit_b, vit_tiny, vit_l, vit_h; repeat for several.")] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="encode, box1, boxes64, auto, auto_all, start; repeat.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of all variants; the median counts.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Timed calls a turn, at least.")] = 2,
    seconds: Annotated[float, typer.Option(min=0, help="Timed seconds a turn, at least.")] = 2.0,
    warmup: Annotated[int, typer.Option(min=0, help="Calls before the clock starts.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch; 0 leaves its default.")] = 0,
    points: Annotated[int | None, typer.Option(min=1, help="Points a side of automatic generation; 32.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant, by its name; repeat.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there.")] = None,
    quick: Annotated[bool, typer.Option(help="One question to the small model: does it run?")] = False,
) -> None:
    """Inference: encoding, prompts and automatic generation, against the published package.

    \b
    python -m benchmarks inference
    python -m benchmarks inference --model vit_b --question encode --json encode.json
    python -m benchmarks inference --quick
    """
    models, names = list(model or (["vit_tiny"] if quick else ["vit_b", "vit_tiny"])), list(variant or [])
    wanted = list(question or [q.name for q in QUESTIONS if q.quick or not quick])
    _check(models, wanted, names)
    questions = [q for q in QUESTIONS if q.name in wanted]
    settings = Settings(device, rounds, steps, seconds, warmup, threads, points)
    if quick:
        settings, names = Settings(device, 1, 1, 0.0, 0, threads or 1, points or 2), names or list(QUICK)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=None)
        result = run(models, questions, settings, names, lambda text: bar.update(task, description=f"done: {text}"))
    output = Console()
    for line in machine_lines(result):
        output.print(line, highlight=False)
    for name in models:
        for asked in questions:
            output.print(result_table(name, asked, result["models"][name][asked.name]))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _check(models: Sequence[str], questions: Sequence[str], names: Sequence[str]) -> None:
    for value, legal, option in (
        *((name, MODELS, "--model") for name in models),
        *((name, tuple(q.name for q in QUESTIONS), "--question") for name in questions),
        *((name, tuple(v.name for v in VARIANTS), "--variant") for name in names),
    ):
        if value not in legal:
            raise typer.BadParameter(f"{option} {value!r} is unknown; there are: {'; '.join(legal)}")
