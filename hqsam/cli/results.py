"""What `hqsam predict` hands out: the JSON record, the overlay and the files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLORS = ((40, 140, 255), (255, 120, 40), (60, 200, 90), (220, 70, 200), (250, 210, 50), (60, 210, 220))
INSIDE, OUTSIDE = (60, 200, 90), (235, 70, 60)


def make_record(
    image: Path,
    model: str,
    masks: NDArray[np.bool_],
    scores: NDArray[np.float32],
    timings: dict[str, float],
) -> dict[str, Any]:
    """The JSON record of one picture.

    Args:
        image: the picture's file, as it was given.
        model: model name.
        masks: (N, H, W) bool.
        scores: (N,) predicted IoU.
        timings: milliseconds by step.
    """
    from hqsam.rle import encode_rle, rle_area, rle_box

    entries = []
    for mask, score in zip(masks, scores, strict=True):
        rle = encode_rle(mask)
        area, box = rle_area(rle), rle_box(rle)
        entries.append({"segmentation": rle, "bbox": box, "area": area, "score": round(float(score), 6)})
    size = [int(side) for side in masks.shape[1:]]
    return {"image": str(image), "size": size, "model": model, "masks": entries, "timings_ms": timings}


def draw_overlay(
    pixels: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    boxes: Sequence[Sequence[float]],
    points: Sequence[tuple[float, float, int]],
) -> NDArray[np.uint8]:
    """The picture under its masks and prompts, (H, W, 3) uint8 RGB; prompts green, points outside the object red."""
    import cv2

    from hqsam.visualize import draw_box, draw_mask

    picture = pixels
    for index, mask in enumerate(masks):
        picture = draw_mask(picture, mask, COLORS[index % len(COLORS)])
    for box in boxes:
        picture = draw_box(picture, box, INSIDE)
    picture = picture.copy()
    radius = max(2, round(math.hypot(*picture.shape[:2]) / 160))
    for x, y, label in points:
        center = (round(x), round(y))
        cv2.circle(picture, center, radius, INSIDE if label else OUTSIDE, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, center, radius, (255, 255, 255), max(1, radius // 3), cv2.LINE_AA)
    return picture


def write_results(
    folder: Path, stem: str, masks: NDArray[np.bool_], overlay: NDArray[np.uint8], record: dict[str, Any]
) -> list[Path]:
    """Write the masks (0/255 PNG), the overlay and the record into `folder`, which is created; return their paths."""
    import numpy as np

    from hqsam.images import write_image

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, mask in enumerate(masks):
        paths.append(folder / (f"{stem}_mask.png" if len(masks) == 1 else f"{stem}_mask_{index}.png"))
        write_image(paths[-1], mask.astype(np.uint8) * 255)
    overlay_path, record_path = folder / f"{stem}_overlay.png", folder / f"{stem}.json"
    write_image(overlay_path, overlay)
    record_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return [*paths, overlay_path, record_path]
