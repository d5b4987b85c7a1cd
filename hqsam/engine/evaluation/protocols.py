"""From an image and the true masks on it to predicted masks: the two named protocols.

Both prompt with the tight box (inclusive pixels) of the true mask and take the single mask. Inside a true mask is what
is brighter than grey value 128.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hqsam.boxes import mask_to_box
from hqsam.engine.evaluation.columns import possible_columns, require_columns
from hqsam.engine.evaluation.config import EvalOptions, ProtocolName
from hqsam.engine.evaluation.decoding import EncodedImage, decode_boxes, encode_each, prompts_at_once
from hqsam.models import Sam, select_masks
from hqsam.types import Fusion, ImageFeatures, Prompts, Refine, Upsampling

INSIDE = 128
"""Grey values above this are inside a true mask (the published evaluation's threshold)."""

Predicted = dict[str, NDArray[np.bool_]]
"""Column -> (H, W) bool, at the size of the original image."""


Pair = tuple[NDArray[np.uint8], Sequence[NDArray[np.uint8]]]
"""An image (H, W, 3) uint8 RGB and its targets (H, W) uint8, none empty at `INSIDE`; only their boxes are used."""


class MaskPath(Protocol):
    """Predicts the masks of images; the image encoder gets those of one call together."""

    columns: tuple[Fusion, ...]

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[Iterator[Predicted]]:
        """For each image, in order, the predictions for its targets; computed as they are asked for."""

    def describe(self) -> Mapping[str, Any]:
        """What distinguishes these numbers from others, for the reports."""


def make_path(model: Sam, options: EvalOptions) -> MaskPath:
    """The path of a protocol.

    Raises:
        ValueError: the model cannot give a column that was asked for, or any that the protocol has; refining in a
            protocol that has none.
    """
    columns = _choose_columns(model, options.protocol, options.columns)
    if options.protocol == "predictor":
        return PredictorPath(model, columns, options.refine, options.upsampling)
    if options.refine not in (None, "none"):
        raise ValueError(f"refine={options.refine!r} belongs to protocol 'predictor', not to {options.protocol!r}")
    if options.upsampling not in (None, "bilinear"):
        raise ValueError(
            f"upsampling={options.upsampling!r} belongs to protocol 'predictor', not to {options.protocol!r}"
        )
    return PaperPath(model)


def _choose_columns(model: Sam, protocol: ProtocolName, asked: Sequence[str]) -> tuple[Fusion, ...]:
    require_columns(asked)
    possible = possible_columns(model)
    has_head = "hq" in possible
    if protocol == "paper":
        possible = tuple(column for column in possible if column == "hq")
    chosen = tuple(column for column in possible if column in asked or not asked)
    if not chosen or len(chosen) < len(set(asked)):
        head = "a trained HQ head" if has_head else ("an untrained HQ head" if model.has_hq else "no HQ head")
        raise ValueError(
            f"protocol {protocol!r} of a model with {head} gives {', '.join(possible) or 'no column'}"
            + (f", asked for {', '.join(asked)}" if asked else "; it scores the HQ mask alone")
        )
    return chosen


class PredictorPath:
    """The path a user gets: `SamPredictor`, long side resized, padded, logits fused, threshold 0."""

    def __init__(
        self,
        model: Sam,
        columns: tuple[Fusion, ...],
        refine: Refine | None = None,
        upsampling: Upsampling | None = None,
    ) -> None:
        self.model = model
        self.columns = columns
        self.refine = refine
        self.upsampling = upsampling

    def __call__(self, pairs: Sequence[Pair]) -> Iterator[Iterator[Predicted]]:
        """See `MaskPath`."""
        encoded = encode_each(self.model, [image for image, _ in pairs])
        for each, (_, targets) in zip(encoded, pairs, strict=True):
            yield self._predict(each, targets)

    def _predict(self, encoded: EncodedImage, targets: Sequence[NDArray[np.uint8]]) -> Iterator[Predicted]:
        if not targets:
            return
        boxes = np.stack([tight_box(target) for target in targets])
        for chunk in decode_boxes(
            self.model, encoded, boxes, self.columns, refine=self.refine, upsampling=self.upsampling
        ):
            for row in range(len(chunk[self.columns[0]].masks)):
                yield {column: decoded.masks[row] for column, decoded in chunk.items()}

    def _chosen(self, asked: str | None, default: str, plain: str) -> str:
        """What was asked for, or the model's default, which is not for plain SAM."""
        if asked is not None:
            return asked
        return default if default == plain else f"{default}, of masks that HQ takes part in"

    def describe(self) -> Mapping[str, Any]:
        """See `MaskPath`."""
        return {
            "name": "predictor",
            "resize": "long side to the resolution, padded with zeros at the bottom and on the right",
            "masks": "single mask, upsampled to the original size, logit > 0",
            "refine": self._chosen(self.refine, self.model.default_refine, "none"),
            "upsampling": self._chosen(self.upsampling, self.model.default_upsampling, "bilinear"),
            "columns": {
                column: {
                    "sam": "plain SAM, without the HQ token",
                    "hq": "HQ logits alone",
                    "sum": "SAM logits computed with the HQ token + HQ logits",
                }[column]
                for column in self.columns
            },
        }


class PaperPath:
    """The HQ-SAM paper's evaluation: image and mask squashed to S x S, HQ logits alone.

    As in the published code the image is resized without antialiasing and truncated to whole grey values, the box is
    that of the squashed mask, and the low-resolution logits go to the original size in one step.
    """

    columns: tuple[Fusion, ...] = ("hq",)

    def __init__(self, model: Sam) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, pairs: Sequence[Pair]) -> Iterator[Iterator[Predicted]]:
        """See `MaskPath`."""
        if not pairs:
            return
        squashed = [self._squash(torch.from_numpy(image).permute(2, 0, 1)).to(torch.uint8) for image, _ in pairs]
        features = self.model.image_encoder(self.model.preprocess_canvas(torch.stack(squashed).to(self.model.device)))
        for k, (image, targets) in enumerate(pairs):
            yield self._predict(features.of_image(k), image, targets)

    @torch.no_grad()
    def _predict(
        self, features: ImageFeatures, image: NDArray[np.uint8], targets: Sequence[NDArray[np.uint8]]
    ) -> Iterator[Predicted]:
        if not targets:
            return
        model = self.model
        prepared = model.prepare(features)
        boxes = torch.stack([self._box(target) for target in targets]).to(model.device)
        for chunk in boxes.split(prompts_at_once(image.shape)):
            output = model.decode(features, Prompts.from_parts(boxes=chunk), prepared=prepared)
            logits, _ = select_masks(output, multimask=False, fusion="hq")
            logits = F.interpolate(logits.float(), image.shape[:2], mode="bilinear", align_corners=False)
            for mask in (logits[:, 0] > model.mask_threshold).cpu().numpy():
                yield {"hq": mask}

    def _squash(self, channels: Tensor) -> Tensor:
        """(C, H, W) uint8 -> (C, S, S) float32, bilinear, not antialiased."""
        size = (self.model.image_size, self.model.image_size)
        return F.interpolate(channels[None].float(), size, mode="bilinear", align_corners=False)[0]

    def _box(self, target: NDArray[np.uint8]) -> Tensor:
        """(4,) XYXY of the squashed mask; of the mask itself, scaled, where squashing leaves nothing of it."""
        side = self.model.image_size
        box = mask_to_box((self._squash(torch.from_numpy(target)[None])[0] > INSIDE).numpy())
        if box is None:
            height, width = target.shape
            box = tight_box(target) * np.array([side / width, side / height] * 2, dtype=np.float32)
        return torch.from_numpy(box)

    def describe(self) -> Mapping[str, Any]:
        """See `MaskPath`."""
        return {
            "name": "paper",
            "resize": "squashed to a square of the resolution, bilinear, not antialiased",
            "masks": "single mask, low-resolution logits upsampled to the original size, logit > 0",
            "columns": {"hq": "HQ logits alone"},
        }


def tight_box(target: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(4,) XYXY box, inclusive pixels, of an (H, W) uint8 mask.

    Raises:
        ValueError: no pixel is inside.
    """
    box = mask_to_box(target > INSIDE)
    if box is None:
        raise ValueError(f"a mask of {target.shape} has no pixel above {INSIDE}: there is no box to prompt with")
    return box
