"""What a data loader hands over: samples, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from hqsam.types import ImageFeatures, Prompts


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One view with P prompts, in the model's S x S frame.

    Attributes:
        key: the image's key.
        source: the image's source.
        view_key: identifies the pixels of `image`: equal keys, equal pixels.
        image: (3, S, S) uint8 RGB, or None where kept features replace it.
        features: the encoder's outputs without a batch axis, float16, or None.
        input_hw: height and width of what the predictor would not pad; beyond it the encoder is to see zeros. (S, S)
            where all of the frame counts.
        masks: (P, S, S) uint8 0..255, soft.
        prompts: P prompts in model-input pixels.
        loss_candidates: (P, C, 2) float32 xy in [0, 1], of which the most uncertain enter the loss.
        loss_uniform: (P, U, 2) float32 xy in [0, 1], which enter it as they are.
        click_draws: (P, R) float32 in [0, 1), which wrong pixel the click of each correction round takes.
        path_draws: (L,) float32 in [0, 1), which branches of the encoder are left out in training.
    """

    key: str
    source: str
    view_key: str
    image: Tensor | None
    features: ImageFeatures | None
    input_hw: tuple[int, int]
    masks: Tensor
    prompts: Prompts
    loss_candidates: Tensor
    loss_uniform: Tensor
    click_draws: Tensor
    path_draws: Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B views with N prompts in all; the fields are those of `Sample`, joined.

    Attributes:
        keys: B keys.
        sources: B sources.
        images: (B, 3, S, S) uint8, or None where `features` are given.
        features: (B, ...) float16, or None.
        input_hw: (B, 2) int64.
        masks: (N, 1, S, S) uint8.
        prompts: N prompts with their image index, in the order of the images.
        loss_candidates: (N, C, 2).
        loss_uniform: (N, U, 2).
        click_draws: (N, R).
        path_draws: (B, L).
    """

    keys: list[str]
    sources: list[str]
    images: Tensor | None
    features: ImageFeatures | None
    input_hw: Tensor
    masks: Tensor
    prompts: Prompts
    loss_candidates: Tensor
    loss_uniform: Tensor
    click_draws: Tensor
    path_draws: Tensor

    def prompts_at(self, rows: slice) -> Batch:
        """The same images with some of the prompts; views, no copies."""
        return replace(
            self,
            masks=self.masks[rows],
            prompts=self.prompts[rows],
            loss_candidates=self.loss_candidates[rows],
            loss_uniform=self.loss_uniform[rows],
            click_draws=self.click_draws[rows],
        )

    def by_image(self) -> Iterator[Batch]:
        """Each image that has prompts as a batch of its own; views, no copies. Prompts lose padding they do not need.

        Waits for the device, where that is a GPU.

        Raises:
            ValueError: prompts that are not in the order of the images, or of several images without saying of which.
        """
        index = self.prompts.image_index
        if index is None and len(self.keys) > 1:
            raise ValueError(f"{len(self.keys)} images need prompts with an image_index, got None")
        if index is not None and (index.diff() < 0).any():
            raise ValueError("prompts must be in the order of their images")
        counts = [len(self.masks)] if index is None else torch.bincount(index, minlength=len(self.keys)).tolist()
        start = 0
        for position, count in enumerate(counts):
            one, rows = slice(position, position + 1), slice(start, start + count)
            start += count
            part = self.prompts_at(rows)
            if count:
                yield replace(
                    part,
                    keys=self.keys[one],
                    sources=self.sources[one],
                    images=None if self.images is None else self.images[one],
                    features=None if self.features is None else ImageFeatures(*(f[one] for f in self.features)),
                    input_hw=self.input_hw[one],
                    prompts=part.prompts.trimmed().with_image_index(
                        torch.zeros(count, dtype=torch.int64, device=self.masks.device)
                    ),
                    path_draws=self.path_draws[one],
                )

    def to(self, device: torch.device | str) -> Batch:
        """Copy to a device, without waiting where the batch is pinned."""
        return self._map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory; a `DataLoader` calls this."""
        return self._map(lambda x: x.pin_memory())

    def plain(self) -> dict[str, Any]:
        """Everything as plain values and tensors, for files that are read without running code."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        prompts = {field.name: getattr(self.prompts, field.name) for field in fields(self.prompts)}
        features = None if self.features is None else self.features._asdict()
        return {**values, "prompts": prompts, "features": features}

    def _map(self, move: Callable[[Tensor], Tensor]) -> Batch:
        def optional(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else move(tensor)

        prompts = replace(
            self.prompts,
            coords=move(self.prompts.coords),
            kinds=move(self.prompts.kinds),
            masks=optional(self.prompts.masks),
            has_mask=optional(self.prompts.has_mask),
            image_index=optional(self.prompts.image_index),
        )
        return replace(
            self,
            images=optional(self.images),
            features=None if self.features is None else ImageFeatures(*map(move, self.features)),
            input_hw=move(self.input_hw),
            masks=move(self.masks),
            prompts=prompts,
            loss_candidates=move(self.loss_candidates),
            loss_uniform=move(self.loss_uniform),
            click_draws=move(self.click_draws),
            path_draws=move(self.path_draws),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples.

    Raises:
        ValueError: no samples, or some with kept features and some without.
    """
    if not samples:
        raise ValueError("no samples to join: a batch has at least one")
    images = [sample.image for sample in samples if sample.image is not None]
    features = [sample.features for sample in samples if sample.features is not None]
    complete = len(features) == len(samples)
    if not complete and len(images) != len(samples):
        missing = next(sample.view_key for sample in samples if sample.features is None)
        raise ValueError(f"kept features of {missing} are missing, others of its batch are there: encode all first")
    prompts = [
        sample.prompts.with_image_index(torch.full((len(sample.prompts),), position))
        for position, sample in enumerate(samples)
    ]
    return Batch(
        keys=[sample.key for sample in samples],
        sources=[sample.source for sample in samples],
        images=None if complete else torch.stack(images),
        features=ImageFeatures(*map(torch.stack, zip(*features, strict=True))) if complete else None,
        input_hw=torch.tensor([sample.input_hw for sample in samples]),
        masks=torch.cat([sample.masks for sample in samples])[:, None],
        prompts=Prompts.cat(prompts),
        loss_candidates=torch.cat([sample.loss_candidates for sample in samples]),
        loss_uniform=torch.cat([sample.loss_uniform for sample in samples]),
        click_draws=torch.cat([sample.click_draws for sample in samples]),
        path_draws=torch.stack([sample.path_draws for sample in samples]),
    )
