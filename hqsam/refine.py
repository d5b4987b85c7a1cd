"""More looks at an object: the same question with the last answer as a mask prompt, or a crop encoded again.

Again: SAM was trained to correct itself when it is shown its own mask (Segment Anything, appendix A: two rounds of its
training add nothing but the last answer), and the decoder is a fraction of the encoder's cost. Of things of a few
pixels an HQ head may see nothing, and its certainty empties the sum: then SAM's mask is the answer, of every look.

Zoom: the model sees the whole image at its input size first. An object that fills a small part of it gets few of the
encoder's patches and few cells of the mask logits; cut out and encoded again it gets more of both. The second pass is
prompted as the first was, and with the first mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqsam.boxes import masks_to_boxes
from hqsam.encoding import encode_images
from hqsam.geometry import ResizeLongestSide, resized_hw
from hqsam.guided import ImageGuide, guided_masks
from hqsam.models import Sam, select_masks
from hqsam.postprocess import upscale_logits
from hqsam.types import (
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    NEGATIVE,
    OUTSIDE_LOGIT,
    PAD,
    POSITIVE,
    Fusion,
    Prompts,
)

MARGIN = 1.25
"""Side of a crop over the long side of the object's box."""
SMALLEST_CROP = 4
"""A crop's side is at least the model's input over this: what is magnified more looks like nothing the model knows."""
LARGEST_SHARE = 0.5
"""Crops of more than this share of the image's long side are not made: the first pass saw as much already."""
GPU_BATCH = 8
"""Crops encoded together on a GPU; on a CPU one at a time is as fast and smaller."""


class Crop(NamedTuple):
    """A window of the original image, maximum exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclass(frozen=True)
class CropJob:
    """What is asked about one crop.

    Attributes:
        row: the prompt that it is for.
        crop: where.
        prompts: one prompt in the model's frame of the crop, with the first mask.
    """

    row: int
    crop: Crop
    prompts: Prompts


@torch.no_grad()
def zoom(
    model: Sam,
    image: NDArray[np.uint8],
    prompts: Prompts,
    logits: Tensor,
    *,
    fusion: Fusion,
    guide: ImageGuide | None = None,
    threshold: float | None = 0.0,
    batch_size: int | None = None,
) -> Tensor:
    """Refine masks by a second pass on the crops around their objects.

    A crop is a square around the prompt's box, or around the first mask where there is no box, `MARGIN` times as large
    and at least a quarter of the model's input, moved into the image. Inside the crop the second mask replaces the
    first, unless it has no pixel. A mask whose crop would be most of the image stays as it is, as does an empty one
    without a box.

    Args:
        model: the model.
        image: (H, W, 3) uint8 RGB, the whole image.
        prompts: N prompts in the model's frame of the whole image, as they were answered. Points outside a crop are
            left out of the second pass; mask prompts give way to the first masks.
        logits: (N, 1, 4h, 4w), the answer.
        fusion: how the answer was fused, and the second pass will be.
        guide: of the image; edges of both passes then follow what they see.
        threshold: logits above it are inside; None returns logits.
        batch_size: crops encoded together; None is 1 on a CPU, else 8.

    Returns:
        (N, 1, H, W) bool, or float32 logits.

    Raises:
        ValueError: several masks a prompt, other numbers of prompts and masks, or a batch size below 1.
    """
    original_hw = (image.shape[0], image.shape[1])
    require_one_mask(prompts, logits)
    step = crops_at_once(model, batch_size)
    kind = torch.float32 if threshold is None else torch.bool
    result = torch.empty((len(logits), 1, *original_hw), dtype=kind, device=logits.device)
    jobs: list[CropJob] = []
    for row in range(len(logits)):
        first = full_size(model, logits[row, 0], original_hw)
        if guide is None:
            result[row, 0] = first if threshold is None else first > threshold
        else:
            rows = slice(row, row + 1)
            result[rows] = guided_masks(logits[rows], guide, prompts=prompts[rows], threshold=threshold)
        job = _zoom_job(model, prompts[row : row + 1], first, row)
        jobs += [job] if job is not None else []
        if len(jobs) == step or (jobs and row == len(logits) - 1):
            seconds = decode_crops(model, image, jobs, fusion, guided=guide is not None)
            for done, second in zip(jobs, seconds, strict=True):
                if not bool((second > model.mask_threshold).any()):
                    continue  # nothing is no better answer than the first
                x0, y0, x1, y1 = done.crop
                result[done.row, 0, y0:y1, x0:x1] = second if threshold is None else second > threshold
            jobs = []
    return result


def asked_again(prompts: Prompts, logits: Tensor) -> Prompts:
    """The same prompts with their answers in place of mask prompts.

    Args:
        prompts: N prompts in the model's frame, as they were answered.
        logits: (N, 1, 4h, 4w), the answers. One without a pixel says nothing: its prompt is asked as it was.

    Raises:
        ValueError: several masks a prompt, or other numbers of prompts and masks.
    """
    require_one_mask(prompts, logits)
    prompts = prompts.to(logits.device)
    seen = (logits > 0).flatten(1).any(dim=1)
    masks = logits if prompts.masks is None else torch.where(seen[:, None, None, None], logits, prompts.masks)
    return replace(prompts, masks=masks, has_mask=seen | prompts.mask_flags())


def require_one_mask(prompts: Prompts, logits: Tensor) -> None:
    """Refuse answers that cannot be refined.

    Raises:
        ValueError: several masks a prompt, or other numbers of prompts and masks.
    """
    if logits.ndim != 4 or logits.shape[1] != 1:
        raise ValueError(
            f"refining takes one mask a prompt, got logits of shape {tuple(logits.shape)}: set multimask_output=False, "
            'or candidates="best" with an HQ head'
        )
    if len(prompts) != len(logits):
        raise ValueError(f"each mask needs its prompt: got {len(logits)} masks and {len(prompts)} prompts")


def crops_at_once(model: Sam, batch_size: int | None) -> int:
    """Crops that are encoded together.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size is None:
        return 1 if model.device.type == "cpu" else GPU_BATCH
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def full_size(model: Sam, logits: Tensor, original_hw: tuple[int, int]) -> Tensor:
    """(4h, 4w) logits of any float type -> (H, W) float32 in the original image."""
    side = model.image_size
    input_hw = resized_hw(*original_hw, side)
    return upscale_logits(logits[None, None].float(), input_hw, original_hw, side)[0, 0]


