"""Metrics: arrays in, numbers out. Nothing here knows models or files."""

from hqsam.metrics.boundary import boundary_iou, boundary_region
from hqsam.metrics.davis import DavisRecord, DavisSample, DavisScores, contour_accuracy, region_similarity
from hqsam.metrics.evaluator import Evaluator
from hqsam.metrics.instance_records import InstanceRecord, InstanceTruth, TrueImage, TrueInstance
from hqsam.metrics.instances import InstanceScores
from hqsam.metrics.iou import mask_iou
from hqsam.metrics.mask_scores import MaskRecord, MaskSample, MaskScores, score_masks
from hqsam.metrics.proposals import ProposalRecord, ProposalSample, ProposalScores
from hqsam.metrics.tubes import Tube, TubeRecord, TubeSample, TubeScores, tube_overlap

__all__ = [
    "DavisRecord",
    "DavisSample",
    "DavisScores",
    "Evaluator",
    "InstanceRecord",
    "InstanceScores",
    "InstanceTruth",
    "MaskRecord",
    "MaskSample",
    "MaskScores",
    "ProposalRecord",
    "ProposalSample",
    "ProposalScores",
    "TrueImage",
    "TrueInstance",
    "Tube",
    "TubeRecord",
    "TubeSample",
    "TubeScores",
    "boundary_iou",
    "boundary_region",
    "contour_accuracy",
    "mask_iou",
    "region_similarity",
    "score_masks",
    "tube_overlap",
]
