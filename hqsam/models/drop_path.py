"""Stochastic depth (Huang et al., arXiv 1603.09382) whose chance comes in as numbers, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class DropPath(nn.Module):
    """Leaves a residual branch out for some images of a batch, while `dropped_paths` says for which.

    Args:
        rate: chance of being left out, below 1; what stays is enlarged by 1 / (1 - rate).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.draws: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B W, ...) -> (B W, ...): a ViT's blocks see W windows of each image, one image after the other."""
        if self.draws is None:
            return x
        keep = (self.draws >= self.rate).to(x.dtype) / (1 - self.rate)
        keep = keep.repeat_interleave(len(x) // len(keep))
        return x * keep.view(-1, *[1] * (x.ndim - 1))


def drop_paths(module: nn.Module) -> list[DropPath]:
    """The branches of a module that can be left out, from the input to the output."""
    return [inner for inner in module.modules() if isinstance(inner, DropPath)]


@contextmanager
def dropped_paths(module: nn.Module, draws: Tensor | None) -> Iterator[None]:
    """For the length of a block, leave out the branches whose draw is below their rate.

    Args:
        module: an image encoder.
        draws: (B, L) uniform in [0, 1) for the images of the coming forward pass and the L branches; None: nothing is
            left out.

    Raises:
        ValueError: another number of branches.
    """
    paths = drop_paths(module)
    if draws is None:
        yield
        return
    if draws.shape[1] != len(paths):
        raise ValueError(f"the encoder has {len(paths)} branches that can be left out, got draws {tuple(draws.shape)}")
    try:
        for path, column in zip(paths, draws.unbind(dim=1), strict=True):
            path.draws = column
        yield
    finally:
        for path in paths:
            path.draws = None
