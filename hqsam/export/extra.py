"""The packages of the `onnx` extra: imported when they are needed, and missed in one line that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from hqsam.errors import HqsamError


class MissingExtraError(HqsamError):
    """A package of the `onnx` extra is not installed, or cannot be imported."""


def import_extra(name: str) -> Any:
    """Import a package of the extra.

    Args:
        name: "onnx", "onnxscript" or "onnxruntime", or a module of them.

    Raises:
        MissingExtraError: it cannot be imported; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        reason = str(error).strip().partition("\n")[0]
        package = name.partition(".")[0]
        raise MissingExtraError(f"ONNX files need {package} ({reason}): pip install 'hqsam[onnx]'") from error
