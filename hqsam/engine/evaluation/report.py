"""What an evaluation leaves in its run folder: `results.json`, `results.md`, `records.jsonl`, `timing.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hqsam.checkpoints import atomic_path
from hqsam.metrics.evaluator import SetScores, decimals, is_count

COLUMN_TITLES = {"sam": "SAM", "hq": "HQ", "sum": "SAM+HQ"}
METRIC_TITLES = {
    "miou": "mIoU",
    "mbiou": "mBIoU",
    "jf": "J&F",
    "j_recall": "J recall",
    "j_decay": "J decay",
    "f_recall": "F recall",
    "f_decay": "F decay",
    "n": "objects",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "removed": "removed",
}
"""Metrics whose name is not simply printed in capitals."""
_SHORT = 20
"""Letters of a prompt's description that stands beside numbers; longer ones are in the list of the protocol alone."""
_WIDE, _SEVERAL = 2, 12
"""How many metrics are few, and how many are several, see `lay_out`."""


class Record(Protocol):
    """One scored thing; see `hqsam.metrics.Evaluator`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""


@dataclass(frozen=True)
class EvalResult:
    """Numbers of one evaluation, in percent where they are shares.

    Attributes:
        sets: set -> column -> metric ("n" counts what was scored); a set without anything scored is absent.
        mean: column -> the same, mean over sets; "n" is a sum.
        protocol: how the numbers came about.
        slices: the same as `sets` for parts that cut across them ("thin"), means over objects.
        records: one for each scored thing, sorted by its key; on the first process alone.
        title: what was measured, for the heading of the report.
        counted: what "n" counts, for the tables.
    """

    sets: dict[str, SetScores]
    mean: SetScores
    protocol: dict[str, Any]
    slices: dict[str, SetScores] = field(default_factory=dict)
    records: Sequence[Any] = ()
    title: str = "mask and boundary IoU in percent"
    counted: str = "objects"

    def as_dict(self) -> dict[str, Any]:
        """Content of `results.json`."""
        content: dict[str, Any] = {"sets": self.sets, "mean": self.mean, "protocol": self.protocol}
        return {**content, "slices": self.slices} if self.slices else content


def write_report(result: EvalResult, folder: Path, timing: Mapping[str, Any] | None = None) -> None:
    """Write the files; each appears whole or not at all.

    Raises:
        OutputError: a file cannot be written.
    """
    texts: dict[str, Iterable[str]] = {
        # line by line: the masks of a hundred thousand images are gigabytes
        "records.jsonl": (f"{json.dumps(record.as_dict(), allow_nan=False)}\n" for record in result.records),
        "results.md": [format_markdown(result)],
        "results.json": [json.dumps(result.as_dict(), indent=2, allow_nan=False) + "\n"],
    }
    if timing is not None:
        texts["timing.json"] = [json.dumps(timing, indent=2) + "\n"]
    for name, parts in texts.items():
        with atomic_path(folder / name) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(parts)


def format_markdown(result: EvalResult) -> str:
    """The table of all sets, each row with its protocol, and what the protocol is."""
    marked = replace(result, slices={f"*{name}*, over objects": scores for name, scores in result.slices.items()})
    lines = [
        f"# {result.protocol['model'].get('name', 'model')}: {result.title}",
        "",
        *_markdown(lay_out(marked, "**mean over sets**"), short_protocol(result.protocol)),
        "",
        "## Protocol",
        "",
        *_bullets(result.protocol),
    ]
    return "\n".join(lines) + "\n"


def metric_title(name: str) -> str:
    """How a metric is called in tables; what follows a known name is the step of a prompt."""
    base, _, step = name.partition("_")
    if name not in METRIC_TITLES and base in METRIC_TITLES and step:
        return f"{METRIC_TITLES[base]} {step}"
    return METRIC_TITLES.get(name, name.upper())


class Table(NamedTuple):
    """Cells of a table as text."""

    heads: list[str]
    body: list[list[str]]
    texts: int
    """Columns at the left that hold words; numbers follow."""


def lay_out(result: EvalResult, mean: str = "mean over sets") -> Table:
    """The numbers of all sets, their mean and their slices.

    A few metrics stand side by side for all columns; several give each column a row; many give each metric a row.

    Args:
        result: its sets come first, then the mean, then the slices.
        mean: name of the mean's row.
    """
    rows = {**result.sets, mean: result.mean, **result.slices}
    columns = list(dict.fromkeys(column for scores in rows.values() for column in scores))
    cells = [values for scores in rows.values() for values in scores.values()]
    metrics = list(dict.fromkeys(metric for values in cells for metric in values if not is_count(metric)))
    if len(metrics) <= _WIDE:
        heads = [f"{COLUMN_TITLES[column]} {metric_title(metric)}" for column in columns for metric in metrics]
        body = [
            [name, _count(scores), *(format_number(scores.get(c, {}), m) for c in columns for m in metrics)]
            for name, scores in rows.items()
        ]
        return Table(["set", result.counted, *heads], body, 1)
    if len(metrics) <= _SEVERAL:
        body = [
            [name, COLUMN_TITLES[column], f"{values['n']:.0f}", *(format_number(values, m) for m in metrics)]
            for name, scores in rows.items()
            for column, values in scores.items()
        ]
        return Table(["set", "masks", result.counted, *map(metric_title, metrics)], body, 2)
    body = [
        [name, metric_title(metric), _count(scores), *(format_number(scores.get(c, {}), metric) for c in columns)]
        for name, scores in rows.items()
        for metric in metrics
        if any(metric in values for values in scores.values())
    ]
    return Table(["set", "metric", result.counted, *(COLUMN_TITLES[column] for column in columns)], body, 2)


def _markdown(table: Table, label: str) -> list[str]:
    numbers = len(table.heads) - table.texts
    rule = "|" + "---|" * table.texts + "---:|" * numbers + "---|"
    heads = "| " + " | ".join([*table.heads, "protocol"]) + " |"
    return [heads, rule, *("| " + " | ".join([*row, label]) + " |" for row in table.body)]


def _count(scores: SetScores) -> str:
    return f"{next(iter(scores.values()))['n']:.0f}"


def format_number(values: Mapping[str, float], metric: str) -> str:
    """A metric as tables show it; nothing where it is not defined."""
    return f"{values[metric]:.{decimals(metric)}f}" if metric in values else ""


def short_protocol(protocol: Mapping[str, Any]) -> str:
    """The protocol in a few words, to stand beside a number."""
    prompt = str(protocol.get("prompt", ""))
    words = [protocol["name"], *([prompt] if 0 < len(prompt) <= _SHORT else []), f"{protocol['resolution']} px"]
    ring = [f"ring {100 * protocol['dilation_ratio']:g} %"] if "dilation_ratio" in protocol else []
    return ", ".join([*words, *ring])


def _bullets(values: Mapping[str, Any], indent: str = "") -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}:", *_bullets(value, indent + "  ")]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            lines.append(f"{indent}- {key}: {text}")
    return lines
