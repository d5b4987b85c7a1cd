"""`hqsam convert`: another layout, container, number type or part of a checkpoint, proved by reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from hqsam.cli.inspect import describe
from hqsam.cli.options import JsonFlag

RecommendedFusion = Annotated[
    Literal["sum", "hq", "sam"] | None,
    typer.Option("--recommended-fusion", help="Fusion that users of a .safetensors DST get by default."),
]
NumberType = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option("--dtype", help="Number type of the result; as in SRC by default."),
]
Interpolate = Annotated[
    Path | None,
    typer.Option("--interpolate", metavar="FILE", help="Checkpoint towards whose weights those of SRC are moved."),
]
Share = Annotated[
    float | None,
    typer.Option("--share", min=0, max=1, help="How far: the share of that file's weights; 0.5 by default."),
]
RecommendedScore = Annotated[
    Literal["sam", "own", "own_boundary"] | None,
    typer.Option("--recommended-score", help="The same for the score, where DST has a score head."),
]
RecommendedRefine = Annotated[
    Literal["none", "again", "again+again", "zoom", "again+zoom", "again+again+zoom"] | None,
    typer.Option("--recommended-refine", help="The same for more looks at an object."),
]
RecommendedHeedClicks = Annotated[
    Literal["yes", "no"] | None,
    typer.Option("--recommended-heed-clicks", help="The same for clicks that are heeded."),
]
RecommendedUpsampling = Annotated[
    Literal["bilinear", "guided"] | None,
    typer.Option("--recommended-upsampling", help="The same for how masks get the size of the image."),
]

Format = Annotated[
    Literal["official", "sam", "hq_sam", "hq_head", "hq_decoder", "transformers", "timm"],
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="official, sam, hq_sam, hq_head, hq_decoder, transformers or timm (the encoder alone).",
    ),
]
Lora = Annotated[
    Path | None, typer.Option("--lora", metavar="FILE", help="Encoder adapter of a training run to merge into SRC.")
]
Part = Annotated[
    Literal["all", "hq", "hq_decoder", "sam"],
    typer.Option("--part", help="What to keep: all, the HQ head, that and SAM's mask decoder, or plain SAM."),
]


def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint of any known layout.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Ends with .pth, .pt or .safetensors.")],
    to: Format = "official",
    head: Annotated[
        Path | None, typer.Option("--head", metavar="FILE", help="HQ head, or HQ mask decoder, to put into SRC.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option("--encoder", metavar="FILE", help="Image encoder of timm to put into SRC.")
    ] = None,
    lora: Lora = None,
    interpolate: Interpolate = None,
    share: Share = None,
    part: Part = "all",
    dtype: NumberType = None,
    recommended_fusion: RecommendedFusion = None,
    recommended_score: RecommendedScore = None,
    recommended_refine: RecommendedRefine = None,
    recommended_heed_clicks: RecommendedHeedClicks = None,
    recommended_upsampling: RecommendedUpsampling = None,
    as_json: JsonFlag = False,
) -> None:
    """Rewrite a checkpoint of any known layout, and compare what was written with what was meant.

    \b
    hqsam convert sam_hq_vit_l.pth sam_hq_vit_l.fp16.safetensors --dtype float16
    hqsam convert mobile_sam.pt merged.pth --head hq_head.safetensors
    hqsam convert sam_hq_vit_b.pth adapted.safetensors --lora runs/mine/lora.safetensors
    hqsam convert sam_hq_vit_b.pth between.safetensors --interpolate runs/mine/model.safetensors --share 0.5
    hqsam convert sam_hq_vit_b.pth model.safetensors --to transformers
    """
    import torch

    from hqsam.checkpoints import convert_checkpoint

    recommended = {
        "fusion": recommended_fusion,
        "score": recommended_score,
        "refine": recommended_refine,
        "heed_clicks": recommended_heed_clicks,
        "upsampling": recommended_upsampling,
    }
    info = convert_checkpoint(
        source,
        destination,
        to=to,
        head=head,
        encoder=encoder,
        lora=lora,
        interpolate=interpolate,
        share=share,
        part=part,
        dtype=None if dtype is None else getattr(torch, dtype),
        metadata={f"recommended_{name}": text for name, text in recommended.items() if text is not None} or None,
    )
    rows = describe(info)
    typer.echo(json.dumps(rows) if as_json else f"wrote {info.path}: {info.title}, {rows['dtype']}")
