"""`hqsam convert`: another container, number type or part of a checkpoint, proved by reading the result back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hqsam.cli.inspect import describe
from hqsam.cli.options import JsonFlag


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint of any known layout.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Ends with .pth, .pt or .safetensors.")],
    head: Annotated[
        Path | None, typer.Option("--head", metavar="FILE", help="HQ head, or HQ mask decoder, to put into SRC.")
    ] = None,
    part: Annotated[
        Literal["all", "hq", "sam"], typer.Option("--part", help="What to keep: all, the HQ head, or plain SAM.")
    ] = "all",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option("--dtype", help="Number type of the result; as in SRC by default."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rewrite a checkpoint under the official names, and compare what was written with what was meant.

    \b
    hqsam convert sam_hq_vit_l.pth sam_hq_vit_l.fp16.safetensors --dtype float16
    hqsam convert mobile_sam.pt merged.pth --head hq_head.safetensors
    """
    import torch

    from hqsam.checkpoints import convert_checkpoint

    chosen = None if dtype is None else getattr(torch, dtype)
    info = convert_checkpoint(source, destination, head=head, part=part, dtype=chosen)
    rows = describe(info)
    typer.echo(json.dumps(rows) if as_json else f"wrote {info.path}: {info.title}, {rows['dtype']}")
