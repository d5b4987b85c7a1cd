"""What `hqsam auto` writes for one picture: its JSON file and its overlay."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hqsam.automatic import MaskRecord

GOLDEN = 0.618034
"""Steps of the hue by which neighbours in a list get colours that are far apart."""


def describe(
    file: Path, shape: Sequence[int], records: Sequence[MaskRecord], info: Mapping[str, Any], image_id: int
) -> dict[str, Any]:
    """The content of the JSON file.

    Args:
        file: the picture.
        shape: (H, W, 3).
        records: with "coco_rle" segmentations.
        info: how they were made.
        image_id: number of the picture in the run.

    Returns:
        {"info", "image", "annotations"}; `bbox` counts pixels, as COCO's does.
    """
    from hqsam.exchange import to_coco

    annotations = []
    for common, record in zip(to_coco(records, image_id), records, strict=True):
        annotations.append(
            {
                "id": common["id"],
                "segmentation": common["segmentation"],
                "bbox": common["bbox"],
                "area": common["area"],
                "predicted_iou": round(record["predicted_iou"], 6),
                "stability_score": round(record["stability_score"], 6),
                "point_coords": record["point_coords"],
                "crop_box": record["crop_box"],
            }
        )
    image = {"image_id": image_id, "file_name": file.name, "width": shape[1], "height": shape[0]}
    return {"info": {**info, "bytes": file.stat().st_size}, "image": image, "annotations": annotations}


def is_finished(folder: Path, file: Path, info: Mapping[str, Any]) -> bool:
    """Whether `folder` holds the results of this picture, made with these settings."""
    try:
        content = json.loads((folder / f"{file.stem}.json").read_text("utf-8"))
        size = file.stat().st_size
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or not isinstance(content.get("image"), dict):
        return False
    return content["image"].get("file_name") == file.name and content.get("info") == {**info, "bytes": size}


def draw_records(pixels: NDArray[np.uint8], records: Sequence[MaskRecord]) -> NDArray[np.uint8]:
    """The picture under its masks, each in a colour of its own, small ones on top: (H, W, 3) uint8 RGB.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        records: with "coco_rle" segmentations.
    """
    from hqsam.rle import decode_rle
    from hqsam.visualize import draw_mask

    picture = pixels
    for place, record in enumerate(sorted(records, key=lambda record: -record["area"])):
        red, green, blue = colorsys.hsv_to_rgb(place * GOLDEN % 1.0, 0.75, 1.0)
        color = round(255 * red), round(255 * green), round(255 * blue)
        picture = draw_mask(picture, decode_rle(record["segmentation"]), color)
    return picture