def square_around(box: Sequence[float], side: int, hw: tuple[int, int]) -> Crop:
    """A square window around a box, moved into the image, and cut where the image is smaller.

    Args:
        box: x0, y0, x1, y1 in original pixels, inclusive.
        side: in pixels.
        hw: (H, W) of the image.
    """
    spans = []
    for low, high, size in ((box[0], box[2], hw[1]), (box[1], box[3], hw[0])):
        length = min(side, size)
        start = round((low + high + 1 - length) / 2)
        start = max(0, min(start, size - length))
        spans.append((start, start + length))
    (x0, x1), (y0, y1) = spans
    return Crop(x0, y0, x1, y1)


def prompts_in_crop(prompts: Prompts, crop: Crop, first: Tensor, model: Sam) -> Prompts:
    """One prompt of the whole image as one of a crop, with the first mask in place of a mask prompt.

    Args:
        prompts: one prompt in the model's frame of the whole image.
        crop: the window.
        first: (H, W) logits of the first mask.
        model: gives the frames' sizes.

    Returns:
        The prompt in the model's frame of the crop: corners of a box are moved into the crop, points outside it are
        left out, and a first mask that is empty in the crop says nothing.
    """
    x0, y0, x1, y1 = crop
    inside = first[y0:y1, x0:x1]
    side, device = model.image_size, prompts.coords.device
    window = torch.tensor([[x0, y0], [x1, y1]], device=device)
    low, high = ResizeLongestSide(side).apply_coords_torch(window, tuple(first.shape))
    input_hw = resized_hw(*crop.hw, side)
    ends = torch.tensor([input_hw[1], input_hw[0]], dtype=torch.float32, device=device)
    coords = (prompts.coords.to(torch.float32) - low) / (high - low) * ends
    point = (prompts.kinds == NEGATIVE) | (prompts.kinds == POSITIVE)
    outside = ((coords < 0) | (coords > ends)).any(dim=-1)
    kinds = torch.where(point & outside, PAD, prompts.kinds)
    seen = bool((inside > model.mask_threshold).any())
    masks = mask_prompt(inside, model.prompt_encoder.mask_input_size).to(device) if seen else None
    moved = torch.minimum(coords.clamp(min=0), ends)
    return replace(prompts, coords=moved, kinds=kinds, masks=masks, has_mask=None, image_index=None, padded=True)


