"""The boxes on one image to single masks in every column, by the path of `SamPredictor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hqsam.answering import masks_of_output, wanted_answer
from hqsam.encoding import encode_images
from hqsam.geometry import ResizeLongestSide
from hqsam.guided import KnownImage
from hqsam.models import Sam
from hqsam.segmentation import ask_again, masks_of_image
from hqsam.types import Fusion, ImageFeatures, Prompts, Refine, ScoreSource, Upsampling

_PIXELS_AT_ONCE = 2**25
"""Output pixels of one chunk of prompts, so that large photographs do not need memory for every object."""


class Decoded(NamedTuple):
    """Masks of a chunk of n boxes in one column."""

    masks: NDArray[np.bool_]  # (n, H, W), at the size of the original image
    scores: NDArray[np.float32]  # (n,), predicted


class EncodedImage(NamedTuple):
    """An image and what its masks are decoded from."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    features: ImageFeatures  # of this image alone
    input_hw: tuple[int, int]  # of the resized image inside the model's input


def encode_each(model: Sam, images: Sequence[NDArray[np.uint8]]) -> list[EncodedImage]:
    """Encode pictures of any sizes as one batch; see `hqsam.encoding.encode_images`."""
    if not images:
        return []
    features, sizes = encode_images(model, images)
    return [
        EncodedImage(image, features.of_image(k), size)
        for k, (image, size) in enumerate(zip(images, sizes, strict=True))
    ]


@torch.no_grad()
def decode_boxes(
    model: Sam,
    encoded: EncodedImage,
    boxes: NDArray[np.floating[Any]],
    columns: Sequence[Fusion],
    *,
    refine: Refine | None = "none",
    upsampling: Upsampling | None = "bilinear",
    sources: Mapping[Fusion, ScoreSource] | None = None,
) -> Iterator[dict[Fusion, Decoded]]:
    """Answer boxes chunk by chunk. HQ alone and the sum come from one decoding, plain SAM from its own.

    Args:
        model: the model.
        encoded: the image.
        boxes: (N, 4) XYXY in pixels of the image.
        columns: which ways of using the model.
        refine, upsampling: as in `SamPredictor.predict`.
        sources: what the masks of each column are scored by; None: SAM's score.

    Yields:
        Column -> masks of the next boxes, in order; memory does not depend on N.
    """
    pixels, features, input_hw = encoded
    image, image_hw = KnownImage(pixels), pixels.shape[:2]
    scaled = torch.from_numpy(ResizeLongestSide(model.image_size).apply_boxes(boxes, image_hw)).to(torch.float32)
    prepared = model.prepare(features, use_hq=bool(set(columns) - {"sam"}))
    by = {column: (sources or {}).get(column, "sam") for column in columns}
    for chunk in scaled.split(prompts_at_once(image_hw)) if len(scaled) else ():
        prompts = Prompts.from_parts(boxes=chunk)
        found: dict[Fusion, Decoded] = {}
        for wanted in ([c for c in columns if c == "sam"], [c for c in columns if c != "sam"]):
            if not wanted:
                continue
            use_hq = wanted != ["sam"]
            own = any(by[column] != "sam" for column in wanted)
            output = model.decode(features, prompts.to(model.device), use_hq=use_hq, prepared=prepared, own_scores=own)
            for column in wanted:
                answer = wanted_answer(
                    model,
                    multimask=False,
                    return_logits=False,
                    fusion=column,
                    refine=refine,
                    score=by[column],
                    upsampling=upsampling,
                )
                logits, scores = masks_of_output(model, output, prompts, answer)
                logits = logits.float()
                if answer.asks_again:
                    logits, scores = ask_again(model, features, prompts, logits, answer, prepared)
                masks = masks_of_image(model, image, (input_hw, image_hw), prompts, logits, answer)
                found[column] = Decoded(masks[:, 0].cpu().numpy(), scores[:, 0].float().cpu().numpy())
        yield {column: found[column] for column in columns}


def prompts_at_once(image_hw: tuple[int, ...]) -> int:
    """How many masks of an image are held at once: 109 of a COCO image, fewer of a large photograph."""
    return max(1, _PIXELS_AT_ONCE // int(image_hw[0] * image_hw[1]))
