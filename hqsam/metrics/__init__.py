"""Metrics: arrays in, numbers out. Nothing here knows models or files."""

from hqsam.metrics.boundary import boundary_iou, boundary_region
from hqsam.metrics.evaluator import Evaluator
from hqsam.metrics.instance_records import InstanceRecord, InstanceTruth, TrueImage, TrueInstance
from hqsam.metrics.instances import InstanceScores
from hqsam.metrics.iou import mask_iou
from hqsam.metrics.mask_scores import MaskRecord, MaskSample, MaskScores, score_masks
from hqsam.metrics.proposals import ProposalRecord, ProposalScores

__all__ = [
    "Evaluator",
    "InstanceRecord",
    "InstanceScores",
    "InstanceTruth",
    "MaskRecord",
    "MaskSample",
    "MaskScores",
    "ProposalRecord",
    "ProposalScores",
    "TrueImage",
    "TrueInstance",
    "boundary_iou",
    "boundary_region",
    "mask_iou",
    "score_masks",
]