def mask_prompt(logits: Tensor, mask_hw: tuple[int, int]) -> Tensor:
    """(H, W) logits of an image -> (1, 1, 4h, 4w): resized as the image is, padding far outside."""
    height, width = resized_hw(logits.shape[0], logits.shape[1], max(mask_hw))
    resized = F.interpolate(logits[None, None], (height, width), mode="bilinear", align_corners=False, antialias=True)
    return F.pad(resized, (0, mask_hw[1] - width, 0, mask_hw[0] - height), value=OUTSIDE_LOGIT)


@torch.no_grad()
def decode_crops(
    model: Sam, image: NDArray[np.uint8], jobs: Sequence[CropJob], fusion: Fusion, *, guided: bool = False
) -> list[Tensor]:
    """Encode crops of an image in one batch and answer them.

    Returns:
        For each crop its logits (height, width), float32.
    """
    crops = [image[y0:y1, x0:x1] for x0, y0, x1, y1 in (job.crop for job in jobs)]
    features, sizes = encode_images(model, crops)
    prompts = Prompts.cat([job.prompts for job in jobs]).with_image_index(torch.arange(len(jobs)))
    output = model.decode(features, prompts.to(model.device), use_hq=fusion != "sam")
    logits, _ = select_masks(output, multimask=False, fusion=fusion)
    found = []
    for low, size, crop, job in zip(logits.float(), sizes, crops, jobs, strict=True):
        if guided:
            guide = ImageGuide(crop, size, model.image_size, low.shape[-1], low.device)
            full = guided_masks(low[None], guide, prompts=job.prompts, threshold=None)
        else:
            full = upscale_logits(low[None], size, job.crop.hw, model.image_size)
        found.append(full[0, 0])
    return found


def object_box(prompts: Prompts, first: Tensor, model: Sam) -> tuple[float, float, float, float] | None:
    """Where the object of one prompt is: its box, or that of its first mask.

    Args:
        prompts: one prompt in the model's frame.
        first: (H, W) logits of the first mask.
        model: gives the frame's size.

    Returns:
        x0, y0, x1, y1 in original pixels, inside the image; None without a box and with an empty mask.
    """
    height, width = first.shape
    corners = [prompts.coords[prompts.kinds == kind] for kind in (BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)]
    if all(len(corner) for corner in corners):
        new_h, new_w = resized_hw(height, width, model.image_size)
        scale = torch.tensor([width / new_w, height / new_h])
        # Hundredths of a pixel, so that rounding does not move the crop.
        (x0, y0), (x1, y1) = ([round(v, 2) for v in (c[0].cpu().float() * scale).tolist()] for c in corners)
        return max(x0, 0.0), max(y0, 0.0), min(x1, width - 1.0), min(y1, height - 1.0)
    mask = first > model.mask_threshold
    if not bool(mask.any()):
        return None
    x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()
    return x0, y0, x1, y1


def _zoom_job(model: Sam, prompts: Prompts, first: Tensor, row: int) -> CropJob | None:
    box = object_box(prompts, first, model)
    if box is None:
        return None
    longest = max(box[2] - box[0], box[3] - box[1]) + 1
    side = max(math.ceil(MARGIN * longest), model.image_size // SMALLEST_CROP)
    if side > LARGEST_SHARE * max(first.shape):
        return None
    crop = square_around(box, side, (first.shape[0], first.shape[1]))
    return CropJob(row, crop, prompts_in_crop(prompts, crop, first, model))
