"""``report.md`` of a finished training run: plots, the validation tables and pictures of single cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hqsam.checkpoints import atomic_path
from hqsam.engine.evaluation.pictures import KINDS
from hqsam.engine.evaluation.report import COLUMN_TITLES, format_markdown
from hqsam.engine.evaluation.showing import CASES
from hqsam.engine.logs import read_entries
from hqsam.engine.plots import COLUMN_COLORS, Line, draw_plot
from hqsam.engine.schedule import StepPlan
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.validation import Validator

_TERMS = {"bce": "BCE", "focal": "focal", "dice": "dice"}
_METRICS = {"mbiou": "boundary IoU", "miou": "mask IoU"}

Entry = Mapping[str, Any]


def write_report(folder: Path, config: TrainConfig, plan: StepPlan, validator: Validator) -> Path:
    """Write ``report.md`` and the plots below ``plots/`` from the run's log and its last validation.

    Returns:
        The report.

    Raises:
        OutputError: a file cannot be written.
    """
    entries = read_entries(folder / "log.jsonl")
    train = [entry for entry in entries if "loss" in entry]
    means = [entry for entry in entries if entry.get("val") == "mean"]
    data = config.data
    val = [*data.val, *([f"{data.val_synthetic} generated scenes"] if data.val_synthetic else [])]
    trained_on = [*data.train, *(["generated scenes"] if data.synthetic else [])]
    lines = [
        f"# Training of {config.model.name}",
        "",
        f"- {plan.total_steps} steps of {plan.global_batch} images, {plan.steps_per_epoch} steps an epoch",
        f"- trained on {', '.join(trained_on)}; validated on {', '.join(val) or 'nothing'}",
        "- settings: `config.yaml`; weights: `model.safetensors`; numbers of every step: `log.jsonl`, `tensorboard/`",
        "",
        *(_training(train, folder) if train else []),
        *(_validation(means, folder) if means else []),
    ]
    if validator.last is not None:
        # One level lower: the table is a section here.
        lines += ["#" + line if line.startswith("#") else line for line in format_markdown(validator.last).splitlines()]
        lines += ["", *_cases(folder)]
    path = folder / "report.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _training(entries: Sequence[Entry], folder: Path) -> list[str]:
    steps = [entry["step"] for entry in entries]
    last = entries[-1]
    names = [name for name in ("loss", "bce", "focal", "dice") if name in last]
    curves = [Line(name, steps, [entry[name] for entry in entries]) for name in names]
    draw_plot(folder / "plots" / "loss.png", "training loss", curves, smooth=True)
    rates = [Line("learning rate", steps, [entry["lr"] for entry in entries])]
    draw_plot(folder / "plots" / "learning_rate.png", "learning rate", rates)
    terms = ", ".join(f"{_TERMS[name]} {last[name]:.4f}" for name in names[1:])
    return [
        f"Loss {last['loss']:.4f} ({terms}), mean of the last logged steps.",
        "",
        "![training loss](plots/loss.png)",
        "",
        "![learning rate](plots/learning_rate.png)",
        "",
    ]


def _validation(means: Sequence[Entry], folder: Path) -> list[str]:
    columns = {column: title for column, title in COLUMN_TITLES.items() if f"{column}_mbiou" in means[-1]}
    heads = [f"{title} {metric}" for title in columns.values() for metric in ("mIoU", "mBIoU")]
    lines = [
        "## Validation while training, mean over sets",
        "",
        f"| step | {' | '.join(heads)} |",
        "|---:" * (1 + len(heads)) + "|",
        *(_row(entry, columns) for entry in means),
        "",
    ]
    steps = [entry["step"] for entry in means]
    for metric, name in _METRICS.items():
        curves = [
            Line(title, steps, [entry[f"{column}_{metric}"] for entry in means], COLUMN_COLORS[column])
            for column, title in columns.items()
        ]
        file = Path("plots", f"validation_{metric}.png")
        draw_plot(folder / file, f"validation, mean {name} over sets, percent", curves)
        lines += [f"![{name} of {' and '.join(columns.values())}]({file.as_posix()})", ""]
    return lines


def _cases(folder: Path) -> list[str]:
    """The pictures that the last validation has left."""
    lines = []
    for kind in KINDS:
        files = sorted((folder / "plots").glob(f"{kind}_[0-9]*.png"))
        if files:
            lines += [f"## {CASES[kind]}", ""]
            lines += [line for file in files for line in (f"![{file.stem}](plots/{file.name})", "")]
    return lines


def _row(entry: Entry, columns: Iterable[str]) -> str:
    values = (f"{entry[f'{c}_{m}']:.2f}" for c in columns for m in ("miou", "mbiou"))
    return f"| {entry['step']} | " + " | ".join(values) + " |"
