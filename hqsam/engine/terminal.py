"""The terminal that logs and progress bars share, so that they do not write over each other."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@functools.cache
def terminal() -> Console:
    """The standard error stream; results go to the standard output."""
    from rich.console import Console

    return Console(stderr=True)


def progress_bar(*, visible: bool = True, note: bool = False) -> Progress:
    """A bar with counts and the time that is left (ETA); with `note`, what the field of that name of a task says."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("ETA")]
    columns += [TimeRemainingColumn(), *([TextColumn("{task.fields[note]}")] if note else [])]
    return Progress(*columns, console=terminal(), disable=not visible)
