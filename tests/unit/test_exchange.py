from __future__ import annotations

import contextlib
import io
import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hqsam.exchange import to_coco, to_supervision
from hqsam.rle import encode_rle


def two_masks() -> np.ndarray:
    masks = np.zeros((2, 20, 30), dtype=bool)
    masks[0, 2:12, 3:9] = True
    masks[1, 0, 0] = True
    return masks


def records(mode: str = "binary_mask") -> list[dict[str, Any]]:
    rows = []
    for index, mask in enumerate(two_masks()):
        segmentation: Any = mask
        if mode != "binary_mask":
            segmentation = encode_rle(mask)
        if mode == "uncompressed_rle":
            changes = np.flatnonzero(np.diff(mask.T.ravel().astype(int))) + 1
            bounds = [0, *changes.tolist(), mask.size]
            counts = ([0] if mask[0, 0] else []) + np.diff(bounds).tolist()
            segmentation = {"size": list(mask.shape), "counts": counts}
        rows.append(
            {
                "segmentation": segmentation,
                "area": int(mask.sum()),
                "predicted_iou": 0.9 - index / 10,
                "stability_score": 0.97,
                "point_coords": [[4.5, 5.5]],
                "crop_box": [0, 0, 30, 20],
            }
        )
    return rows


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_coco_annotations_are_loaded_by_pycocotools(mode: str) -> None:
    annotations = to_coco(records(mode), image_id=7, category_id=3, first_annotation_id=11)
    assert json.loads(json.dumps(annotations)) == annotations
    assert [row["id"] for row in annotations] == [11, 12]
    assert [row["bbox"] for row in annotations] == [[3, 2, 6, 10], [0, 0, 1, 1]]
    assert [row["area"] for row in annotations] == [60, 1]
    assert [row["score"] for row in annotations] == pytest.approx([0.9, 0.8])
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = {
            "info": {},
            "images": [{"id": 7, "height": 20, "width": 30}],
            "categories": [{"id": 3, "name": "thing"}],
            "annotations": annotations,
        }
        truth.createIndex()
        found = truth.loadRes([dict(row) for row in annotations])
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    np.testing.assert_array_equal(truth.annToMask(annotations[0]).astype(bool), two_masks()[0])


@pytest.mark.parametrize("shape", [(2, 20, 30), (2, 1, 20, 30)])
def test_coco_annotations_of_predicted_arrays(shape: tuple[int, ...]) -> None:
    scores = np.array([0.5, 0.25], dtype=np.float32).reshape(shape[:-2])
    annotations = to_coco(two_masks().reshape(shape), 1, scores=scores)
    assert [row["score"] for row in annotations] == [0.5, 0.25]
    assert [row["score"] for row in to_coco(two_masks(), 1)] == [1.0, 1.0]


def test_nothing_found_and_empty_masks() -> None:
    assert to_coco([], 1) == [] == to_coco(np.zeros((0, 4, 5), dtype=bool), 1)
    (row,) = to_coco(np.zeros((1, 4, 5), dtype=bool), 1)
    assert (row["area"], row["bbox"]) == (0, [0, 0, 0, 0])
    assert coco.decode(row["segmentation"]).shape == (4, 5)


@pytest.mark.parametrize(
    ("masks", "scores", "message"),
    [
        (np.zeros((4, 5), bool), None, r"\(N, H, W\)"),
        (np.zeros((2, 3, 4, 5), bool), None, "choose one"),
        (np.zeros((2, 4, 5), np.float32), None, "float32"),
        (np.zeros((2, 4, 5), bool), [0.5], r"scores must have shape \(2,\)"),
        ([], [0.5], "records bring their own"),
    ],
)
def test_wrong_results(masks: Any, scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_coco(masks, 1, scores=scores)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with a class that keeps what it is given, as `supervision.Detections` does."""
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))


@pytest.mark.usefixtures("stand_in")
def test_supervision_from_records() -> None:
    detections = to_supervision(records("coco_rle"))
    np.testing.assert_array_equal(detections.xyxy, np.array([[3, 2, 8, 11], [0, 0, 0, 0]], np.float32))
    np.testing.assert_array_equal(detections.mask, two_masks())
    assert detections.mask.dtype == np.bool_ and detections.xyxy.dtype == detections.confidence.dtype == np.float32
    np.testing.assert_allclose(detections.confidence, [0.9, 0.8], rtol=1e-6)
    assert detections.class_id.tolist() == [0, 0]
    assert detections.data["area"].tolist() == [60, 1]


@pytest.mark.usefixtures("stand_in")
def test_supervision_from_predicted_arrays_and_from_nothing() -> None:
    detections = to_supervision(two_masks()[:, None], scores=[[0.5], [0.25]], class_id=4)
    assert detections.confidence.tolist() == [0.5, 0.25]
    assert detections.class_id.tolist() == [4, 4]
    none = to_supervision([])
    assert none.xyxy.shape == (0, 4) and none.mask is None and none.confidence.shape == (0,)


def test_the_real_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    detections = to_supervision(records())
    assert isinstance(detections, supervision.Detections)
    assert len(detections) == 2
    assert len(to_supervision([])) == 0


def test_without_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        to_supervision(records())
