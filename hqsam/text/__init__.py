"""Text prompts: a zero-shot detector's boxes, or a CLIP token through a small learned projection.

Needs the `text` extra (transformers, open_clip), which is imported by `load_detector` and `load_clip` and nowhere else.
"""

from __future__ import annotations

from hqsam.text.clip import DEFAULT_CLIP, ClipEncoder, ClipError, load_clip
from hqsam.text.crops import object_crop
from hqsam.text.detections import Detections, TextDetector, make_detections, suppress
from hqsam.text.detector import DEFAULT_DETECTOR, DetectorError, TransformersDetector, load_detector
from hqsam.text.extra import MissingExtraError
from hqsam.text.projection import ProjectionInfo, TextProjection, load_projection, save_projection
from hqsam.text.prompting import (
    TextMasks,
    TextPrompter,
    load_prompter,
    segment_detections,
    segment_tokens,
)
from hqsam.text.train import ProjectionPlan, train_projection

__all__ = [
    "DEFAULT_CLIP",
    "DEFAULT_DETECTOR",
    "ClipEncoder",
    "ClipError",
    "Detections",
    "DetectorError",
    "MissingExtraError",
    "ProjectionInfo",
    "ProjectionPlan",
    "TextDetector",
    "TextMasks",
    "TextProjection",
    "TextPrompter",
    "TransformersDetector",
    "load_clip",
    "load_detector",
    "load_projection",
    "load_prompter",
    "make_detections",
    "object_crop",
    "save_projection",
    "segment_detections",
    "segment_tokens",
    "suppress",
    "train_projection",
]
