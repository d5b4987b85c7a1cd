"""The table of an ablation: `table.md` and `table.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hqsam.checkpoints import atomic_path
from hqsam.engine.evaluation.report import COLUMN_TITLES, format_number, metric_title, short_protocol

METRICS = ("miou", "mbiou")
Result = Mapping[str, Any]


def write_table(results: Sequence[Result], missing: Sequence[str], model: str, folder: Path) -> None:
    """Write both files; each appears whole or not at all.

    Args:
        results: what `run_variant` left, in the order of the rows.
        missing: names of variants that are not finished, which the table says.
        model: name of the model.
        folder: where to.

    Raises:
        OutputError: a file cannot be written.
    """
    content = {"model": model, "variants": list(results), "missing": list(missing)}
    texts = {
        "table.md": format_table(results, missing, model),
        "table.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def format_table(results: Sequence[Result], missing: Sequence[str], model: str) -> str:
    """The means of all variants side by side, then one table of single sets for each evaluation."""
    titles = list(dict.fromkeys(title for result in results for title in result["evaluations"]))
    lines = [
        f"# Ablations of {model}",
        "",
        f"Cells are {' / '.join(map(metric_title, METRICS))} in percent, means over sets.",
        "",
        *_means(results, titles),
    ]
    if missing:
        lines += ["", f"Not finished: {'; '.join(missing)}."]
    for title in titles:
        lines += ["", f"## {title}", "", *_protocols(results, title), "", *_sets(results, title)]
    return "\n".join(lines) + "\n"


def _means(results: Sequence[Result], titles: Sequence[str]) -> list[str]:
    scored = [(title, column) for title in titles for column in _columns(results, title)]
    heads = ["variant", "head", "trained parameters", "images", "samples", "seconds"]
    heads += [f"{title}: {COLUMN_TITLES[column]}" for title, column in scored]
    rows = []
    for result in results:
        facts = result["training"]
        images = f"{facts['images']}" + (f" + {facts['generated']} generated" if facts["generated"] else "")
        cells = [result["name"], facts["head"], f"{facts['parameters']:,}", images]
        cells += [f"{facts['samples']}", f"{facts['seconds']:.0f}"]
        cells += [_cell(result["evaluations"].get(title, {}).get("mean", {}), column) for title, column in scored]
        rows.append(cells)
    return _table(heads, rows, words=2)


def _sets(results: Sequence[Result], title: str) -> list[str]:
    columns = _columns(results, title)
    rows = []
    for result in results:
        for name, scores in result["evaluations"].get(title, {}).get("sets", {}).items():
            count = next(iter(scores.values()))["n"]
            rows.append([result["name"], name, f"{count:.0f}", *(_cell(scores, column) for column in columns)])
    return _table(["variant", "set", "objects", *(COLUMN_TITLES[column] for column in columns)], rows, words=2)


def _protocols(results: Sequence[Result], title: str) -> list[str]:
    """The protocol of an evaluation; it may differ between variants only in what they are."""
    found = []
    for result in results:
        protocol = result["evaluations"].get(title, {}).get("protocol")
        if protocol is not None:
            limit, part = protocol["max_per_source"], protocol.get("part", {})
            words = [", ".join(protocol["data"]), *(f"{key} {_listed(value)}" for key, value in part.items())]
            words += [] if limit == "all" else [f"the first {limit} objects of each source"]
            found.append(f"{'; '.join(words)}. Protocol: {short_protocol(protocol)}.")
    return list(dict.fromkeys(found))


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _columns(results: Sequence[Result], title: str) -> list[str]:
    present = {column for result in results for column in result["evaluations"].get(title, {}).get("mean", {})}
    return [column for column in COLUMN_TITLES if column in present]


def _cell(scores: Mapping[str, Mapping[str, float]], column: str) -> str:
    values = scores.get(column, {})
    return " / ".join(format_number(values, metric) for metric in METRICS) if values else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> list[str]:
    rule = "|" + "---|" * words + "---:|" * (len(heads) - words)
    return ["| " + " | ".join(heads) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]
