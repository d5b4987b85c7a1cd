"""Which masks a caller sees: one pure function over what the decoder computed."""

from __future__ import annotations

import torch
from torch import Tensor

from hqsam.types import CANDIDATES, FUSIONS, SCORE_SOURCES, Candidates, DecoderOutput, Fusion, ScoreSource

SINGLE_CANDIDATE = (0,)
MULTIMASK_CANDIDATES = (1, 2, 3)
ALL_CANDIDATES = (0, 1, 2, 3)


def select_masks(
    output: DecoderOutput,
    *,
    multimask: bool,
    fusion: Fusion,
    candidates: Candidates = "best",
    score: ScoreSource = "sam",
) -> tuple[Tensor, Tensor]:
    """Choose and fuse masks by the official rule (HQ-SAM section 3.2; `MaskDecoderHQ.forward`).

    With HQ, one mask is returned in both modes: the single-mask candidate, or with `multimask` the best-scored of the
    three, plus the HQ mask. Plain SAM returns its candidates as they are.

    The score is SAM's, of SAM's mask, unless another is asked for. Of three sums the one with the best score is chosen;
    HQ's mask is one, and its score that beside SAM's best.

    Args:
        output: decoder output whose candidates are (0,), or (1, 2, 3) with `multimask`.
        multimask: the prompt is ambiguous.
        fusion: "sum" adds SAM's and HQ's logits, "hq" is HQ's alone, "sam" is SAM's.
        candidates: "all" adds HQ's mask to each of the three instead of the best, in SAM's order. HQ alone has one
            mask in any case.
        score: "own" and "own_boundary" are the score head's, of the mask that is returned; "sam" only has SAM's.

    Returns:
        logits: (N, 1, 4h, 4w); (N, 3, 4h, 4w) with `multimask` for "sam", and for "sum" with all candidates.
        scores: (N, 1) or (N, 3).

    Raises:
        ValueError: unknown fusion or candidates, or a fusion or score that needs what was not computed.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {FUSIONS}, got {fusion!r}")
    if candidates not in CANDIDATES:
        raise ValueError(f"candidates must be one of {CANDIDATES}, got {candidates!r}")
    require_score(score, fusion, has_score_head=True)
    if fusion == "sam":
        return output.sam_logits, output.iou
    if output.hq_logits is None:
        raise ValueError(f"fusion={fusion!r} needs HQ logits: use an hq_ model and decode with use_hq=True")
    logits, scores = sam_masks_beside_hq(output, multimask=multimask, fusion=fusion, candidates=candidates, score=score)
    return (output.hq_logits if fusion == "hq" else logits + output.hq_logits), scores


def sam_masks_beside_hq(
    output: DecoderOutput, *, multimask: bool, fusion: Fusion, candidates: Candidates, score: ScoreSource
) -> tuple[Tensor, Tensor]:
    """SAM's masks that HQ's is added to, or stands for.

    Args:
        output: see `select_masks`, whose arguments these are; HQ takes part.
        multimask: see there.
        fusion: "sum" or "hq".
        candidates: see there.
        score: see there.

    Returns:
        SAM's logits (N, C, 4h, 4w), as many as `select_masks` returns, and the scores (N, C) of the masks with HQ.
    """
    logits, iou = output.sam_logits, output.iou
    scores = iou if score == "sam" else _own(output, fusion, score)
    if multimask and (candidates == "best" or fusion == "hq"):
        best = (iou if fusion == "hq" else scores).max(dim=1, keepdim=True).indices
        scores = scores.gather(1, best)
        logits = logits[torch.arange(len(logits), device=logits.device), best[:, 0]][:, None]
    return logits, scores


def require_score(score: ScoreSource, fusion: Fusion, *, has_score_head: bool) -> ScoreSource:
    """A score that was asked for, after checking that there is one.

    Raises:
        ValueError: unknown, or a score of the mask itself without a score head or of plain SAM's masks.
    """
    if score not in SCORE_SOURCES:
        raise ValueError(f"score must be one of {SCORE_SOURCES}, got {score!r}")
    if score != "sam" and not has_score_head:
        raise ValueError(
            f"score={score!r} needs a score head, and this model has none: train one with model.trained=score, "
            'or take score="sam"'
        )
    if score != "sam" and fusion == "sam":
        raise ValueError(f'score={score!r} is of masks that HQ takes part in; fusion="sam" has SAM\'s score alone')
    return score


def _own(output: DecoderOutput, fusion: Fusion, score: ScoreSource) -> Tensor:
    """(N, M) scores of the masks of a fusion."""
    if output.own_scores is None:
        raise ValueError(f"score={score!r} needs scores which were not computed: decode with own_scores=True")
    return output.own_scores[:, 0 if fusion == "sum" else 1, :, 0 if score == "own" else 1]
