"""An exponential moving average of what is trained: often a little better than the last step, never used to train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightAverage:
    """Running average of parameters: value <- d * value + (1 - d) * parameter after each step.

    The decay d of step t (from 1) is at most (1 + t) / (10 + t), so that the first steps do not weigh on the average.

    Args:
        parameters: what is averaged; the average starts as a copy.
        decay: in 0..1; with 0.999 about the last thousand steps count.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

    @torch.no_grad()
    def load(self, values: Sequence[Tensor]) -> None:
        """Put back saved values.

        Raises:
            ValueError: another number of them, or of other shapes.
        """
        if [value.shape for value in values] != [value.shape for value in self.values]:
            raise ValueError(f"an average of {len(self.values)} parameters got {len(values)}, or others")
        for own, value in zip(self.values, values, strict=True):
            own.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For the length of a block the parameters have the average's values; afterwards every bit is as before."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        self._fill(self.values)
        try:
            yield
        finally:
            self._fill(trained)

    @torch.no_grad()
    def _fill(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
