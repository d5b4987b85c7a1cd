"""Training of a `TextProjection`: CLIP sees crops of objects, SAM stays frozen, and no text is needed.

CLIP puts pictures and phrases into one space, so a projection that learned from crops is used with phrases (Segment
Anything, appendix D.5). What differs from the paper is listed in docs/text.md.

Shape legend: N masks of one image, D CLIP dimensions, L the image's long side, P points of the loss.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqsam.data.augment import OBJECT_THRESHOLD
from hqsam.data.sources import RawSample, SampleSource
from hqsam.errors import DataError, HqsamError
from hqsam.geometry import ResizeLongestSide
from hqsam.losses import bce_dice_per_mask, select_points
from hqsam.models import PreparedImages, Sam, select_masks
from hqsam.models.selection import SINGLE_CANDIDATE
from hqsam.text.clip import ClipEncoder
from hqsam.text.crops import object_crop
from hqsam.text.projection import TextProjection
from hqsam.types import Fusion, ImageFeatures, Prompts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ProjectionPlan:
    """How a projection is trained.

    Attributes:
        steps: optimizer steps.
        lr: learning rate of Adam.
        images_per_step: images whose masks share a step.
        masks_per_image: at most so many masks of an image, drawn anew each time.
        min_area: masks of fewer pixels of the original image are left out (the paper: 100 x 100).
        scale: smallest and largest enlargement of the crop's box (the paper: 1 to 2).
        blank_share: share of crops in which everything but the object is black (the paper: one half).
        point_share: share of prompts that come with one point inside the object, so that points can correct a text.
        loss_points: P, points of the loss for each mask; a multiple of 4.
        fusion: the masks that are trained on; None for what the model returns by default.
        seed: of everything random.
    """

    steps: int = 1000
    lr: float = 1e-3
    images_per_step: int = 4
    masks_per_image: int = 8
    min_area: int = 100 * 100
    scale: tuple[float, float] = (1.0, 2.0)
    blank_share: float = 0.5
    point_share: float = 0.25
    loss_points: int = 12544
    fusion: Fusion | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.images_per_step, self.masks_per_image, self.min_area, self.loss_points // 4) < 1:
            raise ValueError(f"steps, images, masks, area and points must be positive, got {self}")
        if not (self.lr > 0 and 1.0 <= self.scale[0] <= self.scale[1]):
            raise ValueError(f"lr must be above 0 and scale (low, high) with 1 <= low <= high, got {self}")
        if not (0.0 <= self.blank_share <= 1.0 and 0.0 <= self.point_share <= 1.0):
            raise ValueError(f"shares must be within 0..1, got {self}")


@dataclass(frozen=True, kw_only=True)
class TextExample:
    """N objects of one image, with everything that does not depend on the projection."""

    features: ImageFeatures  # of one image
    hq_features: Tensor | None  # None where plain SAM is trained on
    embeddings: Tensor  # (N, D) CLIP's, of the crops
    prompts: Prompts  # N, the point of some rows
    targets: Tensor  # (N, 1, L, L) uint8 0..255, the image at the top left
    loss_candidates: Tensor  # (N, 3P, 2) xy in 0..1
    loss_uniform: Tensor  # (N, P / 4, 2)


@torch.no_grad()
def make_example(
    model: Sam, clip: ClipEncoder, sample: RawSample, plan: ProjectionPlan, rng: np.random.Generator
) -> TextExample | None:
    """Turn an image and its masks into an example.

    Returns:
        None if no mask is large enough.

    Raises:
        ValueError: the sample comes without its image.
    """
    if sample.image is None:
        raise ValueError("a text projection is trained with images, got a sample without one")
    large = [mask for mask in sample.masks if np.count_nonzero(mask > OBJECT_THRESHOLD) >= plan.min_area]
    if not large:
        return None
    chosen = rng.permutation(len(large))[: plan.masks_per_image]
    masks = [large[index] for index in chosen]
    crops = [
        object_crop(
            sample.image,
            mask,
            clip.image_size,
            scale=float(rng.uniform(*plan.scale)),
            blank=bool(rng.random() < plan.blank_share),
        )
        for mask in masks
    ]
    features = _encode(model, sample.image)
    use_hq = model.resolve_fusion(plan.fusion) != "sam"
    candidates, uniform = (_loss_points(rng, len(masks), n, sample.image) for n in _point_counts(plan))
    return TextExample(
        features=features,
        hq_features=model.hq_features(features) if use_hq else None,
        embeddings=clip.encode_crops(crops).to(model.device),
        prompts=_points(masks, plan.point_share, model.image_size, rng).to(model.device),
        targets=_targets(masks).to(model.device),
        loss_candidates=candidates.to(model.device),
        loss_uniform=uniform.to(model.device),
    )


def projection_loss(
    model: Sam, projection: TextProjection, example: TextExample, fusion: Fusion | None = None
) -> Tensor:
    """BCE and dice of each mask, as in the training of the HQ head.

    Returns:
        (N,), with gradient to the projection.
    """
    chosen = model.resolve_fusion(fusion)
    tokens = projection(example.embeddings)[:, None]
    output = model.decode(
        example.features,
        example.prompts.with_tokens(tokens.to(model.dtype)),
        candidates=SINGLE_CANDIDATE,
        use_hq=chosen != "sam",
        prepared=PreparedImages(example.hq_features),
    )
    logits = select_masks(output, multimask=False, fusion=chosen)[0].float()
    points = select_points(logits.detach(), example.loss_candidates, example.loss_uniform)
    loss = bce_dice_per_mask(logits, example.targets, points)
    return loss.bce + loss.dice


def train_projection(
    projection: TextProjection,
    model: Sam,
    clip: ClipEncoder,
    source: SampleSource,
    plan: ProjectionPlan,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a projection in place; nothing of SAM or CLIP changes.

    Args:
        projection: on any device; it is moved to the model's.
        model: SAM or HQ-SAM, with weights.
        clip: the CLIP whose text embeddings will be used.
        source: images with masks, e.g. `hqsam.data.FileSource`.
        plan: how.
        on_step: called with the number of steps done and the loss.

    Returns:
        The loss of each step, a mean over its masks.

    Raises:
        ValueError: sizes of CLIP, projection and model that do not fit.
        DataError: a file is unusable, or no image has a large enough mask.
        HqsamError: the loss became NaN or infinite.
    """
    _require_fit(projection, model, clip)
    model.eval()
    projection.to(model.device).train()
    parameters = list(projection.parameters())
    optimizer = torch.optim.Adam(parameters, lr=plan.lr)
    examples = _examples(model, clip, source, plan)
    losses = []
    for step in range(plan.steps):
        batch = [next(examples) for _ in range(plan.images_per_step)]
        count = sum(len(example.embeddings) for _, example in batch)
        total = 0.0
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for _, example in batch:
            loss = projection_loss(model, projection, example, plan.fusion).sum() / count
            # gradients of the projection alone: those of the HQ head would be computed and kept for nothing
            for kept, new in zip(gradients, torch.autograd.grad(loss, parameters), strict=True):
                kept += new
            total += loss.item()
        if not math.isfinite(total):
            keys = ", ".join(key for key, _ in batch)
            raise HqsamError(f"the loss of the text projection is {total} at step {step + 1}; images: {keys}")
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        losses.append(total)
        if on_step is not None:
            on_step(step + 1, total)
    optimizer.zero_grad()
    projection.eval()
    return losses


