"""Pictures of single cases: the truth, SAM and HQ-SAM side by side, cut out around the object.

Masks are not kept while an evaluation runs; the few cases that are shown are predicted again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqsam.checkpoints import atomic_path
from hqsam.data import load_object_mask
from hqsam.engine.evaluation.plan import EvalItem
from hqsam.engine.evaluation.protocols import INSIDE, MaskPath, tight_box
from hqsam.images import read_image
from hqsam.metrics import MaskRecord
from hqsam.types import Fusion
from hqsam.visualize import BLUE, RED, YELLOW, draw_box, draw_mask, side_by_side

logger = logging.getLogger(__name__)

_MARGIN = 0.12
"""Surroundings shown on each side, as a share of the box."""
_PANEL = 520
"""Long side of a panel in pixels."""
KINDS = ("worst", "gain", "decline")
"""Kinds of cases, see `rank_cases`."""
_TITLES = {"sam": "SAM", "hq": "HQ", "sum": "SAM+HQ"}


def main_column(columns: Sequence[Fusion]) -> Fusion:
    """The column that cases are ranked by: the best that there is."""
    return next(column for column in ("sum", "hq", "sam") if column in columns)


def rank_cases(records: Sequence[MaskRecord], count: int) -> dict[str, list[MaskRecord]]:
    """The cases worth a picture: "worst" by boundary IoU, and where SAM and HQ are both there "gain" and "decline".

    Args:
        records: scores of all objects.
        count: how many of each kind at most.

    Returns:
        Kind -> records, the most extreme first. "gain" holds what HQ made better than plain SAM and "decline" what it
        made worse, real differences only.
    """
    if not records:
        return {}
    main = main_column(tuple(records[0].mbiou))  # type: ignore[arg-type]
    cases = {"worst": sorted(records, key=lambda r: (r.mbiou[main], r.key))[:count]}
    if main != "sam" and "sam" in records[0].mbiou:
        gains = sorted(records, key=lambda r: (r.mbiou["sam"] - r.mbiou[main], r.key))
        cases["gain"] = [record for record in gains[:count] if record.mbiou[main] > record.mbiou["sam"]]
        losses = gains[::-1][:count]
        cases["decline"] = [record for record in losses if record.mbiou[main] < record.mbiou["sam"]]
    return cases


def draw_case(path: MaskPath, item: EvalItem, position: int, record: MaskRecord) -> NDArray[np.uint8]:
    """Truth with the prompt, SAM and the main column, each under its scores.

    Args:
        path: what predicts the masks.
        item: the image.
        position: which of its objects.
        record: scores of this object, for the titles.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    image = read_image(item.record.image)
    target = load_object_mask(item.record.objects[position], image.shape[:2], item.record.image)
    predicted = next(next(path([(image, [target])])))
    inside, box = target > INSIDE, tight_box(target)
    view = _window(box, image.shape[:2])
    shown = _fit(image[view])
    scale = max(shown.shape) / max(image[view].shape)
    corner = np.array([view[1].start, view[0].start] * 2)
    last = np.array([0, 0, 1, 1])  # of an enlarged pixel the far side, since boxes hold inclusive pixels
    outline = (box + last - corner) * scale - last
    truth = draw_box(draw_mask(shown, _fit_mask(inside[view], shown), YELLOW), outline, YELLOW)
    panels, titles = [shown, truth], [f"{item.image}, object {position}", "truth and its box"]
    for column in dict.fromkeys(("sam", main_column(path.columns))):
        if column in predicted:
            color = RED if column == "sam" else BLUE
            panels.append(draw_mask(shown, _fit_mask(predicted[column][view], shown), color))
            scores = f"IoU {100 * record.miou[column]:.1f}, boundary {100 * record.mbiou[column]:.1f}"
            titles.append(f"{_TITLES[column]} {scores}")
    return side_by_side(panels, titles)


def write_case_pictures(
    path: MaskPath, items: Sequence[EvalItem], records: Sequence[MaskRecord], count: int, folder: Path
) -> list[Path]:
    """Write `worst_01.png` ..., `gain_01.png` ..., `decline_01.png` ...; pictures of an earlier evaluation are removed.

    Args:
        path: what predicted the masks.
        items: all images of the evaluation.
        records: scores of all its objects.
        count: pictures of each kind at most.
        folder: where to.

    Returns:
        The files.

    Raises:
        OutputError: a file cannot be written.
    """
    for kind in KINDS:
        for old in folder.glob(f"{kind}_[0-9]*.png"):
            old.unlink()
    from PIL import Image

    by_image = {(item.set, item.image): item for item in items}
    written = []
    for kind, cases in rank_cases(records, count).items():
        for rank, record in enumerate(cases, start=1):
            file = folder / f"{kind}_{rank:02d}.png"
            item = by_image[record.set, record.image]
            pixels = draw_case(path, item, record.object, record)
            with atomic_path(file) as temporary:
                Image.fromarray(pixels).save(temporary, format="PNG")
            written.append(file)
    logger.info("%d pictures of single cases in %s", len(written), folder)
    return written


def _window(box: NDArray[np.float32], image_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the box with its surroundings."""
    x0, y0, x1, y1 = (int(value) for value in box)
    margin = round(_MARGIN * max(x1 - x0, y1 - y0)) + 4
    rows = slice(max(0, y0 - margin), min(image_hw[0], y1 + 1 + margin))
    return rows, slice(max(0, x0 - margin), min(image_hw[1], x1 + 1 + margin))


def _fit(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    scale = _PANEL / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    resized: NDArray[np.uint8] = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return resized


def _fit_mask(mask: NDArray[np.bool_], like: NDArray[np.uint8]) -> NDArray[np.bool_]:
    import cv2

    size = (like.shape[1], like.shape[0])
    grey = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    inside: NDArray[np.bool_] = grey >= 0.5
    return inside
