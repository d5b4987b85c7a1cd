"""Which columns of a report a model can fill: SAM, HQ, SAM + HQ."""

from __future__ import annotations

from collections.abc import Sequence

from hqsam.models import Sam
from hqsam.types import FUSIONS, Fusion

COLUMNS: tuple[Fusion, ...] = ("sam", "hq", "sum")
"""In the order of reports."""


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


def require_columns(asked: Sequence[str]) -> None:
    """Refuse what is no column.

    Raises:
        ValueError: the first that is none.
    """
    unknown = [column for column in asked if column not in FUSIONS]
    if unknown:
        raise ValueError(f"columns must be among {', '.join(COLUMNS)}, got {', '.join(unknown)}")
