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


def progress_bar(*, visible: bool = True) -> Progress:
    """A bar with counts and the time that is left."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=terminal(), disable=not visible)
