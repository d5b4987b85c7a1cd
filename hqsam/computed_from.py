"""What a kept result was computed from, so that it is not used for anything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from hqsam.models import Sam

Result = TypeVar("Result")


class ComputedFrom:
    """What a kept result was computed from: tensors and the versions of their content, and how numbers are computed.

    The tensors are held, so that no new one can come to stand at the address of an old one.
    """

    def __init__(self, tensors: Iterable[Tensor | None], *how: Any) -> None:
        self._tensors = [tensor for tensor in tensors if tensor is not None]
        self._key = ([(id(tensor), _version(tensor)) for tensor in self._tensors], how)

    @classmethod
    def of_tensors(cls, *tensors: Tensor | None) -> ComputedFrom:
        """From these tensors."""
        return cls(tensors)

    @classmethod
    def of_encoder(cls, model: Sam) -> ComputedFrom:
        """From the image encoder as it is."""
        tensors = [*model.image_encoder.parameters(), *model.image_encoder.buffers()]
        return cls(tensors, model.dtype, model.device)

    @classmethod
    def of_head(cls, model: Sam, *features: Tensor | None) -> ComputedFrom:
        """From encoder outputs and the HQ head as it is."""
        return cls([*features, *model.hq_parameters()], *_number_types(model))

    @classmethod
    def of_decoder(cls, model: Sam, *features: Tensor | None) -> ComputedFrom:
        """From encoder outputs and the prompt encoder and the mask decoder as they are."""
        parts = (model.prompt_encoder, model.mask_decoder)
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        return cls([*features, *tensors], *_number_types(model))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ComputedFrom) and self._key == other._key

    __hash__ = None  # type: ignore[assignment]


class Kept(Generic[Result]):
    """The last result of a computation, computed anew once what it comes from has changed."""

    def __init__(self) -> None:
        self._known: tuple[ComputedFrom, Result] | None = None

    def __call__(self, state: ComputedFrom, compute: Callable[[], Result]) -> Result:
        """What `compute` gave or gives for this state."""
        if self._known is None or self._known[0] != state:
            self._known = state, compute()
        return self._known[1]


def _number_types(model: Sam) -> tuple[Any, ...]:
    kind = model.device.type
    return model.dtype, model.device, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _version(tensor: Tensor) -> int:
    """Counts changes in place; tensors made in inference mode do not count them."""
    return -1 if tensor.is_inference() else tensor._version
