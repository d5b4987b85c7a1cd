"""``report.md`` of a finished training run: the validation table and the loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hqsam.checkpoints import atomic_path
from hqsam.engine.eval_report import format_markdown
from hqsam.engine.logs import read_entries
from hqsam.engine.schedule import StepPlan
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.validation import Validator

_CURVE_HW = (320, 720)
_MARGIN = 44


def write_report(folder: Path, config: TrainConfig, plan: StepPlan, validator: Validator) -> Path:
    """Write ``report.md`` and ``loss.png`` from the run's log and its last validation.

    Returns:
        The report.
    """
    entries = read_entries(folder / "log.jsonl")
    train = [entry for entry in entries if "loss" in entry]
    means = [entry for entry in entries if entry.get("val") == "mean"]
    lines = [
        f"# Training of {config.model.name}",
        "",
        f"- {plan.total_steps} steps of {plan.global_batch} images, {plan.steps_per_epoch} steps an epoch",
        f"- trained on {', '.join(config.data.train)}; validated on {', '.join(config.data.val) or 'nothing'}",
        "- settings: `config.yaml`; weights: `model.safetensors`; numbers of every step: `log.jsonl`, `tensorboard/`",
        "",
    ]
    if train:
        draw_curve([entry["step"] for entry in train], [entry["loss"] for entry in train], folder / "loss.png")
        last = train[-1]
        lines += [
            f"Loss {last['loss']:.4f} (BCE {last['bce']:.4f}, dice {last['dice']:.4f}), mean of the last logged steps.",
            "",
            "![loss](loss.png)",
            "",
        ]
    if means:
        lines += [
            "## Validation while training, mean over sets",
            "",
            "| step | SAM mIoU | SAM mBIoU | HQ mIoU | HQ mBIoU | SAM+HQ mIoU | SAM+HQ mBIoU |",
            "|---:|---:|---:|---:|---:|---:|---:|",
            *(_row(entry) for entry in means),
            "",
        ]
    if validator.last is not None:
        # One level lower: the table is a section here.
        lines += ["#" + line if line.startswith("#") else line for line in format_markdown(validator.last).splitlines()]
    path = folder / "report.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _row(entry: dict[str, float]) -> str:
    values = (f"{entry[f'{c}_{m}']:.2f}" for c in ("sam", "hq", "sum") for m in ("miou", "mbiou"))
    return f"| {entry['step']} | " + " | ".join(values) + " |"


def draw_curve(steps: Sequence[int], values: Sequence[float], path: Path) -> None:
    """Draw values over steps as a PNG: thin as logged, thick smoothed over a tenth of the run."""
    from PIL import Image, ImageDraw

    height, width = _CURVE_HW
    x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    low, high = min(0.0, y.min()), max(y.max(), 1e-9)
    left, right, top, bottom = _MARGIN, width - 12, 12, height - 28
    columns = left + (x - x[0]) / max(x[-1] - x[0], 1) * (right - left)

    def points(series: np.ndarray) -> list[tuple[float, float]]:
        rows = bottom - (series - low) / (high - low) * (bottom - top)
        return list(zip(columns.tolist(), rows.tolist(), strict=True))

    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for part in range(5):
        level = low + (high - low) * part / 4
        row = bottom - (bottom - top) * part / 4
        draw.line([(left, row), (right, row)], fill=(225, 225, 225))
        draw.text((4, row - 6), f"{level:.2f}", fill="black")
    draw.text((left, bottom + 8), f"step {steps[0]}", fill="black")
    draw.text((right - 70, bottom + 8), f"step {steps[-1]}", fill="black")
    window = max(1, len(y) // 10)
    means = np.cumsum(np.insert(y, 0, 0.0))
    smooth = np.array([(means[i + 1] - means[max(0, i + 1 - window)]) / min(i + 1, window) for i in range(len(y))])
    draw.line(points(y), fill=(170, 200, 240))
    draw.line(points(smooth), fill=(30, 90, 200), width=2)
    sheet.save(path, format="PNG")
