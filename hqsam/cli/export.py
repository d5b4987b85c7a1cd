"""`hqsam export`: ONNX files of the image encoder and the decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer

from hqsam.cli.options import JsonFlag, load_model

if TYPE_CHECKING:
    from hqsam.export import ExportedFile
    from hqsam.models import Sam


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model's name (`hqsam models`), or a checkpoint file of a whole model."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for encoder.onnx and decoder.onnx.")],
    part: Annotated[Literal["encoder", "decoder", "both"], typer.Option("--part", help="What to export.")] = "both",
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option("--dtype", help="Number type; int8 is dynamic quantisation. Inputs and outputs stay float32."),
    ] = "float32",
    fusion: Annotated[
        Literal["sum", "hq", "sam"] | None,
        typer.Option("--fusion", help="What masks are made of; the model's default without it."),
    ] = None,
    masks: Annotated[
        Literal["all", "single", "best", "auto"],
        typer.Option(
            "--masks", help="Of a prompt: SAM's four, that of clear prompts, the best of three; auto: by its length."
        ),
    ] = "all",
    full_size_masks: Annotated[
        bool, typer.Option("--full-size-masks", help="Let the decoder also return masks of the original size.")
    ] = False,
    interface: Annotated[
        Literal["hqsam", "published"],
        typer.Option("--interface", help="published passes HQ-SAM's interm_embeddings instead of hq_features."),
    ] = "hqsam",
    opset: Annotated[int, typer.Option("--opset", metavar="N", help="Version of ONNX's operator set.")] = 18,
    as_json: JsonFlag = False,
) -> None:
    """Write ONNX files, and prove them: onnxruntime must compute what the model computes, or no file appears.

    \b
    hqsam export hq_vit_tiny.embedded --out runs/onnx
    hqsam export hq_vit_tiny.embedded --out runs/onnx16 --dtype float16
    hqsam export sam_vit_b.pth --out runs/web --masks auto --full-size-masks

    docs/export.md says what the files take and give.
    """
    from hqsam.export import export_decoder, export_encoder
    from hqsam.export.extra import import_extra

    for package in ("onnx", "onnxscript"):  # before weights are loaded or downloaded
        import_extra(package)
    name, sam = open_model(model)
    common = Common(dtype=dtype, fusion=fusion, interface=interface, opset=opset, name=name)
    rows = []
    if part != "decoder":
        rows.append(_show("encoder", export_encoder(sam, out / "encoder.onnx", **common), quiet=as_json))
    if part != "encoder":
        written = export_decoder(sam, out / "decoder.onnx", masks=masks, full_size_masks=full_size_masks, **common)
        rows.append(_show("decoder", written, quiet=as_json))
    if as_json:
        typer.echo(json.dumps(rows))


class Common(TypedDict):
    """Options of both parts."""

    dtype: Literal["float32", "float16", "int8"]
    fusion: Literal["sum", "hq", "sam"] | None
    interface: Literal["hqsam", "published"]
    opset: int
    name: str


def open_model(name_or_file: str) -> tuple[str, Sam]:
    """A model by its name or from a checkpoint file, on the CPU, and its name.

    Raises:
        ValueError: neither a known name nor a file, or a file that is not a whole model.
    """
    from hqsam.checkpoints import inspect_checkpoint
    from hqsam.errors import CheckpointError
    from hqsam.registry import create_model

    path = Path(name_or_file)
    if not path.is_file() and path.suffix not in (".pth", ".pt", ".safetensors"):
        return name_or_file, load_model(name_or_file, None, "cpu")
    info = inspect_checkpoint(path)
    if not info.has_sam or info.variant is None:
        raise CheckpointError(f"{path} is {info.title}; a whole model is exported (`hqsam convert --head` joins parts)")
    name = f"{'hq' if info.has_hq else 'sam'}_{info.variant}"
    return name, create_model(name, path, device="cpu")


def _show(part: str, written: ExportedFile, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        proof = (
            "not compared with the model: onnxruntime is not installed"
            if written.difference is None
            else f"differs from torch by at most {written.difference:.1e} of the largest value"
        )
        typer.echo(f"{written.path}: {part}, {written.size_bytes:,} bytes; {proof}")
    return {
        "path": str(written.path),
        "part": part,
        "size_bytes": written.size_bytes,
        "difference": written.difference,
        "operators": dict(written.operators),
        "metadata": dict(written.metadata),
    }
