"""`hqsam inspect`: what a checkpoint file is."""

from __future__ import annotations

import json
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
    rows = describe(info)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    typer.echo(f"{info.path}: {info.title}")
    for name, value in rows.items():
        if name != "path" and value not in (None, {}):
            typer.echo(f"  {name.replace('_', ' '):<20}{_words(value)}")


def _show_exported(file: Path, as_json: bool) -> None:
    from hqsam.export.files import describe_exported

    rows = describe_exported(file)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    typer.echo(f"{file}: ONNX, {rows.get('part', 'not exported by hqsam')}")
    for name, value in rows.items():
        if name not in ("path", "part") and value not in ("", {}):
            typer.echo(f"  {name.replace('_', ' '):<20}{_words(value)}")


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
