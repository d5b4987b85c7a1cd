"""Plots and pictures of evaluations, and the page that shows them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from hqsam.engine.evaluation.gallery import Figure, write_gallery
from hqsam.engine.evaluation.masks import MaskTask
from hqsam.engine.evaluation.pictures import KINDS, main_column, rank_cases, write_case_pictures
from hqsam.engine.evaluation.report import COLUMN_TITLES, EvalResult
from hqsam.engine.plots import COLUMN_COLORS, Line, draw_plot, draw_scatter
from hqsam.errors import OutputError
from hqsam.metrics.edges import precision_recall

CASES = {
    "worst": "Worst cases by boundary IoU",
    "gain": "Where HQ gains most over SAM",
    "decline": "Where HQ loses most against SAM",
}
"""Headings of the kinds of cases."""
_METRICS = {"mbiou": "boundary IoU", "miou": "mask IoU"}
_STEPS = {
    "click": "clicks",
    "corrected": "clicks after the box",
    "points": "random points",
    "noise": "noise of the box",
}
"""Kinds of steps in the names of metrics, and what their curves go over."""
_DRAWN = (
    "precision_recall_*.png",
    "scatter_*.png",
    *(f"*_{kind}.png" for kind in _STEPS),
    *(f"{kind}_[0-9][0-9].png" for kind in KINDS),
)
"""Names of the pictures that evaluations write."""


def remove_pictures(folder: Path) -> None:
    """Delete what an earlier evaluation drew in this run folder: its numbers are about to be replaced.

    What another program keeps there, a training run for instance, stays.

    Raises:
        OutputError: a file cannot be deleted.
    """
    drawn = [file for pattern in _DRAWN for file in (folder / "plots").glob(pattern)]
    for file in [folder / "gallery.html", *drawn]:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot replace {file}: {error.strerror or error}") from error


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
        sections[CASES[kind]] = [
            Figure(by_name[f"{kind}_{rank:02d}"], f"{record.set}, {record.image}, object {record.object}")
            for rank, record in enumerate(cases.get(kind, []), start=1)
        ]
    write_gallery(folder / "gallery.html", result, sections)


def show_curves(result: EvalResult, count: int, folder: Path) -> None:
    """Write the curves over prompts ("miou_click1", "miou_click2", ...) of the mean over sets, and `gallery.html`.

    Args:
        result: its numbers.
        count: 0 for no page.
        folder: the run folder.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = []
    for kind, label in _STEPS.items():
        for metric, name in _METRICS.items():
            lines = []
            for column, values in result.mean.items():
                curve = _steps(values, f"{metric}_{kind}")
                if len(curve) > 1:
                    places = sorted(curve)
                    heights = [curve[place] for place in places]
                    lines.append(Line(COLUMN_TITLES[column], places, heights, COLUMN_COLORS[column]))
            if lines:
                file = folder / "plots" / f"{metric}_{kind}.png"
                title = f"{name} in percent, mean over sets"
                draw_plot(file, title, lines, x_label=label, whole=kind != "noise")
                figures.append(Figure(file, f"{title}, over {label}"))
    if count:
        write_gallery(folder / "gallery.html", result, {"Curves": figures})


def _steps(values: Mapping[str, float], prefix: str) -> dict[float, float]:
    """Number behind the prefix -> value, of the metrics whose name is the prefix and a number."""
    numbers = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    return {float(number): value for number, value in numbers.items() if number[:1].isdecimal()}


def show_edges(result: EvalResult, count: int, folder: Path) -> None:
    """Write precision over recall of every set, and `gallery.html`.

    Args:
        result: its numbers, with records.
        count: 0 for no page.
        folder: the run folder.

    Raises:
        OutputError: a file cannot be written.
    """
    figures = []
    for name, scores in result.sets.items():
        records = [record for record in result.records if record.set == name]
        lines = []
        for column in scores:
            recall, precision = precision_recall(records, column)
            found = (recall > 0) | (precision > 0)
            points = sorted(zip((100 * recall[found]).tolist(), (100 * precision[found]).tolist(), strict=True))
            if points:
                x, y = zip(*points, strict=True)
                lines.append(Line(COLUMN_TITLES[column], x, y, COLUMN_COLORS[column]))
        if lines:
            file = folder / "plots" / f"precision_recall_{name}.png"
            draw_plot(file, "precision in percent", lines, x_label="recall in percent")
            figures.append(Figure(file, f"{name}: precision over recall of the thresholds"))
    if count:
        write_gallery(folder / "gallery.html", result, {"Curves": figures})


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
