"""Many images, with different numbers and kinds of prompts each, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqsam.answering import Answer, masks_of_output
from hqsam.encoding import encode_images
from hqsam.guided import KnownImage, guided_masks
from hqsam.heeding import heed_clicks
from hqsam.images import as_rgb_uint8
from hqsam.models import PreparedImages, Sam
from hqsam.models.decoding import Shown
from hqsam.postprocess import full_size_masks
from hqsam.prompts import Prompt, PromptFrame, as_prompts
from hqsam.refine import asked_again, zoom
from hqsam.types import OUTSIDE_LOGIT, ImageFeatures, Prompts, times_again

GROUP = 64
"""Prompts whose candidates are in memory at once, of which only the chosen masks' logits are kept."""
GPU_BATCH = 8
"""Images encoded together on a GPU; on a CPU one at a time is as fast and smaller."""


class Segmentation(NamedTuple):
    """The answer to N prompts of one image; C masks a prompt."""

    masks: NDArray[Any]  # (N, C, H, W) bool, or float32 logits
    scores: NDArray[np.float32]  # (N, C), SAM's predicted IoU unless another score was asked for
    logits: NDArray[np.float32]  # (N, C, 4h, 4w), to be fed back as mask prompts


@torch.no_grad()
def answer_prompts(
    model: Sam,
    features: ImageFeatures,
    prompts: Prompts,
    answer: Answer,
    prepared: PreparedImages | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode and select, again where that is wanted; arguments as in `answer_confident_prompts`.

    Returns:
        float32 logits (N, C, 4h, 4w) and scores (N, C).
    """
    if prepared is None and answer.asks_again and answer.fusion != "sam":
        prepared = PreparedImages(model.hq_features(features))
    logits, scores, _ = answer_confident_prompts(model, features, prompts, answer, prepared)
    if not answer.asks_again:
        return logits, scores
    return ask_again(model, features, prompts, logits, answer, prepared)


@torch.no_grad()
def ask_again(
    model: Sam,
    features: ImageFeatures,
    prompts: Prompts,
    logits: Tensor,
    answer: Answer,
    prepared: PreparedImages | None = None,
) -> tuple[Tensor, Tensor]:
    """Feed answers back as mask prompts, as often as `answer.refine` says, once or twice.

    Args:
        model: the model.
        features: encoder outputs of B images.
        prompts: N prompts in the model's frame, as they were answered.
        logits: (N, 1, 4h, 4w), the first answers.
        answer: as the first time. What was ambiguous is not any more: SAM's single mask is taken.
        prepared: `model.prepare(features)` if the caller kept it, or parts of it.

    Returns:
        float32 logits (N, 1, 4h, 4w) and scores (N, 1).

    Raises:
        ValueError: nothing is to be fed back.
    """
    if not answer.asks_again:
        raise ValueError(f"refine={answer.refine!r} feeds nothing back")
    single = replace(answer, multimask=False)
    for _ in range(times_again(answer.refine)):
        fed, before = asked_again(prompts, logits), logits
        logits, scores, _ = answer_confident_prompts(model, features, fed, single, prepared)
        if answer.heed_clicks and answer.fusion != "sam":  # SAM may take back what it did, and the answer before has it
            logits = heed_clicks(logits, before.to(logits), prompts, model.image_size, model.mask_threshold)
    return logits, scores


@torch.no_grad()
def answer_confident_prompts(
    model: Sam,
    features: ImageFeatures,
    prompts: Prompts,
    answer: Answer,
    prepared: PreparedImages | None = None,
    *,
    min_iou: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decode and select the prompts whose score is high enough.

    Args:
        model: the model.
        features: encoder outputs of B images.
        prompts: N prompts in the model's frame, on any device.
        answer: which masks are wanted.
        prepared: `model.prepare(features)` if the caller kept it, or parts of it.
        min_iou: prompts none of whose masks has a higher predicted IoU may be left out. Those are left out whose score
            is known before their masks are: SAM's is, the score head's is not.

    Returns:
        float32 logits (N, C, 4h, 4w) and scores (N, C), and which of the prompts these are (N,), None for all.
    """
    if answer.heed_clicks and min_iou is not None:
        raise ValueError("heed_clicks is for clicks that somebody makes, min_iou for points of a grid: use one of them")
    if len(prompts) <= GROUP:
        return _answer_group(model, features, prompts, answer, prepared, min_iou)
    if prepared is None:
        prepared = model.prepare(features, use_hq=answer.fusion != "sam")
    h, w = features.grid_hw
    shape = len(prompts), answer.masks_per_prompt, 4 * h, 4 * w
    logits = torch.empty(shape, dtype=torch.float32, device=model.device)
    scores = logits.new_empty(shape[:2])
    kept, done = [], 0
    for start in range(0, len(prompts), GROUP):
        group = prompts[start : start + GROUP]
        some, their_scores, rows = _answer_group(model, features, group, answer, prepared, min_iou)
        places = slice(done, done + len(some))
        logits[places], scores[places] = some, their_scores
        kept += [] if rows is None else [rows + start]
        done = places.stop
    return logits[:done], scores[:done], torch.cat(kept) if kept else None


def _answer_group(
    model: Sam,
    features: ImageFeatures,
    prompts: Prompts,
    answer: Answer,
    prepared: PreparedImages | None,
    min_iou: float | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    early = answer.score == "sam" and min_iou is not None
    output = model.decode(
        features,
        prompts.to(model.device),
        candidates=answer.candidate_numbers,
        use_hq=answer.fusion != "sam",
        prepared=prepared,
        own_scores=answer.score != "sam",
        min_iou=min_iou if early else None,
        shown=answer.shown if answer.score == "sam" else None,
    )
    logits, scores = masks_of_output(model, output, prompts, answer)
    if answer.shown is not None and answer.score != "sam":
        outside = 2 * OUTSIDE_LOGIT if answer.fusion == "sum" else OUTSIDE_LOGIT
        logits = Shown.of_input(answer.shown, features.grid_hw).spread(logits, features.grid_hw, outside)
    return logits.float(), scores.float(), output.rows


def masks_of_image(
    model: Sam,
    image: KnownImage | None,
    frame: tuple[tuple[int, ...], tuple[int, ...]],
    prompts: Prompts,
    logits: Tensor,
    answer: Answer,
) -> Tensor:
    """Bring the answers for one image to its size, refined if that is wanted.

    Args:
        model: the model.
        image: the image itself, needed for a zoom and for guided upsampling.
        frame: size (height, width) of the resized image inside the model's input, and (H, W).
        prompts: the N prompts, as they were answered.
        logits: (N, C, 4h, 4w) float32.
        answer: which masks are wanted.

    Returns:
        (N, C, H, W) bool, or float32 logits.

    Raises:
        ValueError: a zoom or guided upsampling without the image.
    """
    threshold = None if answer.return_logits else model.mask_threshold
    if not answer.needs_image:
        return full_size_masks(logits, *frame, model.image_size, threshold=threshold)
    if image is None:
        asked = f"refine={answer.refine!r}" if answer.zooms else f"upsampling={answer.upsampling!r}"
        raise ValueError(f"{asked} needs the picture itself: use set_image(image) or load_features(features, image)")
    guide = None if answer.upsampling == "bilinear" else image.guide(frame[0], model.image_size, logits)
    if answer.zooms or guide is None:
        return zoom(model, image.pixels, prompts, logits, fusion=answer.fusion, guide=guide, threshold=threshold)
    return guided_masks(logits, guide, prompts=prompts, threshold=threshold)


@dataclass(frozen=True)
class _Job:
    """One image with prompts, checked."""

    place: int
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    prompts: Prompts

    @property
    def original_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]


@torch.no_grad()
def segment_images(
    model: Sam,
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[Prompt | Iterable[Prompt]],
    answer: Answer,
    *,
    image_format: str = "RGB",
    batch_size: int | None = None,
) -> list[Segmentation]:
    """Segment many images; `SamPredictor.segment` describes it."""
    if len(images) != len(prompts):
        raise ValueError(f"each image needs its prompts: got {len(images)} images and {len(prompts)} prompt lists")
    if batch_size is None:
        batch_size = 1 if model.device.type == "cpu" else GPU_BATCH
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    results: list[Segmentation] = []
    for start in range(0, len(images), batch_size):
        places = range(start, min(start + batch_size, len(images)))
        jobs = [_prepare(model, place, images[place], prompts[place], image_format) for place in places]
        answered = dict(_segment_batch(model, [job for job in jobs if len(job.prompts)], answer))
        results += [answered.get(job.place) or _nothing(model, job, answer) for job in jobs]
    return results


def _prepare(
    model: Sam, place: int, image: NDArray[np.uint8], prompts: Prompt | Iterable[Prompt], image_format: str
) -> _Job:
    try:
        rgb = as_rgb_uint8(image, image_format)
        frame = PromptFrame.of(model, rgb.shape[:2])
        parts = [frame.checked(prompt) for prompt in as_prompts(prompts)]
    except ValueError as error:
        raise ValueError(f"image {place}: {error}") from error
    none = Prompts(torch.zeros(0, 0, 2), torch.zeros(0, 0, dtype=torch.int64))
    return _Job(place, rgb, Prompts.cat(parts) if parts else none)


def _segment_batch(model: Sam, jobs: Sequence[_Job], answer: Answer) -> Iterator[tuple[int, Segmentation]]:
    if not jobs:
        return
    features, input_sizes = encode_images(model, [job.image for job in jobs])
    counts = [len(job.prompts) for job in jobs]
    index = torch.arange(len(jobs)).repeat_interleave(torch.tensor(counts))
    joined = Prompts.cat([job.prompts for job in jobs]).with_image_index(index)
    logits, scores = answer_prompts(model, features, joined, answer)
    for job, input_hw, low, score in zip(jobs, input_sizes, logits.split(counts), scores.split(counts), strict=True):
        masks = masks_of_image(model, KnownImage(job.image), (input_hw, job.original_hw), job.prompts, low, answer)
        yield job.place, Segmentation(masks.cpu().numpy(), score.cpu().numpy(), low.cpu().numpy())


def _nothing(model: Sam, job: _Job, answer: Answer) -> Segmentation:
    lead = (0, answer.masks_per_prompt)
    kind = np.float32 if answer.return_logits else np.bool_
    return Segmentation(
        np.zeros((*lead, *job.original_hw), kind),
        np.zeros(lead, np.float32),
        np.zeros((*lead, *model.prompt_encoder.mask_input_size), np.float32),
    )
