"""Network definitions. They know tensors, not files."""

from __future__ import annotations

from hqsam.models.encoders import EncoderSpec, SamViTSpec, TinyViTSpec, build_encoder
from hqsam.models.heads import FULL_HEAD, build_head, head_name, head_title
from hqsam.models.hq_decoder import HQHead, HQMaskDecoder
from hqsam.models.lora import EncoderLoRA
from hqsam.models.mask_decoder import MaskDecoder
from hqsam.models.parts import SAM_PARTS, TrainablePart
from hqsam.models.prepared import PreparedImages
from hqsam.models.prompt_encoder import PromptEncoder
from hqsam.models.sam import Sam
from hqsam.models.score import ScoreHead
from hqsam.models.selection import select_masks

__all__ = [
    "FULL_HEAD",
    "SAM_PARTS",
    "EncoderLoRA",
    "EncoderSpec",
    "HQHead",
    "HQMaskDecoder",
    "MaskDecoder",
    "PreparedImages",
    "PromptEncoder",
    "Sam",
    "SamViTSpec",
    "ScoreHead",
    "TinyViTSpec",
    "TrainablePart",
    "build_encoder",
    "build_head",
    "head_name",
    "head_title",
    "select_masks",
]
