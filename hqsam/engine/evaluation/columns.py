"""Which columns of a report a model can fill: SAM, HQ, SAM + HQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hqsam.models import Sam
from hqsam.types import FUSIONS, Fusion, ScoreSource

COLUMNS: tuple[Fusion, ...] = ("sam", "hq", "sum")
"""In the order of reports."""
_SCORE_TITLES: Mapping[ScoreSource, str] = {
    "sam": "SAM's predicted IoU of SAM's mask",
    "own": "predicted IoU of the mask itself, by the score head",
    "own_boundary": "predicted boundary IoU of the mask itself, by the score head",
}


def possible_columns(model: Sam) -> tuple[Fusion, ...]:
    """All three with a trained HQ head; plain SAM alone without one."""
    return COLUMNS if model.has_hq and model.head_state != "untrained" else ("sam",)


def choose_columns(model: Sam, asked: Sequence[str]) -> tuple[Fusion, ...]:
    """The columns that are asked for, in the order of reports; all that the model has for an empty list.

    Raises:
        ValueError: there is no such column, or the model cannot fill it.
    """
    require_columns(asked)
    possible = possible_columns(model)
    if lacking := [column for column in asked if column not in possible]:
        raise ValueError(f"this model gives the columns {', '.join(possible)}, asked for {', '.join(lacking)}")
    return tuple(column for column in possible if column in asked or not asked)


def column_scores(model: Sam, columns: Sequence[Fusion], asked: ScoreSource | None) -> dict[Fusion, ScoreSource]:
    """What the masks of each column are scored by: plain SAM's by SAM's score in any case.

    Args:
        model: the model.
        columns: of the report.
        asked: as in `SamPredictor.predict`; None for the model's default.

    Raises:
        ValueError: the model, or every column, lacks the score that is asked for.
    """
    if asked is not None and all(column == "sam" for column in columns):
        model.resolve_score(asked, "sam")
    return {column: "sam" if column == "sam" else model.resolve_score(asked, column) for column in columns}


def describe_scores(scores: Mapping[Fusion, ScoreSource]) -> dict[str, str]:
    """The same for a protocol, in words."""
    return {column: _SCORE_TITLES[source] for column, source in scores.items()}


def require_columns(asked: Sequence[str]) -> None:
    """Refuse what is no column.

    Raises:
        ValueError: the first that is none.
    """
    unknown = [column for column in asked if column not in FUSIONS]
    if unknown:
        raise ValueError(f"columns must be among {', '.join(COLUMNS)}, got {', '.join(unknown)}")
