"""Boundary AP by the published method, written plainly: rings of whole images, then COCO's evaluator.

Of every annotation and every result the mask is decoded, given a border of zeros, eroded by a 3x3 square as often as
the ring is wide, and what was lost is encoded again; two objects overlap by the smaller one of the IoU of their masks
and of their rings. This is the method of the Boundary IoU API (Cheng et al. 2021), in one process.
"""

from __future__ import annotations

import contextlib
import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hqsam.metrics import InstanceRecord, InstanceTruth


class BoundaryEval(COCOeval):  # type: ignore[misc]
    """COCO's evaluator with the overlap replaced."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        plain = super().computeIoU(imgId, catId)
        if len(plain) == 0:
            return plain
        truth, found = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-entry["score"] for entry in found], kind="mergesort")[: self.params.maxDets[-1]]
        crowd = [int(entry["iscrowd"]) for entry in truth]
        rings = coco_mask.iou([found[k]["boundary"] for k in order], [entry["boundary"] for entry in truth], crowd)
        return np.where(np.array(crowd, dtype=bool), plain, np.minimum(plain, rings))


def add_boundaries(coco: COCO, ratio: float) -> None:
    """Give every annotation the run lengths of its ring."""
    for entry in coco.dataset["annotations"]:
        mask = coco.annToMask(entry)
        height, width = mask.shape
        steps = max(1, round(ratio * float(np.hypot(height, width))))
        bordered = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        core = cv2.erode(bordered, np.ones((3, 3), dtype=np.uint8), iterations=steps)[1 : height + 1, 1 : width + 1]
        entry["boundary"] = coco_mask.encode(np.asfortranarray(mask - core))


def boundary_ap(dataset: dict[str, Any], results: list[dict[str, Any]], ratio: float) -> NDArray[np.float64]:
    """AP, AP50, AP75, APs, APm, APl in [0, 1], -1 where there is no instance."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        found = coco.loadRes(results)
        add_boundaries(coco, ratio)
        add_boundaries(found, ratio)
        run = BoundaryEval(coco, found, "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return np.asarray(run.stats[:6])


def as_dataset(truth: InstanceTruth) -> dict[str, Any]:
    """The set as COCO's API takes it."""
    return {
        "images": [
            {"id": number, "height": image.size_hw[0], "width": image.size_hw[1]}
            for number, image in truth.images.items()
        ],
        "categories": [{"id": number} for number in truth.categories],
        "annotations": [
            {
                "id": number,
                "image_id": item.image,
                "category_id": item.category,
                "segmentation": item.rle,
                "area": item.area,
                "iscrowd": int(item.crowd),
            }
            for number, item in enumerate(truth.instances, 1)
        ],
    }


def as_results(records: list[InstanceRecord], column: str) -> list[dict[str, Any]]:
    """The masks of a column as COCO's API takes them."""
    return [
        {"image_id": record.image, "category_id": category, "segmentation": rle, "score": score}
        for record in records
        for category, rle, score in zip(record.categories, record.masks[column], record.box_scores, strict=True)
    ]
