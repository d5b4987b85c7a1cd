"""Results for other tools: COCO annotations, and `supervision.Detections` where that package is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hqsam.rle import Rle, decode_rle, encode_rle, rle_area, rle_box


class CocoAnnotation(TypedDict):
    """One entry of "annotations" in a COCO file."""

    id: int
    image_id: int
    category_id: int
    segmentation: Rle
    area: int
    bbox: list[int]  # [x, y, width, height], pixels covered
    iscrowd: int
    score: float


class _Results(NamedTuple):
    rles: list[Rle]
    scores: list[float]
    further: dict[str, list[Any]]  # what records say beyond that, by key


def to_coco(
    results: Sequence[Mapping[str, Any]] | NDArray[Any],
    image_id: int,
    category_id: int = 1,
    first_annotation_id: int = 1,
    *,
    scores: ArrayLike | None = None,
) -> list[CocoAnnotation]:
    """COCO annotations of one image; pycocotools loads them as truth ("annotations") and as results.

    Args:
        results: records of `SamAutomaticMaskGenerator` in any output mode, or masks from `SamPredictor.predict`:
            (N, H, W) or (N, 1, H, W), bool.
        image_id: of the image in the COCO file.
        category_id: of all masks; SAM knows no classes.
        first_annotation_id: the masks are numbered from here on.
        scores: (N,) or (N, 1) beside an array of masks; without it each score is 1.

    Returns:
        One annotation a mask, in the order given. Empty masks have area 0 and the box [0, 0, 0, 0].

    Raises:
        ValueError: masks or scores of another shape.

    Example:
        >>> masks = np.zeros((1, 4, 6), dtype=bool)
        >>> masks[0, 1:3, 2:5] = True
        >>> to_coco(masks, image_id=7, scores=[0.9])[0]["bbox"]
        [2, 1, 3, 2]
    """
    rles, quality, _ = _read(results, scores)
    return [
        {
            "id": first_annotation_id + index,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": rle,
            "area": rle_area(rle),
            "bbox": rle_box(rle),
            "iscrowd": 0,
            "score": score,
        }
        for index, (rle, score) in enumerate(zip(rles, quality, strict=True))
    ]


def to_supervision(
    results: Sequence[Mapping[str, Any]] | NDArray[Any], *, scores: ArrayLike | None = None, class_id: int = 0
) -> Any:
    """`supervision.Detections` of one image, with masks, boxes, scores, and one class for all.

    Args:
        results: see `to_coco`.
        scores: see `to_coco`.
        class_id: SAM knows no classes, but most annotators of supervision colour by class.

    Returns:
        Detections in the order given: `xyxy` (N, 4) float32 of inclusive pixels, `mask` (N, H, W) bool, `confidence`
        (N,) float32. What records say beyond that (`stability_score`, ...) is in `data`. No results give no masks.

    Raises:
        ImportError: supervision is not installed.
        ValueError: masks or scores of another shape.
    """
    from importlib import import_module

    try:
        detections = import_module("supervision").Detections
    except ImportError as error:
        raise ImportError("to_supervision needs the package supervision: pip install supervision") from error
    rles, quality, further = _read(results, scores)
    boxes = np.array([rle_box(rle) for rle in rles], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] = np.maximum(boxes[:, :2] + boxes[:, 2:] - 1, 0)
    return detections(
        xyxy=boxes,
        mask=np.stack([decode_rle(rle) for rle in rles]) if rles else None,
        confidence=np.array(quality, dtype=np.float32),
        class_id=np.full(len(rles), class_id, dtype=int),
        data={key: np.array(values) for key, values in further.items()},
    )


def _read(results: Sequence[Mapping[str, Any]] | NDArray[Any], scores: ArrayLike | None) -> _Results:
    if isinstance(results, np.ndarray):
        return _read_masks(results, scores)
    if scores is not None:
        raise ValueError("scores go with an array of masks; records bring their own predicted_iou")
    rles = [_compressed(record["segmentation"]) for record in results]
    quality = [float(record["predicted_iou"]) for record in results]
    keys = [key for key in ("area", "stability_score", "point_coords", "crop_box") if results and key in results[0]]
    return _Results(rles, quality, {key: [record[key] for record in results] for key in keys})


def _read_masks(masks: NDArray[Any], scores: ArrayLike | None) -> _Results:
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim != 3 or masks.dtype != np.bool_:
        raise ValueError(
            f"masks must be bool of shape (N, H, W) or (N, 1, H, W), got {masks.dtype} {masks.shape}; of several "
            "candidates choose one, of logits those above 0"
        )
    quality = np.ones(len(masks)) if scores is None else np.asarray(scores, dtype=np.float64)
    if quality.shape not in ((len(masks),), (len(masks), 1)):
        raise ValueError(f"scores must have shape ({len(masks)},) like the masks, got {quality.shape}")
    return _Results([encode_rle(mask) for mask in masks], quality.reshape(-1).tolist(), {})


def _compressed(segmentation: Any) -> Rle:
    """Any form of a record's segmentation as compressed run lengths in text."""
    if isinstance(segmentation, np.ndarray):
        return encode_rle(segmentation)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        from pycocotools import mask as coco

        counts = coco.frPyObjects(dict(segmentation), *segmentation["size"])["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return Rle(size=[int(side) for side in segmentation["size"]], counts=text)
