"""`hqsam compare`: the same prompts answered by plain SAM and by HQ-SAM, side by side in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hqsam.cli.options import DEFAULT_MODEL, CheckpointFile, Device, ModelName, load_model, parse_box
from hqsam.cli.predict import Boxes, Picture, Points, make_request, predict_objects
from hqsam.cli.results import draw_overlay

TITLES = {"sam": "SAM", "hq": "HQ", "sum": "SAM + HQ"}

Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write; .png or .jpg.")]
Zoom = Annotated[
    str | None, typer.Option("--zoom", metavar="x0,y0,x1,y1", help="Show only this part of the photograph, enlarged.")
]


def compare(
    image: Picture,
    box: Boxes = None,
    point: Points = None,
    model: ModelName = DEFAULT_MODEL,
    checkpoint: CheckpointFile = None,
    out: Out = Path("comparison.png"),
    zoom: Zoom = None,
    with_hq: Annotated[bool, typer.Option("--with-hq", help="Add a panel of the HQ mask alone.")] = False,
    device: Device = "auto",
) -> None:
    """Show what plain SAM and HQ-SAM answer to the same prompts.

    \b
    hqsam compare data/samples/camera.png --box 0,62,332,511 --out runs/compare.png
    """
    request = make_request(box, point)
    part = None if zoom is None else parse_box(zoom)
    from hqsam.images import read_image, write_image
    from hqsam.predictor import SamPredictor
    from hqsam.visualize import enlarge, side_by_side

    pixels = read_image(image)
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
