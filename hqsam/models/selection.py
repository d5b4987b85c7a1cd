"""Which masks a caller sees: one pure function over what the decoder computed."""

from __future__ import annotations

import torch
from torch import Tensor

from hqsam.types import CANDIDATES, FUSIONS, Candidates, DecoderOutput, Fusion

SINGLE_CANDIDATE = (0,)
MULTIMASK_CANDIDATES = (1, 2, 3)
ALL_CANDIDATES = (0, 1, 2, 3)


def select_masks(
    output: DecoderOutput, *, multimask: bool, fusion: Fusion, candidates: Candidates = "best"
) -> tuple[Tensor, Tensor]:
    """Choose and fuse masks by the official rule (HQ-SAM section 3.2; `MaskDecoderHQ.forward`).

    With HQ, one mask is returned in both modes: the single-mask candidate, or with `multimask` the best-scored of the
    three, plus the HQ mask. The score is always SAM's, of SAM's mask. Plain SAM returns its candidates as they are.

    Args:
        output: decoder output whose candidates are (0,), or (1, 2, 3) with `multimask`.
        multimask: the prompt is ambiguous.
        fusion: "sum" adds SAM's and HQ's logits, "hq" is HQ's alone, "sam" is SAM's.
        candidates: "all" adds HQ's mask to each of the three instead of the best, in SAM's order. HQ alone has one
            mask in any case.

    Returns:
        logits: (N, 1, 4h, 4w); (N, 3, 4h, 4w) with `multimask` for "sam", and for "sum" with all candidates.
        iou: (N, 1) or (N, 3).

    Raises:
        ValueError: unknown fusion or candidates, or a fusion that needs HQ logits which were not computed.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {FUSIONS}, got {fusion!r}")
    if candidates not in CANDIDATES:
        raise ValueError(f"candidates must be one of {CANDIDATES}, got {candidates!r}")
    logits, iou = output.sam_logits, output.iou
    if fusion == "sam":
        return logits, iou
    if output.hq_logits is None:
        raise ValueError(f"fusion={fusion!r} needs HQ logits: use an hq_ model and decode with use_hq=True")
    if multimask and (candidates == "best" or fusion == "hq"):
        iou, best = iou.max(dim=1, keepdim=True)
        logits = logits[torch.arange(len(logits), device=logits.device), best[:, 0]][:, None]
    return (output.hq_logits if fusion == "hq" else logits + output.hq_logits), iou
