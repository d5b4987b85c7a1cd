"""`hqsam predict`: one photograph and its prompts in, masks, an overlay and a JSON file out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hqsam.cli.options import (
    DEFAULT_MODEL,
    CheckpointFile,
    Device,
    JsonFlag,
    ModelName,
    load_model,
    parse_box,
    parse_point,
)
from hqsam.cli.results import draw_overlay, make_record, write_results
from hqsam.cli.text_prompts import (
    Detector,
    Projection,
    TextFinder,
    TextRequest,
    Texts,
    Threshold,
    make_text_request,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hqsam.predictor import SamPredictor
    from hqsam.types import Fusion, Refine, Upsampling


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of one picture, in pixels of the picture."""

    boxes: list[list[float]]  # XYXY
    points: list[tuple[float, float, int]]  # x, y, label
    multimask: bool
    refine: Refine | None = None
    heed_clicks: bool | None = None
    upsampling: Upsampling | None = None


Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="Photograph; any format that Pillow reads.")]
Boxes = Annotated[
    list[str] | None, typer.Option("--box", metavar="x0,y0,x1,y1", help="Box in pixels; one mask for each.")
]
Points = Annotated[
    list[str] | None,
    typer.Option("--point", metavar="x,y[,label]", help="Point in pixels; label 1 inside (default), 0 outside."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
FusionChoice = Annotated[
    Literal["sum", "hq", "sam"] | None,
    typer.Option("--fusion", help="SAM + HQ (the default where there is an HQ head), HQ alone, or plain SAM."),
]
Multimask = Annotated[
    bool | None,
    typer.Option(
        "--multimask/--single-mask",
        help="Let SAM choose among three masks, for ambiguous prompts. Default: for one point alone.",
    ),
]

RefineChoice = Annotated[
    Literal["none", "again", "again+again", "zoom", "again+zoom", "again+again+zoom"] | None,
    typer.Option(
        "--refine",
        help="again: feed each answer back once, again+again: twice. zoom: look again at the part of the picture "
        "around each small object. Default: what the weights recommend.",
    ),
]

HeedClicks = Annotated[
    bool | None,
    typer.Option(
        "--heed-clicks/--no-heed-clicks",
        help="Let the mask with HQ heed points (docs/predictor.md). Default: what the weights recommend.",
    ),
]

UpsamplingChoice = Annotated[
    Literal["bilinear", "guided"] | None,
    typer.Option(
        "--upsampling",
        help="guided: edges follow those of the picture; bilinear: SAM's own. Default: what the weights recommend.",
    ),
]


def predict(
    image: Picture,
    box: Boxes = None,
    point: Points = None,
    model: ModelName = DEFAULT_MODEL,
    checkpoint: CheckpointFile = None,
    out: Out = Path("predictions"),
    fusion: FusionChoice = None,
    multimask: Multimask = None,
    refine: RefineChoice = None,
    heed_clicks: HeedClicks = None,
    upsampling: UpsamplingChoice = None,
    device: Device = "auto",
    as_json: JsonFlag = False,
    text: Texts = None,
    detector: Detector = None,
    text_threshold: Threshold = None,
    text_projection: Projection = None,
) -> None:
    """Segment objects in a photograph from boxes, points or text.

    Several boxes give several masks. All points belong to one object; beside a box or a text they correct it.

    \b
    hqsam predict data/samples/rocket.jpg --box 311,127,333,406
    hqsam predict data/samples/camera.png --point 293,280 --point 347,400 --point 256,430 --out runs/tripod
    hqsam predict data/samples/camera.png --text "a man" --text "a tripod"

    Writes NAME_mask.png (NAME_mask_0.png, ... for several masks), NAME_overlay.png and NAME.json.
    """
    wanted = make_text_request(text, detector, text_threshold, text_projection)
    request = make_request(box, point, multimask, wanted, refine=refine, heed_clicks=heed_clicks, upsampling=upsampling)
    from hqsam.images import read_image
    from hqsam.predictor import SamPredictor

    timings: dict[str, float] = {}
    pixels = read_image(image)
    with _timed(timings, "load_model"):
        network = load_model(model, checkpoint, device)
        finder = None if wanted is None else TextFinder(wanted, model, str(network.device))
    predictor = SamPredictor(network)
    with _timed(timings, "encode"):
        predictor.set_image(pixels)
        # reading a value back waits for the device, whichever it is
        predictor.get_image_embedding().flatten()[0].item()
    with _timed(timings, "decode"):
        if finder is None:
            masks, scores = predict_objects(predictor, request, fusion)
        else:
            found = finder.segment(predictor, pixels, request.points, multimask=request.multimask, fusion=fusion)
            masks, scores = found.masks, found.scores
    record = make_record(image, model, masks, scores, timings)
    boxes, notes = (request.boxes, []) if finder is None else finder.describe(record, found)
    overlay = draw_overlay(pixels, masks, boxes, request.points)
    paths = write_results(out, image.stem, masks, overlay, record)
    if as_json:
        typer.echo(json.dumps(record))
        return
    for line in [*describe_masks(record), *notes]:
        typer.echo(line)
    typer.echo(f"encode {timings['encode']:.0f} ms, decode {timings['decode']:.0f} ms on {network.device}")
    typer.echo("wrote " + ", ".join(str(path) for path in paths))


def describe_masks(record: dict[str, Any]) -> Iterator[str]:
    """One line for each mask of a record."""
    for index, entry in enumerate(record["masks"]):
        x, y, width, height = entry["bbox"]
        what = f"mask {index}"
        if "text" in entry:
            what += f" ({entry['text']!r}"
            what += f", detector {entry['detector_score']:.3f})" if "detector_score" in entry else ")"
        yield f"{what}: {entry['area']} pixels within {width} x {height} at ({x}, {y}), score {entry['score']:.3f}"


def make_request(
    boxes: list[str] | None,
    points: list[str] | None,
    multimask: bool | None = None,
    text: TextRequest | None = None,
    *,
    refine: Refine | None = None,
    heed_clicks: bool | None = None,
    upsampling: Upsampling | None = None,
) -> Request:
    """Prompts from the command line.

    Args:
        boxes: texts of --box.
        points: texts of --point.
        multimask: let SAM choose among three masks; None: for one point alone, which is ambiguous.
        text: what --text asks for.
        refine: see `SamPredictor.predict`.
        heed_clicks, upsampling: see there.

    Raises:
        ValueError: no prompt, not numbers, boxes or refining beside text, or points beside several boxes or texts.
    """
    ambiguous = not boxes and len(points or []) == 1 and text is None and refine in (None, "none")
    request = Request(
        boxes=[parse_box(text) for text in boxes or []],
        points=[parse_point(text) for text in points or []],
        multimask=ambiguous if multimask is None else multimask,
        refine=refine,
        heed_clicks=heed_clicks,
        upsampling=upsampling,
    )
    for option, given in (("refine", refine), ("heed-clicks", heed_clicks), ("upsampling", upsampling)):
        if text is not None and given is not None:
            raise ValueError(f"--{option} goes with --box and --point; a box that --text found is in its JSON")
    if text is not None and request.boxes:
        raise ValueError("--text finds objects by itself: leave --box out, or correct the text with --point")
    if text is not None and len(text.phrases) > 1 and request.points:
        raise ValueError(f"--point goes with at most one --text, got {len(text.phrases)}: whose would the point be?")
    if not request.boxes and not request.points and text is None:
        raise ValueError("no prompt given: pass --box x0,y0,x1,y1, --point x,y[,label] or --text PHRASE")
    if len(request.boxes) > 1 and request.points:
        raise ValueError(f"--point goes with at most one --box, got {len(request.boxes)}: whose would the point be?")
    return request


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(1000 * (time.perf_counter() - start), 3)


def predict_objects(
    predictor: SamPredictor, request: Request, fusion: Fusion | None
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Masks (N, H, W) bool and scores (N,) of the set image, one per object."""
    import numpy as np

    boxes = np.array(request.boxes) if request.boxes else None
    coords = labels = None
    if request.points:
        coords = np.array([point[:2] for point in request.points])
        labels = np.array([point[2] for point in request.points])
        if boxes is not None:
            coords, labels = coords[None], labels[None]
    masks, scores, _ = predictor.predict(
        coords,
        labels,
        boxes,
        multimask_output=request.multimask,
        fusion=fusion,
        refine=request.refine,
        heed_clicks=request.heed_clicks,
        upsampling=request.upsampling,
    )
    if boxes is None:
        masks, scores = masks[None], scores[None]
    # plain SAM hands out three candidates for an ambiguous prompt; the command answers with the best-scored one
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    return masks[rows, best], scores[rows, best]
