"""`hqsam compare`: plain SAM and HQ-SAM on one picture, or two evaluations with confidence intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hqsam.cli.options import DEFAULT_MODEL, CheckpointFile, Device, JsonFlag, ModelName, load_model, parse_box
from hqsam.cli.predict import Boxes, Points, make_request, predict_objects
from hqsam.cli.results import draw_overlay

TITLES = {"sam": "SAM", "hq": "HQ", "sum": "SAM + HQ"}

Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write; .png or .jpg.")]
Zoom = Annotated[
    str | None, typer.Option("--zoom", metavar="x0,y0,x1,y1", help="Show only this part of the photograph, enlarged.")
]


Files = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE | RESULTS [RESULTS]", help="A photograph, or the results.json of one or two runs."),
]
Columns = Annotated[
    str | None, typer.Option("--columns", metavar="A,B", help="Of sam, hq, sum; by default the best that each run has.")
]


def compare(
    files: Files,
    box: Boxes = None,
    point: Points = None,
    model: ModelName = DEFAULT_MODEL,
    checkpoint: CheckpointFile = None,
    out: Out = Path("comparison.png"),
    zoom: Zoom = None,
    with_hq: Annotated[bool, typer.Option("--with-hq", help="Add a panel of the HQ mask alone.")] = False,
    device: Device = "auto",
    columns: Columns = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of two runs.")] = 10_000,
    confidence: Annotated[float, typer.Option(help="Percent of the bootstrap inside an interval.")] = 95.0,
    as_json: JsonFlag = False,
) -> None:
    """Show what plain SAM and HQ-SAM answer to the same prompts, or how two evaluations differ.

    One run alone: its plain SAM against its best column.

    \b
    hqsam compare data/samples/camera.png --box 0,62,332,511 --out runs/compare.png
    hqsam compare runs/before/results.json runs/after/results.json
    hqsam compare runs/after --columns sam,sum
    """
    if files[0].suffix == ".json" or files[0].is_dir():
        if box or point or zoom or with_hq:
            raise ValueError("--box, --point, --zoom and --with-hq belong to a photograph, not to results")
        _compare_results(files, columns, resamples, confidence / 100, as_json)
        return
    if len(files) > 1 or columns or as_json:
        raise ValueError("of a photograph one is shown, without --columns and --json; of results one or two")
    request = make_request(box, point)
    part = None if zoom is None else parse_box(zoom)
    from hqsam.images import read_image, write_image
    from hqsam.predictor import SamPredictor
    from hqsam.visualize import enlarge, side_by_side

    pixels = read_image(files[0])
    predictor = SamPredictor(load_model(model, checkpoint, device))
    if not predictor.model.has_hq:
        raise ValueError(f"{model} is plain SAM and has nothing to compare with; use an hq_ model")
    predictor.set_image(pixels)
    panels = {}
    for fusion in ("sam", "hq", "sum") if with_hq else ("sam", "sum"):
        masks, _ = predict_objects(predictor, request, fusion)
        overlay = draw_overlay(pixels, masks, request.boxes, request.points)
        panels[TITLES[fusion]] = overlay if part is None else enlarge(overlay, part)
    write_image(out, side_by_side(list(panels.values()), list(panels)))
    typer.echo(f"wrote {out}")


def _compare_results(files: list[Path], columns: str | None, resamples: int, confidence: float, as_json: bool) -> None:
    from hqsam.engine.evaluation.comparison import compare_results, format_comparison, read_side

    if len(files) > 2:
        raise ValueError(f"one or two evaluations are compared, got {len(files)}")
    chosen: list[str | None] = [None, None]
    if columns is not None:
        names = columns.split(",")
        if len(names) != 2 or set(names) - {"sam", "hq", "sum"}:
            raise ValueError(f"--columns takes two of sam, hq, sum, for instance sam,sum; got {columns!r}")
        chosen = list(names)
    elif len(files) == 1:
        chosen = ["sam", None]
    sides = [read_side(file, column) for file, column in zip([files[0], files[-1]], chosen, strict=True)]
    found = compare_results(*sides, resamples=resamples, confidence=confidence)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else format_comparison(found).rstrip())
