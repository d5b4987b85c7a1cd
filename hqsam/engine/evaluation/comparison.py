"""Two evaluations of the same objects beside each other: differences with confidence intervals."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from hqsam.engine.evaluation.report import COLUMN_TITLES, metric_title
from hqsam.errors import DataError
from hqsam.metrics.bootstrap import Difference, Place, paired_bootstrap
from hqsam.metrics.evaluator import decimals, is_count

Record = Mapping[str, Any]
_EXPECTED_TO_DIFFER = ("model", "versions")
"""Parts of a protocol whose difference does not make numbers incomparable."""
_MAIN = ("sum", "hq", "sam")
_OVER_FRAMES = ("j", "f")
_SHARES = ("miou", "mbiou", "removed", *_OVER_FRAMES)
"""Fields of records with numbers in [0, 1]."""


@dataclass(frozen=True)
class Side:
    """One evaluation, and which of its columns is compared.

    Attributes:
        name: what tables call it.
        column: "sam", "hq" or "sum".
        records: lines of its `records.jsonl`.
        protocol: how its numbers came about.
    """

    name: str
    column: str
    records: Sequence[Record]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What `compare_results` found.

    Attributes:
        a: name of the first side.
        b: name of the second.
        metrics: metric -> set, or "mean", -> difference in percent points.
        only_a: objects that the second has not.
        only_b: objects that the first has not.
        protocol: setting -> both values, where the protocols differ in what numbers depend on.
        resamples: how often images were drawn.
        confidence: of the intervals.
    """

    a: str
    b: str
    metrics: dict[str, dict[str, Difference]]
    only_a: int
    only_b: int
    protocol: dict[str, tuple[Any, Any]]
    resamples: int
    confidence: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        content = asdict(self)
        content["metrics"] = {
            metric: {name: {"difference": part.difference, **asdict(part)} for name, part in parts.items()}
            for metric, parts in self.metrics.items()
        }
        return content


def read_side(path: Path, column: str | None = None) -> Side:
    """Open a run folder, or its `results.json`; the records lie beside it.

    Args:
        path: folder or file.
        column: which column; None for the best that there is: sum, hq, sam.

    Raises:
        DataError: no results there, no records beside them, or no such column.
    """
    folder = path if path.is_dir() else path.parent
    results = folder / "results.json" if path.is_dir() else path
    try:
        content = json.loads(results.read_text(encoding="utf-8"))
        lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
    except OSError as error:
        raise DataError(f"no evaluation in {folder}: cannot read {error.filename}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"the evaluation in {folder} is damaged: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("protocol"), dict) or not records:
        raise DataError(f"{results} is not a results.json of an evaluation with records")
    protocol = content["protocol"]
    columns = {name for record in records for values in _metrics(record, protocol).values() for name in values}
    if not columns:
        raise DataError(f"the records beside {results} hold no scores of single objects; nothing can be resampled")
    chosen = column or next(name for name in _MAIN if name in columns)
    if chosen not in columns:
        raise DataError(f"{results} has {', '.join(sorted(columns))}, not the column {chosen!r}")
    return Side(f"{folder.name} {COLUMN_TITLES[chosen]}", chosen, records, protocol)