def _require_fit(projection: TextProjection, model: Sam, clip: ClipEncoder) -> None:
    if projection.clip_dim != clip.dim or projection.dim != model.prompt_encoder.dim:
        raise ValueError(
            f"the projection is {projection.clip_dim} -> {projection.dim}, CLIP {clip.name!r} gives {clip.dim} and "
            f"the model takes {model.prompt_encoder.dim}"
        )


def _examples(
    model: Sam, clip: ClipEncoder, source: SampleSource, plan: ProjectionPlan
) -> Iterator[tuple[str, TextExample]]:
    """Examples without end: all images in a new order, again and again."""
    skipped = epoch = 0
    while True:
        for index in np.random.default_rng([plan.seed, epoch]).permutation(len(source)).tolist():
            rng = np.random.default_rng([plan.seed, epoch, index])
            sample = source.read(index, int(rng.integers(2**31)))
            example = make_example(model, clip, sample, plan, rng)
            if example is not None:
                skipped = 0
                yield source.key(index), example
                continue
            skipped += 1
            if skipped == len(source):
                raise DataError(f"none of {skipped} images has a mask of {plan.min_area} pixels or more")
        if len(source) == 0:
            raise DataError("a text projection is trained with images, the source has none")
        epoch += 1


def _encode(model: Sam, image: NDArray[np.uint8]) -> ImageFeatures:
    resized = torch.from_numpy(ResizeLongestSide(model.image_size).apply_image(image)).permute(2, 0, 1)
    features: ImageFeatures = model.image_encoder(model.preprocess(resized[None].to(model.device)))
    return features


def _points(masks: list[NDArray[np.uint8]], share: float, image_size: int, rng: np.random.Generator) -> Prompts:
    """One point inside for a share of the masks, nothing for the others; in the model's frame."""
    nothing = Prompts(torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int64), padded=False)
    rows = []
    for mask in masks:
        if rng.random() >= share:
            rows.append(nothing)
            continue
        y, x = np.unravel_index(rng.choice(np.flatnonzero(mask > OBJECT_THRESHOLD)), mask.shape)
        xy = ResizeLongestSide(image_size).apply_coords(np.array([[x, y]]), mask.shape)
        rows.append(Prompts.from_parts(torch.from_numpy(xy).float()[None], torch.ones(1, 1)))
    return Prompts.cat(rows)


def _targets(masks: list[NDArray[np.uint8]]) -> Tensor:
    """(N, 1, L, L): logits cover the padded square, so masks are padded to one."""
    height, width = masks[0].shape
    side = max(height, width)
    padded = torch.zeros((len(masks), 1, side, side), dtype=torch.uint8)
    padded[:, 0, :height, :width] = torch.from_numpy(np.stack(masks))
    return padded


def _point_counts(plan: ProjectionPlan) -> tuple[int, int]:
    return 3 * plan.loss_points, plan.loss_points // 4


def _loss_points(rng: np.random.Generator, count: int, points: int, image: NDArray[np.uint8]) -> Tensor:
    """(count, points, 2) xy within the image's part of the square."""
    height, width = image.shape[:2]
    extent = np.array([width, height], dtype=np.float32) / max(height, width)
    return torch.from_numpy(rng.random((count, points, 2), dtype=np.float32) * extent)
