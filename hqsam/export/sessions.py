"""Opening ONNX files with onnxruntime. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from hqsam.errors import DataError
from hqsam.export.extra import import_extra


def open_session(
    path: str | PathLike[str], providers: Sequence[str] = ("CPUExecutionProvider",), threads: int | None = None
) -> Any:
    """An `onnxruntime.InferenceSession`.

    Args:
        path: an ONNX file.
        providers: onnxruntime's names of what computes, best first.
        threads: processor threads; None is onnxruntime's choice.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        DataError: the file is missing or damaged, or onnxruntime cannot run it.
    """
    runtime = import_extra("onnxruntime")
    if not Path(path).is_file():
        raise DataError(f"ONNX file not found: {path}")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # its errors have no common base
        reason = str(error).strip().partition("\n")[0]
        raise DataError(f"onnxruntime cannot open {path}: {reason}") from error


def metadata_of(session: Any) -> dict[str, str]:
    """What a file says about itself."""
    return dict(session.get_modelmeta().custom_metadata_map)
