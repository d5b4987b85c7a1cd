"""The packages of the `text` extra: imported when they are needed, and missed in one line that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from hqsam.errors import HqsamError


class MissingExtraError(HqsamError):
    """A package of the `text` extra is not installed, or cannot be imported."""


def import_extra(name: str) -> Any:
    """Import a package of the extra.

    Args:
        name: "transformers" or "open_clip".

    Raises:
        MissingExtraError: it cannot be imported; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingExtraError(f"text prompts need {name} ({reason}): pip install 'hqsam[text]'") from error


def first_line(error: BaseException) -> str:
    """The first line of an error that another package wrote over several."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
