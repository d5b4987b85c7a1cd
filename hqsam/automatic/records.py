"""What automatic generation hands out: the records of the original."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypedDict, get_args

from hqsam.automatic.runs import decode_runs, run_area, run_lengths
from hqsam.automatic.table import MaskTable

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]
OUTPUT_MODES: tuple[OutputMode, ...] = get_args(OutputMode)


class MaskRecord(TypedDict):
    """One mask, with the original's keys and their meaning."""

    segmentation: Any  # (H, W) bool, or {"size": [H, W], "counts": list of run lengths, or compressed text}
    area: int  # pixels inside
    bbox: list[int]  # [x, y, width, height] where width and height are one less than the pixels covered
    predicted_iou: float  # SAM's score of SAM's mask
    point_coords: list[list[float]]  # the one point that was asked, xy in pixels of the image
    stability_score: float  # 0..1
    crop_box: list[int]  # [x, y, width, height] of the crop that was encoded


def make_records(table: MaskTable, image_hw: tuple[int, int], output_mode: OutputMode) -> Iterator[MaskRecord]:
    """The rows of a table one by one, so that full-size masks exist only where a caller keeps them."""
    for row, runs in enumerate(table.runs):
        yield {
            "segmentation": _segmentation(runs, image_hw, output_mode),
            "area": run_area(runs, *image_hw),
            "bbox": _xywh(table.boxes[row].tolist()),
            "predicted_iou": table.scores[row].item(),
            "point_coords": [table.points[row].tolist()],
            "stability_score": table.stability[row].item(),
            "crop_box": _xywh(table.crops[row].tolist()),
        }


def _segmentation(runs: bytes, image_hw: tuple[int, int], output_mode: OutputMode) -> Any:
    if output_mode == "binary_mask":
        return decode_runs(runs, *image_hw)
    counts = runs.decode("ascii") if output_mode == "coco_rle" else run_lengths(runs)
    return {"size": list(image_hw), "counts": counts}


def _xywh(box: list[int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
