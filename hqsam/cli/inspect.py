"""`hqsam inspect`: what a checkpoint file is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hqsam.cli.options import JsonFlag

if TYPE_CHECKING:
    from hqsam.checkpoints import CheckpointInfo


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .pth, .pt, .safetensors or exported .onnx file.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what a checkpoint holds: layout, variant, trained HQ head, score head, tensors, number type, size, metadata.

    \b
    hqsam inspect sam_hq_vit_l.pth
    """
    if file.suffix == ".onnx":
        _show_exported(file, as_json)
        return
    from hqsam.checkpoints import inspect_checkpoint

    info = inspect_checkpoint(file)
    _show(f"{info.path}: {info.title}", describe(info), as_json, hidden=("path",))


def _show_exported(file: Path, as_json: bool) -> None:
    from hqsam.export.files import describe_exported

    rows = describe_exported(file)
    title = f"{file}: ONNX, {rows.get('part', 'not exported by hqsam')}"
    _show(title, rows, as_json, hidden=("path", "part"))


def _show(title: str, rows: Mapping[str, Any], as_json: bool, hidden: Sequence[str]) -> None:
    """What is known of a file as JSON, or for people: the title and a line for all that is not hidden or empty."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    typer.echo(title)
    for name, value in rows.items():
        if name not in hidden and value not in (None, "", {}):
            typer.echo(f"  {name.replace('_', ' '):<24}{_words(value)}")


def describe(info: CheckpointInfo) -> dict[str, Any]:
    """What is known about a checkpoint, ready for JSON."""
    return {
        "path": str(info.path),
        "layout": info.layout,
        "variant": info.variant,
        "has_sam": info.has_sam,
        "has_hq": info.has_hq,
        "head_trained": info.head_trained,
        "head": info.head,
        "has_score": info.has_score,
        "dtype": info.dtype,
        "num_tensors": info.num_tensors,
        "num_parameters": info.num_parameters,
        "size_bytes": info.size_bytes,
        "recommended_fusion": info.metadata.get("recommended_fusion"),
        "recommended_score": info.metadata.get("recommended_score"),
        "recommended_refine": info.metadata.get("recommended_refine"),
        "recommended_heed_clicks": info.metadata.get("recommended_heed_clicks"),
        "recommended_upsampling": info.metadata.get("recommended_upsampling"),
        "metadata": dict(info.metadata),
    }


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={text}" for key, text in value.items())
    return str(value)
