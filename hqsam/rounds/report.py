"""`report.md`: all rounds in a table, and why each ended as it did."""

from __future__ import annotations

from pathlib import Path

from hqsam.checkpoints import atomic_path
from hqsam.rounds.deciding import CRITERION, METRICS, describe
from hqsam.rounds.state import Round, Rounds

REPORT_FILE = "report.md"
_COLUMNS = (
    *("round", "images", "masks", "masks an image", "s a mask", "IoU of accepted with proposed", "trained on"),
    *("held out", "mIoU", "mBIoU", "outcome"),
)


def write_report(known: Rounds, folder: Path) -> None:
    """Replace the report.

    Raises:
        OutputError: it cannot be written; the old one stays.
    """
    with atomic_path(folder / REPORT_FILE) as temporary:
        temporary.write_text(format_rounds(known), encoding="utf-8")


def format_rounds(known: Rounds) -> str:
    """Markdown."""
    current = "the one of the beginning" if known.current is None else f"that of round {known.current}"
    lines = [
        f"# Rounds of {known.model}",
        "",
        f"The current model is {current}. {CRITERION}",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
        *(_row(item) for item in known.rounds),
        "",
        f"IoU in percent, before and after, on the {known.held_out_tenths} tenths of the images that are never trained "
        "on, prompted with the box of the true mask.",
        "",
    ]
    for item in known.rounds:
        lines.append(f"- {_sentence(item)}")
    return "\n".join(lines) + "\n"


def _row(item: Round) -> str:
    accepted = item.proposals.get("mean_iou")
    cells = [
        str(item.number),
        str(item.annotated.images),
        str(item.annotated.masks),
        _number(item.masks_per_image),
        _number(item.seconds_per_mask),
        _number(accepted, 3),
        f"{item.trained_on.masks} masks",
        f"{item.held_out.masks} masks, {item.held_out.images} images",
        *(_change(item, name) for name in METRICS),
        item.outcome or "under way",
    ]
    return "| " + " | ".join(cells) + " |"


def _change(item: Round, name: str) -> str:
    change = item.changes.get(name)
    return "-" if change is None else f"{change.before:.2f} -> {change.after:.2f}"


def _sentence(item: Round) -> str:
    start = "the first model" if item.start is None else f"the model of round {item.start}"
    text = f"Round {item.number} went on from {start}: {item.reason or 'under way'}."
    if "miou" in item.changes:
        text += f" mIoU: {describe(item.changes['miou'])}."
    if item.untouched:
        text += (
            f" {item.untouched} of its {item.held_out.masks} held-out masks are proposals that were accepted as they "
            "were, which favours the model that proposed them."
        )
    return text


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
