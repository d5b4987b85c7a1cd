"""What is asked for: which masks, in what form, with how many looks; and which of the decoder's masks these are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor

from hqsam.heeding import heed_clicks
from hqsam.models import Sam, select_masks
from hqsam.models.selection import MULTIMASK_CANDIDATES, SINGLE_CANDIDATE, sam_masks_beside_hq
from hqsam.types import (
    REFINEMENTS,
    UPSAMPLINGS,
    Candidates,
    DecoderOutput,
    Fusion,
    Prompts,
    Refine,
    ScoreSource,
    Upsampling,
    times_again,
    without_zoom,
)


class _Selection(TypedDict):
    """Arguments of `select_masks`."""

    multimask: bool
    fusion: Fusion
    candidates: Candidates
    score: ScoreSource


@dataclass(frozen=True)
class Answer:
    """Which masks are wanted, and in what form; see `SamPredictor.predict`.

    `shown` is the (height, width) of the resized image inside the input, the same of all images that are asked about:
    logits of the padding are then left out (`Sam.decode`), or overwritten once the score head has looked at them.
    """

    multimask: bool
    return_logits: bool
    fusion: Fusion
    candidates: Candidates
    refine: Refine = "none"
    score: ScoreSource = "sam"
    heed_clicks: bool = False
    upsampling: Upsampling = "bilinear"
    shown: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be refined, before anything is computed."""
        _require_refinement(self.refine)
        if self.upsampling not in UPSAMPLINGS:
            raise ValueError(
                f"upsampling must be one of {UPSAMPLINGS}, or None for the model's default, got {self.upsampling!r}"
            )
        if self.refine != "none" and self.masks_per_prompt > 1:
            raise ValueError(
                f"refine={self.refine!r} takes one mask a prompt, not the {self.masks_per_prompt} candidates: "
                'set multimask_output=False, or candidates="best" with an HQ head'
            )
        if self.heed_clicks and self.zooms:
            raise ValueError(
                f"heed_clicks is about the whole image, and refine={self.refine!r} looks at crops: "
                f"pass refine={without_zoom(self.refine)!r}"
            )

    @property
    def asks_again(self) -> bool:
        """Whether each answer becomes the mask prompt of another one."""
        return times_again(self.refine) > 0

    @property
    def fills_empty(self) -> bool:
        """Whether SAM's mask is the answer where no low-resolution logit of SAM + HQ is inside."""
        return self.asks_again and self.fusion == "sum"

    @property
    def zooms(self) -> bool:
        """Whether small objects are looked at in a crop of their own."""
        return without_zoom(self.refine) != self.refine

    @property
    def needs_image(self) -> bool:
        """Whether the picture itself is looked at, not its embedding alone."""
        return self.zooms or self.upsampling != "bilinear"

    @property
    def candidate_numbers(self) -> tuple[int, ...]:
        """SAM's masks that have to be computed."""
        return MULTIMASK_CANDIDATES if self.multimask else SINGLE_CANDIDATE

    @property
    def masks_per_prompt(self) -> int:
        """C, the masks that each prompt gets."""
        several = self.fusion == "sam" or (self.fusion == "sum" and self.candidates == "all")
        return len(self.candidate_numbers) if several else 1


def wanted_answer(
    model: Sam,
    *,
    multimask: bool,
    return_logits: bool,
    fusion: Fusion | None = None,
    hq_token_only: bool = False,
    candidates: Candidates = "best",
    refine: Refine | None = None,
    score: ScoreSource | None = None,
    heed_clicks: bool | None = None,
    upsampling: Upsampling | None = None,
    knows_image: bool = True,
) -> Answer:
    """What a caller asked for, with the model's defaults where nothing was asked.

    A model's default refinement is for masks that HQ takes part in, one a prompt: plain SAM stays what it is. Heeding
    and a zoom exclude each other: what nobody asked for gives way. So does upsampling that needs the picture, where
    only its embedding is known.

    Raises:
        ValueError: see `Sam.resolve_fusion`, `Sam.resolve_score` and `Answer`.
    """
    if refine is not None:
        _require_refinement(refine)
    chosen = model.resolve_fusion(fusion, hq_token_only)
    scored = model.resolve_score(score, chosen)
    answer = Answer(multimask, return_logits, chosen, candidates, score=scored)
    if heed_clicks is None:
        heed_clicks = model.default_heed_clicks and (refine is None or without_zoom(refine) == refine)
    if refine is None:
        refine = model.default_refine if chosen != "sam" and answer.masks_per_prompt == 1 else "none"
        refine = without_zoom(refine) if heed_clicks else refine
    if upsampling is None:
        upsampling = model.default_upsampling if chosen != "sam" and knows_image else "bilinear"
    return replace(answer, refine=refine, heed_clicks=heed_clicks, upsampling=upsampling)


def _require_refinement(refine: Refine) -> None:
    if refine not in REFINEMENTS:
        raise ValueError(f"refine must be one of {REFINEMENTS}, or None for the model's default, got {refine!r}")


def masks_of_output(model: Sam, output: DecoderOutput, prompts: Prompts, answer: Answer) -> tuple[Tensor, Tensor]:
    """The wanted ones of a decoder's masks; where the answer says so, SAM's for an empty sum and what clicks say.

    Returns:
        Logits (N, C, 4h, 4w) and scores (N, C).
    """
    wanted: _Selection = {
        "multimask": answer.multimask,
        "fusion": answer.fusion,
        "candidates": answer.candidates,
        "score": answer.score,
    }
    logits, scores = select_masks(output, **wanted)
    if answer.fusion == "sam" or not (answer.heed_clicks or answer.fills_empty):
        return logits, scores
    sam_logits, _ = sam_masks_beside_hq(output, **wanted)
    if answer.fills_empty:
        is_empty = (logits <= model.mask_threshold).flatten(2).all(dim=2)
        logits = torch.where(is_empty[..., None, None], sam_logits, logits)
    if answer.heed_clicks:
        logits = heed_clicks(logits, sam_logits, prompts, model.image_size, model.mask_threshold)
    return logits, scores
