"""Masks from phrases, in two ways: boxes of a detector, or a CLIP token.

Shape legend: N masks, one for each box or phrase; (H, W) the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hqsam.answering import Answer
from hqsam.postprocess import full_size_masks
from hqsam.predictor import SamPredictor
from hqsam.prompts import PromptFrame
from hqsam.segmentation import answer_prompts
from hqsam.text.clip import ClipEncoder, load_clip
from hqsam.text.detections import Detections
from hqsam.text.projection import ProjectionInfo, TextProjection, load_projection
from hqsam.types import Fusion, ImageFeatures, Prompts


class TextMasks(NamedTuple):
    """Masks that answer phrases; all fields have N rows, and N may be 0."""

    masks: NDArray[np.bool_]  # (N, H, W)
    scores: NDArray[np.float32]  # (N,) SAM's predicted IoU
    phrase_index: NDArray[np.int64]  # (N,) which of the phrases
    detections: Detections | None  # the boxes used, row by row; None without a detector


class TextPrompter:
    """Phrases to sparse tokens: CLIP's text encoder and a trained projection.

    Raises:
        ValueError: the projection is for another length of embedding.
    """

    def __init__(self, projection: TextProjection, clip: ClipEncoder, template: str = "{}") -> None:
        if projection.clip_dim != clip.dim:
            raise ValueError(
                f"the projection takes embeddings of {projection.clip_dim} numbers, CLIP {clip.name!r} gives {clip.dim}"
            )
        self.projection = projection.to(clip.device).eval()
        self.clip = clip
        self.template = template

    @torch.no_grad()
    def tokens(self, phrases: Sequence[str]) -> Tensor:
        """N phrases -> (N, 1, C) tokens, one for each, to be given to `Prompts.with_tokens`."""
        tokens: Tensor = self.projection(self.clip.encode_text(phrases, self.template))
        return tokens[:, None]


def load_prompter(
    path: str | PathLike[str], *, clip: ClipEncoder | None = None, device: str | torch.device = "cpu"
) -> tuple[TextPrompter, ProjectionInfo]:
    """Load a projection and the CLIP that its file names.

    Args:
        path: written by `save_projection`.
        clip: used instead, e.g. from another folder; it has to be the same model.
        device: where both go.

    Raises:
        CheckpointError: the file is not a projection.
        MissingExtraError, ClipError: its CLIP cannot be loaded.
    """
    projection, info = load_projection(path)
    return TextPrompter(projection, load_clip(info.clip, device=device) if clip is None else clip, info.template), info


def segment_detections(
    predictor: SamPredictor,
    detections: Detections,
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    *,
    multimask: bool = False,
    fusion: Fusion | None = None,
) -> TextMasks:
    """A mask for each box that a detector found.

    Args:
        predictor: with its image set.
        detections: boxes in pixels of that image; none give no masks.
        points: (K, 2) xy that correct the result. One object is meant then: the box that holds most foreground
            points, of those the best-scored; the answer is its mask alone.
        labels: (K,): 1 foreground, 0 background.
        multimask: see `SamPredictor.predict`; the best-scored mask is returned.
        fusion: see `SamPredictor.predict`.

    Raises:
        RuntimeError: no image is set.
        ValueError: wrong points; see `SamPredictor.predict`.
    """
    size = _set_image(predictor).size
    coords: NDArray[Any] | None = None
    kinds: NDArray[Any] | None = None
    if points is not None or labels is not None:
        PromptFrame.of(predictor.model, size).assemble(points, labels, None, None)  # says what is wrong with them
        coords, kinds = np.asarray(points, dtype=np.float64)[None], np.asarray(labels)[None]
    if not len(detections.boxes):
        none = np.zeros(0, np.float32)
        return TextMasks(np.zeros((0, *size), bool), none, detections.phrase_index, detections)
    if coords is not None and kinds is not None:
        best = choose_box(detections, coords[0], kinds[0])
        detections = detections.rows(slice(best, best + 1))
    masks, scores, _ = predictor.predict(coords, kinds, detections.boxes, multimask_output=multimask, fusion=fusion)
    return TextMasks(*_best(masks, scores), detections.phrase_index, detections)


def choose_box(detections: Detections, points: NDArray[Any], labels: NDArray[Any]) -> int:
    """Row of the box that holds most foreground points; among equals the best-scored, which is the first."""
    inside = points[labels == 1][None]  # (1, K, 2)
    low, high = detections.boxes[:, None, :2], detections.boxes[:, None, 2:]
    held = ((inside >= low) & (inside <= high)).all(axis=2).sum(axis=1)
    return int(held.argmax())


@torch.no_grad()
def segment_tokens(
    predictor: SamPredictor,
    tokens: Tensor,
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    *,
    multimask: bool = False,
    fusion: Fusion | None = None,
) -> TextMasks:
    """A mask for each text token.

    Args:
        predictor: with its image set.
        tokens: (N, 1, C) from `TextPrompter.tokens`.
        points: (K, 2) xy that correct the result; they go in together with the token, of which there is one then.
        labels: (K,): 1 foreground, 0 background.
        multimask: see `SamPredictor.predict`; projections are trained with False.
        fusion: see `SamPredictor.predict`. Clicks are not heeded (`hqsam.heeding`), and nothing is fed
            back: projections are trained on the first answer.

    Raises:
        RuntimeError: no image is set.
        ValueError: tokens of another size, points beside several tokens, wrong points.
    """
    model, (size, input_size, features) = predictor.model, _set_image(predictor)
    dim = model.prompt_encoder.dim
    if tokens.ndim != 3 or tokens.shape[1:] != (1, dim) or not len(tokens):
        raise ValueError(f"text tokens must have shape (N, 1, {dim}), got {tuple(tokens.shape)}")
    if points is not None and len(tokens) > 1:
        raise ValueError(f"points go with one text, got {len(tokens)}: whose would they be?")
    if points is None and labels is None:
        count = len(tokens)
        prompts = Prompts(torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.int64), padded=False)
    else:
        prompts, _ = PromptFrame.of(model, size).assemble(points, labels, None, None)
    prompts = prompts.to(model.device).with_tokens(tokens.to(model.device, model.dtype))
    chosen = model.resolve_fusion(fusion)
    answer = Answer(multimask=multimask, return_logits=False, fusion=chosen, candidates="best")
    prepared = predictor.prepared(use_hq=chosen != "sam")
    logits, scores = answer_prompts(model, features, prompts, answer, prepared)
    masks = full_size_masks(logits, input_size, size, model.image_size, threshold=model.mask_threshold)
    index = np.arange(len(tokens), dtype=np.int64)
    return TextMasks(*_best(masks.cpu().numpy(), scores.cpu().numpy()), index, None)


class _SetImage(NamedTuple):
    size: tuple[int, ...]  # (H, W)
    input_size: tuple[int, ...]
    features: ImageFeatures


def _set_image(predictor: SamPredictor) -> _SetImage:
    """What the predictor knows of its image.

    Raises:
        RuntimeError: no image is set.
    """
    embedding, early = predictor.get_image_embedding(), predictor.interm_features
    size, input_size = predictor.original_size, predictor.input_size
    if early is None or size is None or input_size is None:
        raise RuntimeError("the predictor's image is not complete: call set_image(image)")
    return _SetImage(size, input_size, ImageFeatures(embedding, early[0].permute(0, 3, 1, 2)))


def _best(masks: NDArray[Any], scores: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """(N, C, H, W) and (N, C) to the best-scored of each row: plain SAM may answer with three."""
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    return masks[rows, best], scores[rows, best]
