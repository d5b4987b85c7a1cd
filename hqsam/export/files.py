"""ONNX files: written whole and proved or not at all, and what they say about themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hqsam.checkpoints import atomic_path
from hqsam.errors import DataError
from hqsam.export.extra import import_extra
from hqsam.export.operators import operator_counts

ONE_FILE_BYTES = 2**31 - 2**24
"""Weights beyond it are written beside the graph: the format of a single file ends at 2 GB."""

_T = TypeVar("_T")


def write_graph(proto: Any, path: Path, metadata: Mapping[str, str], prove: Callable[[Path], _T]) -> tuple[int, _T]:
    """Write a graph; what `prove` refuses does not appear.

    Args:
        proto: an `onnx.ModelProto` with its weights inside; used up.
        path: the file. Weights that do not fit into it go to a file of the same name with `.data` at its end.
        metadata: entries that are added to the graph's own.
        prove: looks at the file before it gets its name.

    Returns:
        Bytes written, and what `prove` returned.

    Raises:
        OutputError: the files cannot be written.
    """
    onnx = import_extra("onnx")
    onnx.helper.set_model_props(proto, dict(metadata))
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    with contextlib.ExitStack() as stack:
        if weights < ONE_FILE_BYTES:
            temporary = stack.enter_context(atomic_path(path))
            onnx.save_model(proto, temporary)
            return temporary.stat().st_size, prove(temporary)
        beside = path.with_name(path.name + ".data")
        temporary = stack.enter_context(atomic_path(path))  # left last: the graph appears after its weights
        data = stack.enter_context(atomic_path(beside))
        onnx.save_model(proto, temporary, save_as_external_data=True, location=data.name, size_threshold=0)
        result = prove(temporary)
        _rename_data(onnx, temporary, beside.name)
        return temporary.stat().st_size + data.stat().st_size, result


def _rename_data(onnx: Any, path: Path, name: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save_model(proto, path)


def describe_exported(path: Path) -> dict[str, Any]:
    """What is known about an ONNX file without running it, ready for JSON.

    Raises:
        MissingExtraError: onnx is not installed.
        DataError: the file is missing or no ONNX file.
    """
    onnx = import_extra("onnx")
    if not path.is_file():
        raise DataError(f"ONNX file not found: {path}")
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors
        raise DataError(f"ONNX file cannot be read (truncated or damaged): {path}") from error
    if not proto.graph.node:
        raise DataError(f"ONNX file cannot be read (it holds no graph): {path}")
    own = {entry.key.removeprefix("hqsam."): entry.value for entry in proto.metadata_props}
    return {
        "path": str(path),
        **own,
        "inputs": {value.name: _shape(value) for value in proto.graph.input},
        "outputs": {value.name: _shape(value) for value in proto.graph.output},
        "operators": operator_counts(proto),
        "size_bytes": path.stat().st_size,
    }


def _shape(value: Any) -> str:
    dims = value.type.tensor_type.shape.dim
    return f"({', '.join(dim.dim_param or str(dim.dim_value) for dim in dims)})"
