"""Small holes and small islands of masks, removed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from hqsam.automatic.runs import decode_runs, encode_transposed, run_boxes
from hqsam.automatic.table import MaskTable


def without_small_regions(mask: NDArray[np.bool_], min_area: float) -> NDArray[np.bool_]:
    """Fill holes, then drop islands, of fewer than `min_area` pixels; diagonal neighbours are connected.

    Args:
        mask: (H, W) bool.
        min_area: in pixels.

    Returns:
        (H, W) bool; `mask` itself where nothing changed. If every island is small, the largest stays.
    """
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=8)
    fills = stats[:, cv2.CC_STAT_AREA] < min_area
    fills[0] = False  # label 0 is the mask
    if fills.any():
        mask = mask | fills[labels]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    stays = areas >= min_area
    stays[0] = False
    if stays[1:].all():
        return mask
    if not stays.any():
        stays[1 + np.argmax(areas[1:])] = True
    kept: NDArray[np.bool_] = stays[labels]
    return kept


def clean_regions(table: MaskTable, image_hw: tuple[int, int], min_area: float, iou_threshold: float) -> MaskTable:
    """Remove small regions from every mask, and the duplicates that this makes.

    Args:
        table: masks of an image.
        image_hw: (H, W) of the image.
        min_area: regions and holes with fewer pixels go.
        iou_threshold: of the suppression afterwards, which prefers masks that did not change.
    """
    runs, untouched = [], []
    for old in table.runs:
        mask = decode_runs(old, *image_hw)
        cleaned = without_small_regions(mask, min_area)
        untouched.append(cleaned is mask)
        columns = torch.from_numpy(np.ascontiguousarray(cleaned.T))
        runs.append(old if cleaned is mask else encode_transposed(columns[None])[0])
    changed = replace(table, runs=runs, boxes=run_boxes(runs, *image_hw))
    return changed.suppress(iou_threshold, torch.tensor(untouched, dtype=torch.float32))
