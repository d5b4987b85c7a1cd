"""Value types that travel between the layers.

Shape legend: B images, N prompts over all images, K tokens per prompt, M masks per prompt, S input size of the
model, (h, w) the image embedding's grid (S / 16), (4h, 4w) the grid of low-resolution mask logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

Fusion = Literal["sum", "hq", "sam"]
"""What is returned: SAM's and HQ's logits summed, HQ's alone, or plain SAM (the HQ token takes no part)."""

FUSIONS: tuple[Fusion, ...] = ("sum", "hq", "sam")

OUTSIDE_LOGIT = -16.0
"""What stands for logits of padding where none was computed."""

Candidates = Literal["best", "all"]
"""Of SAM's three masks of an ambiguous prompt: the best-scored one fused with HQ's, or each of them."""

CANDIDATES: tuple[Candidates, ...] = ("best", "all")

ScoreSource = Literal["sam", "own", "own_boundary"]
"""SAM's predicted IoU of SAM's mask, or the predicted IoU or boundary IoU of the mask that is returned."""

SCORE_SOURCES: tuple[ScoreSource, ...] = ("sam", "own", "own_boundary")

Refine = Literal["none", "again", "again+again", "zoom", "again+zoom", "again+again+zoom"]
"""More looks at an object, one after the other: its answer fed back, and a crop around it encoded again."""

REFINEMENTS: tuple[Refine, ...] = ("none", "again", "again+again", "zoom", "again+zoom", "again+again+zoom")


Upsampling = Literal["bilinear", "guided"]
"""From low-resolution logits to pixels: SAM's two bilinear steps, or edges of the picture (`hqsam.guided`)."""

UPSAMPLINGS: tuple[Upsampling, ...] = ("bilinear", "guided")


def times_again(refine: Refine) -> int:
    """How often an answer is fed back."""
    return refine.split("+").count("again")


def without_zoom(refine: Refine) -> Refine:
    """What is left of a refinement that needs the features of the image alone."""
    return cast(Refine, "+".join(look for look in refine.split("+") if look != "zoom") or "none")


NEGATIVE, POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 0, 1, 2, 3
NOT_A_POINT = -1
"""SAM's own padding token: exactly one, only when points come without a box."""
PAD = -2
"""Fills ragged batches; masked out wherever it could be attended to, so it changes nothing."""


class ImageFeatures(NamedTuple):
    """What an image encoder returns, channels first."""

    image_embedding: Tensor  # (B, 256, h, w)
    early_feature: Tensor  # (B, C, h', w'), after the first global-attention block

    @property
    def grid_hw(self) -> tuple[int, int]:
        """(h, w)."""
        height, width = self.image_embedding.shape[-2:]
        return height, width

    def of_image(self, index: int) -> ImageFeatures:
        """Those of one image alone, B = 1."""
        return ImageFeatures(*(tensor[index : index + 1] for tensor in self))


class DecoderOutput(NamedTuple):
    """Everything a mask decoder computed; `hqsam.models.select_masks` chooses what a caller sees."""

    sam_logits: Tensor  # (N, M, 4h, 4w), one mask per candidate that was asked for
    hq_logits: Tensor | None  # (N, 1, 4h, 4w); None where the HQ token took no part
    iou: Tensor  # (N, M), SAM's predicted IoU of each candidate
    own_scores: Tensor | None = None  # (N, 2, M, 2), from `ScoreHead`; None where nobody asked for them
    rows: Tensor | None = None  # (N,) int64, which prompts these are where those with low scores were left out

    def of_length(self, count: int) -> DecoderOutput:
        """Room for the answers to so many prompts, of the same kinds as these."""
        return self._each(lambda t: t.new_empty((count, *t.shape[1:])))

    def put(self, part: DecoderOutput, at: int) -> int:
        """Copy the answers to some prompts, all but their `rows`, to a place of their own; returns where it ends."""
        end = at + len(part.iou)
        for place, some in zip(self[:4], part[:4], strict=True):
            if place is not None and some is not None:
                place[at:end] = some
        return end

    def first(self, count: int) -> DecoderOutput:
        """Those of the first prompts."""
        return self._each(lambda t: t[:count])

    def _each(self, change: Callable[[Tensor], Tensor]) -> DecoderOutput:
        """A change of all but `rows`."""
        hq, own = (None if t is None else change(t) for t in (self.hq_logits, self.own_scores))
        return DecoderOutput(change(self.sam_logits), hq, change(self.iou), own)


