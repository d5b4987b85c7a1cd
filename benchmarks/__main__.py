"""``python -m benchmarks`` runs every benchmark, ``python -m benchmarks NAME`` one of them with its options.

A benchmark is a file with a function `command`, whose parameters typer turns into options, and a row in `COMMANDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from benchmarks import boundary_ap, curves, inference, train

COMMANDS: dict[str, Callable[..., Any]] = {
    "inference": inference.command,
    "curves": curves.command,
    "train": train.command,
    "boundary_ap": boundary_ap.command,
}

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for name, command in COMMANDS.items():
    app.command(name)(command)


@app.callback(invoke_without_command=True)
def run_all(context: typer.Context) -> None:
    """Speed and memory against the published code, in the same run. Without a name every benchmark runs."""
    if context.invoked_subcommand is None:
        for command in COMMANDS.values():
            command()


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
