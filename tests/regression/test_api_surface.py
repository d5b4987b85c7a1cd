"""The public surface is a file: whoever changes a name, a signature or an option changes it there too, visibly.

`python -m tests.regression.test_api_surface` writes the file anew.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import hqsam
from hqsam.cli.main import app

FILE = Path(__file__).with_name("api_surface.json")


def signature(value: Any) -> Any:
    """What a caller has to know: a signature, the public methods of a class, the keys of a table, a type."""
    if inspect.isclass(value) and issubclass(value, Exception):
        return [base.__name__ for base in value.__mro__[1:-2]]
    if inspect.isclass(value):
        own = [name for name, member in inspect.getmembers(value) if not name.startswith("_") and callable(member)]
        inherited = {
            name for base in value.__mro__[1:] if not base.__module__.startswith("hqsam") for name in vars(base)
        }
        methods = {name: str(inspect.signature(getattr(value, name))) for name in own if name not in inherited}
        return {"class": str(inspect.signature(value)), **methods}
    if isinstance(value, dict):
        return sorted(value)
    return str(inspect.signature(value)) if callable(value) else type(value).__name__


def surface() -> dict[str, Any]:
    names = {name: signature(getattr(hqsam, name)) for name in sorted(hqsam.__all__)}
    return {"hqsam": names, "command line": dict(commands(typer.main.get_command(app)))}


def commands(command: Any, prefix: str = "hqsam") -> Iterator[tuple[str, list[str]]]:
    """(full name, parameters) of a command and of those below it."""
    rows = [" ".join(p.opts) if p.opts[0].startswith("-") else p.name.upper() for p in command.params]
    yield prefix, rows
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{prefix} {name}")


@pytest.mark.parametrize("part", ["hqsam", "command line"])
def test_surface_is_that_of_the_file(part: str) -> None:
    frozen = json.loads(FILE.read_text("utf-8"))
    assert surface()[part] == frozen[part], (
        f"if this change is meant, run python -m tests.regression.{Path(__file__).stem}"
    )


if __name__ == "__main__":
    FILE.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
