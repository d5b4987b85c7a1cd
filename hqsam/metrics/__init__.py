"""Metrics: arrays in, numbers out. Nothing here knows models or files."""

from hqsam.metrics.boundary import boundary_iou, boundary_region
from hqsam.metrics.evaluator import Evaluator
from hqsam.metrics.iou import mask_iou
from hqsam.metrics.mask_scores import MaskRecord, MaskSample, MaskScores, score_masks

__all__ = [
    "Evaluator",
    "MaskRecord",
    "MaskSample",
    "MaskScores",
    "boundary_iou",
    "boundary_region",
    "mask_iou",
    "score_masks",
]
