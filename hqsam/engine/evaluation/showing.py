"""Plots, pictures and the page of an evaluation of masks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from hqsam.engine.evaluation.gallery import Figure, write_gallery
from hqsam.engine.evaluation.masks import MaskTask
from hqsam.engine.evaluation.pictures import KINDS, main_column, rank_cases, write_case_pictures
from hqsam.engine.evaluation.report import COLUMN_TITLES, EvalResult
from hqsam.engine.plots import draw_scatter

_HEADINGS = {
    "worst": "Worst cases by boundary IoU",
    "gain": "Where HQ gains most over SAM",
    "decline": "Where HQ loses most against SAM",
}
_METRICS = {"mbiou": "boundary IoU", "miou": "mask IoU"}


def show_masks(task: MaskTask, result: EvalResult, count: int, folder: Path) -> None:
    """Write `plots/` (single cases; each object's scores, SAM against HQ) and `gallery.html`.

    Args:
        task: what was evaluated; the cases that are shown are predicted again.
        result: its numbers, with records.
        count: pictures of each kind of case; 0 for none, and no page.
        folder: the run folder.

    Raises:
        OutputError: a file cannot be written.
    """
    plots = _scatter(result, folder / "plots")
    files = write_case_pictures(task.path, task.items, result.records, count, folder / "plots")
    if not count:
        return
    cases = rank_cases(result.records, count)
    by_name = {file.stem: file for file in files}
    sections = {"Every object": plots}
    for kind in KINDS:
        sections[_HEADINGS[kind]] = [
            Figure(by_name[f"{kind}_{rank:02d}"], f"{record.set}, {record.image}, object {record.object}")
            for rank, record in enumerate(cases.get(kind, []), start=1)
        ]
    write_gallery(folder / "gallery.html", result, sections)


def _scatter(result: EvalResult, folder: Path) -> list[Figure]:
    """Where plain SAM and another column are both there: one point an object."""
    records = result.records
    main = main_column(tuple(records[0].miou)) if records else "sam"
    if main == "sam" or "sam" not in records[0].miou:
        return []
    figures = []
    for metric, name in _METRICS.items():
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for record in records:
            values = getattr(record, metric)
            groups[record.set].append((100 * values["sam"], 100 * values[main]))
        file = folder / f"scatter_{metric}.png"
        draw_scatter(file, f"{name} in percent, {COLUMN_TITLES[main]}", groups, f"{name} in percent, SAM")
        figures.append(Figure(file, f"{name} of each object: above the line {COLUMN_TITLES[main]} is better than SAM"))
    return figures