@dataclass(frozen=True)
class Prompts:
    """N prompts, over any number of images, as tokens in model-input pixels.

    Attributes:
        coords: (N, K, 2) float, (x, y) in pixels of the resized image that the encoder saw.
        kinds: (N, K) int64: 0 negative point, 1 positive point, 2 box top-left, 3 box bottom-right, -1 SAM's
            "not a point", -2 batch padding.
        masks: (N, 1, 4h, 4w) float logits, or None.
        has_mask: (N,) bool, False where the row of `masks` is filler; None when every row counts.
        image_index: (N,) int64, the image that each prompt belongs to; None when all belong to image 0.
        padded: whether `kinds` may hold batch padding. False lets the decoder skip masking without looking at the
            values, which on a GPU would wait for the device.
        tokens: (N, E, C) ready-made sparse tokens, for instance of a text; they follow the points and corners.
        has_tokens: (N, E) bool, False where `tokens` holds filler; None when every one counts.
    """

    coords: Tensor
    kinds: Tensor
    masks: Tensor | None = None
    has_mask: Tensor | None = None
    image_index: Tensor | None = None
    padded: bool = True
    tokens: Tensor | None = None
    has_tokens: Tensor | None = None

    def __post_init__(self) -> None:
        if self.coords.ndim != 3 or self.coords.shape[-1] != 2:
            raise ValueError(f"prompt coordinates must have shape (N, K, 2), got {tuple(self.coords.shape)}")
        if self.kinds.shape != self.coords.shape[:2]:
            raise ValueError(
                f"prompt kinds must have shape {tuple(self.coords.shape[:2])}, got {tuple(self.kinds.shape)}"
            )
        for name in ("masks", "has_mask", "image_index", "tokens", "has_tokens"):
            value = getattr(self, name)
            if value is not None and value.shape[0] != self.coords.shape[0]:  # not len(): it fixes traced shapes
                raise ValueError(f"{name} must have one row for each of {len(self.coords)} prompts, got {len(value)}")
        if self.masks is not None and (self.masks.ndim != 4 or self.masks.shape[1] != 1):
            raise ValueError(f"mask prompts must have shape (N, 1, h, w), got {tuple(self.masks.shape)}")
        if self.tokens is not None and self.tokens.ndim != 3:
            raise ValueError(f"sparse tokens must have shape (N, E, C), got {tuple(self.tokens.shape)}")

    def __len__(self) -> int:
        return len(self.coords)

    @classmethod
    def from_parts(
        cls,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Prompts:
        """Assemble tokens in SAM's order: points, one "not a point" if there is no box, box corners.

        Args:
            points: (N, K, 2) xy in model-input pixels.
            labels: (N, K): 1 foreground, 0 background, -1 not a point.
            boxes: (N, 4) XYXY in model-input pixels.
            masks: (N, 1, 4h, 4w) logits.
            image_index: (N,) image of each prompt.

        Returns:
            The prompts. Without any argument: one prompt that says nothing, as in SAM.

        Raises:
            ValueError: parts disagree about N, or labels are missing or not in {-1, 0, 1}.
        """
        for name, part, rank, shape in (("points", points, 3, "(N, K, 2)"), ("boxes", boxes, 2, "(N, 4)")):
            if part is not None and part.ndim != rank:
                raise ValueError(f"{name} must have shape {shape}, got {tuple(part.shape)}")
        given = [part for part in (points, boxes, masks) if part is not None]
        count = len(given[0]) if given else 1
        if any(len(part) != count for part in given):
            raise ValueError(f"prompt parts must agree on the number of prompts, got {[len(p) for p in given]}")
        if (points is None) != (labels is None):
            raise ValueError("points and labels come together: pass both or neither")
        device = given[0].device if given else torch.device("cpu")
        coords = torch.zeros((count, 0, 2), device=device)
        kinds = torch.zeros((count, 0), dtype=torch.int64, device=device)
        if points is not None and labels is not None:
            if labels.device.type == "cpu" and not torch.isin(labels, labels.new_tensor([-1, 0, 1])).all():
                raise ValueError(
                    f"labels must be 1 (foreground), 0 (background) or -1 (ignored), got {labels.tolist()}"
                )
            coords, kinds = points.to(torch.float32), labels.to(torch.int64)
            if boxes is None:
                coords = torch.cat([coords, coords.new_zeros((count, 1, 2))], dim=1)
                kinds = torch.cat([kinds, kinds.new_full((count, 1), NOT_A_POINT)], dim=1)
        if boxes is not None:
            corners = kinds.new_tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]).expand(count, 2)
            coords = torch.cat([coords, boxes.to(torch.float32).reshape(count, 2, 2)], dim=1)
            kinds = torch.cat([kinds, corners], dim=1)
        return cls(coords, kinds, masks, None, image_index, padded=False)

    @classmethod
    def cat(cls, parts: Sequence[Prompts]) -> Prompts:
        """Join prompts of different token counts into one batch, in order.

        Shorter rows are filled with `PAD`; rows without a mask prompt are marked in `has_mask`. If any part has an
        `image_index`, parts without one count as image 0.
        """
        if not parts:
            raise ValueError("no prompts to join: pass at least one")
        width = max(part.coords.shape[1] for part in parts)
        coords = torch.cat([_widen(part.coords, width, 0.0) for part in parts])
        kinds = torch.cat([_widen(part.kinds, width, PAD) for part in parts])
        padded = any(part.padded or part.coords.shape[1] != width for part in parts)
        index = None
        if any(part.image_index is not None for part in parts):
            index = torch.cat([kinds.new_zeros(len(p)) if p.image_index is None else p.image_index for p in parts])
        masks = has_mask = None
        shape = next((part.masks.shape[1:] for part in parts if part.masks is not None), None)
        if shape is not None:
            masks = torch.cat([p.coords.new_zeros((len(p), *shape)) if p.masks is None else p.masks for p in parts])
            has_mask = torch.cat([part.mask_flags() for part in parts])
        return cls(coords, kinds, masks, has_mask, index, padded, *_cat_tokens(parts))

    def with_tokens(self, tokens: Tensor) -> Prompts:
        """The same prompts with ready-made sparse tokens (N, E, C), instead of those that they had."""
        return replace(self, tokens=tokens, has_tokens=None)

    def token_flags(self) -> Tensor | None:
        """(N, K + E) bool: which tokens count; None when all do."""
        if not self.padded and self.has_tokens is None:
            return None
        keep = self.kinds != PAD
        if self.tokens is None:
            return keep
        extra = keep.new_ones(self.tokens.shape[:2]) if self.has_tokens is None else self.has_tokens
        return torch.cat([keep, extra], dim=1)

    def mask_flags(self) -> Tensor:
        """(N,) bool: which prompts carry a mask."""
        if self.has_mask is not None:
            return self.has_mask
        return torch.full((len(self),), self.masks is not None, dtype=torch.bool, device=self.coords.device)

    def __getitem__(self, rows: slice) -> Prompts:
        """Select prompts by a slice; views, no copies."""

        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return Prompts(
            self.coords[rows],
            self.kinds[rows],
            of(self.masks),
            of(self.has_mask),
            of(self.image_index),
            self.padded,
            of(self.tokens),
            of(self.has_tokens),
        )

    def trimmed(self) -> Prompts:
        """The same prompts without batch padding at the end of all of them, and without masks that none of them has.

        Looks at the values, which on a GPU would wait for the device.
        """
        counts = self.kinds != PAD
        used = counts.any(dim=0).nonzero()
        width = int(used.max()) + 1 if len(used) else 0
        flags = self.mask_flags()
        masks = self.masks if flags.any() else None
        return replace(
            self,
            coords=self.coords[:, :width],
            kinds=self.kinds[:, :width],
            masks=masks,
            has_mask=None if masks is None or flags.all() else flags,
            padded=not bool(counts[:, :width].all()),
        )

    def with_image_index(self, image_index: Tensor) -> Prompts:
        """The same prompts assigned to other images."""
        return replace(self, image_index=image_index)

    def to(self, device: torch.device | str) -> Prompts:
        """Move every tensor to a device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            coords=self.coords.to(device, non_blocking=True),
            kinds=self.kinds.to(device, non_blocking=True),
            masks=move(self.masks),
            has_mask=move(self.has_mask),
            image_index=move(self.image_index),
            tokens=move(self.tokens),
            has_tokens=move(self.has_tokens),
        )


def _cat_tokens(parts: Sequence[Prompts]) -> tuple[Tensor | None, Tensor | None]:
    """Join ready-made tokens; rows that have fewer are filled, and the filler marked."""
    given = [part.tokens for part in parts if part.tokens is not None]
    if not given:
        return None, None
    width, dim = max(tokens.shape[1] for tokens in given), given[0].shape[2]
    tokens, flags = [], []
    for part in parts:
        own = given[0].new_zeros((len(part), 0, dim)) if part.tokens is None else part.tokens
        counts = part.kinds.new_ones(own.shape[:2], dtype=torch.bool) if part.has_tokens is None else part.has_tokens
        tokens.append(_widen(own, width, 0.0))
        flags.append(_widen(counts, width, False))
    return torch.cat(tokens), torch.cat(flags)


def _widen(tokens: Tensor, width: int, value: float) -> Tensor:
    missing = width - tokens.shape[1]
    if missing == 0:
        return tokens
    fill = tokens.new_full((tokens.shape[0], missing, *tokens.shape[2:]), value)
    return torch.cat([tokens, fill], dim=1)
