"""What an evaluation leaves in its run folder: `results.json`, `results.md`, `records.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hqsam.metrics import MaskRecord
from hqsam.metrics.mask_scores import SetScores

_TITLES = {"sam": "SAM", "hq": "HQ", "sum": "SAM+HQ"}


@dataclass(frozen=True)
class EvalResult:
    """Numbers of one evaluation, in percent.

    Attributes:
        sets: set -> column -> {"miou", "mbiou", "n"}, means over objects; a set without a scored object is absent.
        mean: column -> the same, mean over sets; "n" counts objects.
        protocol: how the numbers came about.
        slices: the same as `sets` for parts that cut across them ("thin"), means over objects.
        records: one for each object, sorted by set, image, object, prompt.
    """

    sets: dict[str, SetScores]
    mean: SetScores
    protocol: dict[str, Any]
    slices: dict[str, SetScores] = field(default_factory=dict)
    records: list[MaskRecord] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Content of `results.json`."""
        content: dict[str, Any] = {"sets": self.sets, "mean": self.mean, "protocol": self.protocol}
        return {**content, "slices": self.slices} if self.slices else content


def write_report(result: EvalResult, folder: Path) -> None:
    """Write the three files; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "records.jsonl", "".join(f"{json.dumps(r.as_dict())}\n" for r in result.records))
    _write(folder / "results.md", format_markdown(result))
    _write(folder / "results.json", json.dumps(result.as_dict(), indent=2, allow_nan=False) + "\n")


def format_markdown(result: EvalResult) -> str:
    """The table of all sets, each row with its protocol, and what the protocol is."""
    columns = list(result.mean)
    heads = [f"{_TITLES[column]} {metric}" for column in columns for metric in ("mIoU", "mBIoU")]
    label = short_protocol(result.protocol)
    lines = [
        f"# {result.protocol['model'].get('name', 'model')}: mask and boundary IoU in percent",
        "",
        "| " + " | ".join(["set", "objects", *heads, "protocol"]) + " |",
        "|---|" + "---:|" * (len(heads) + 1) + "---|",
        *(_row(name, scores, label) for name, scores in result.sets.items()),
        _row("**mean over sets**", result.mean, label),
        *(_row(f"*{name}*, over objects", scores, label) for name, scores in result.slices.items()),
        "",
        "## Protocol",
        "",
        *_bullets(result.protocol),
    ]
    return "\n".join(lines) + "\n"


def short_protocol(protocol: Mapping[str, Any]) -> str:
    """The protocol in a few words, to stand beside a number."""
    return (
        f"{protocol['name']}, {protocol['prompt']}, {protocol['resolution']} px, "
        f"ring {100 * protocol['dilation_ratio']:g} %"
    )


def _row(name: str, scores: SetScores, label: str) -> str:
    count = next(iter(scores.values()))["n"]
    numbers = [f"{scores[column][metric]:.1f}" for column in scores for metric in ("miou", "mbiou")]
    return "| " + " | ".join([name, f"{count:.0f}", *numbers, label]) + " |"


def _bullets(values: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}:", *_bullets(value, indent + "  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{indent}- {key}: {text}")
    return lines


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
