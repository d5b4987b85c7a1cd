"""Masks that are nearly another one: their boxes may differ enough to pass the search's own suppression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hqsam.automatic.records import MaskRecord


def drop_overlapping(records: Sequence[MaskRecord], iou_threshold: float) -> list[MaskRecord]:
    """Records without the masks that overlap a better-scored one that stays, by their pixels and not by their boxes.

    Args:
        records: of one image, with "coco_rle" segmentations.
        iou_threshold: masks with a higher IoU are of the same object; within 0 and 1.

    Returns:
        What stays, in its old order; of equal scores the first one.

    Raises:
        ValueError: the threshold is outside 0 and 1.
    """
    from pycocotools import mask as coco

    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"the overlap must be within 0 and 1, got {iou_threshold}")
    if not records:
        return []
    rles = [dict(record["segmentation"]) for record in records]
    ious = np.asarray(coco.iou(rles, rles, [0] * len(rles)))
    order = np.argsort([-record["predicted_iou"] for record in records], kind="stable")
    kept: list[int] = []
    for place in order.tolist():
        if not kept or ious[place, kept].max() <= iou_threshold:
            kept.append(place)
    return [records[place] for place in sorted(kept)]