def compare_results(
    a: Side, b: Side, *, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """B minus A over the objects that both have; see `hqsam.metrics.bootstrap`.

    Raises:
        DataError: no object, or no metric, is in both; two records of one object.
        ValueError: see `paired_bootstrap`.
    """
    first, second = _by_object(a), _by_object(b)
    both = [key for key in first if key in second]
    if not both:
        raise DataError(f"{a.name} and {b.name} have no object in common")
    values: dict[str, dict[Hashable, tuple[Place, float, float]]] = defaultdict(dict)
    for key in both:
        one, other = _metrics(first[key], a.protocol), _metrics(second[key], b.protocol)
        for name in one.keys() & other.keys():
            if a.column in one[name] and b.column in other[name]:
                values[name][key] = _place(first[key]), one[name][a.column], other[name][b.column]
    order = [name for key in both for name in _metrics(first[key], a.protocol)]
    metrics = {
        name: paired_bootstrap(values[name], resamples=resamples, confidence=confidence, seed=seed)
        for name in dict.fromkeys(order)
        if name in values
    }
    if not metrics:
        raise DataError(f"{a.name} and {b.name} have no metric in common")
    settings = [key for key in {**a.protocol, **b.protocol} if key not in _EXPECTED_TO_DIFFER]
    differing = {
        key: (a.protocol.get(key), b.protocol.get(key)) for key in settings if _shared(key, a) != _shared(key, b)
    }
    return Comparison(
        a.name, b.name, metrics, len(first) - len(both), len(second) - len(both), differing, resamples, confidence
    )


def format_comparison(found: Comparison) -> str:
    """Markdown: one row for each set and metric, the mean over sets last."""
    lines = [
        f"# {found.b} against {found.a}",
        "",
        f"| set | objects | metric | {found.a} | {found.b} | difference | {100 * found.confidence:g} % interval |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for name in next(iter(found.metrics.values())):
        for metric, parts in found.metrics.items():
            if name in parts:
                lines.append(_row(name, metric, parts[name]))
    lines += [
        "",
        f"Shares in percent. Intervals: {found.resamples} paired resamples of images within each set. Bold: zero is "
        "outside.",
    ]
    if found.only_a or found.only_b:
        lines.append(f"Left out: {found.only_a} objects of the first alone, {found.only_b} of the second alone.")
    for key, (one, other) in found.protocol.items():
        lines.append(f"**The protocols differ** in {key}: {one} and {other}.")
    return "\n".join(lines) + "\n"


def _row(name: str, metric: str, part: Difference) -> str:
    digits = decimals(metric) + 1
    interval = "one image" if part.low is None else f"{part.low:+.{digits}f} to {part.high:+.{digits}f}"
    mark = "**" if part.is_clear else ""
    title = "**mean over sets**" if name == "mean" else name
    cells = [title, str(part.objects), metric_title(metric), f"{part.a:.{digits}f}", f"{part.b:.{digits}f}"]
    return "| " + " | ".join([*cells, f"{mark}{part.difference:+.{digits}f}{mark}", interval]) + " |"


def _metrics(record: Record, protocol: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metric -> column -> number, from the fields of a record that have columns: shares in percent, no counts.

    A field that holds several numbers for a column, by the step of a prompt, is as many metrics; J and F of a video's
    frames are one, their mean over the frames that count.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, columns in record.items():
        if (
            is_count(name)
            or name == "scores"
            or not isinstance(columns, dict)
            or not set(columns) <= set(COLUMN_TITLES)
        ):
            continue
        scale = 100.0 if name in _SHARES else 1.0
        for column, value in columns.items():
            if isinstance(value, Real):
                found[name][column] = scale * float(value)
            elif isinstance(value, dict):
                for step, number in value.items():
                    found[f"{name}_{step}"][column] = scale * float(number)
            elif name in _OVER_FRAMES:
                inner = value[1:-1] if protocol.get("frames") == "inner" else value
                counted = [number for number in inner if number is not None]
                if counted:
                    found[name][column] = scale * math.fsum(counted) / len(counted)
    return dict(found)


def _by_object(side: Side) -> dict[Hashable, Record]:
    found: dict[Hashable, Record] = {}
    for record in side.records:
        key = tuple((name, value) for name, value in record.items() if isinstance(value, (str, int)))
        if key in found:
            raise DataError(f"{side.name} has two records of {dict(key)}")
        found[key] = record
    return found


def _place(record: Record) -> Place:
    return Place(str(record.get("set", "all")), record.get("image", record.get("video")))


def _shared(key: str, side: Side) -> Any:
    """What a protocol says of a column counts for that column alone, and differs by its nature but for the score."""
    value = side.protocol.get(key)
    if isinstance(value, dict) and side.column in value and set(value) <= set(COLUMN_TITLES):
        return value[side.column] if key == "score_source" else None
    return value
