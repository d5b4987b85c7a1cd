"""Low-rank adaptation of a frozen image encoder (LoRA, arXiv 2106.09685, section 4.1).

The encoder itself stays as it is: its names and its weights do not change, so its files load as before. What is
learned is added to the outputs of its attention projections by hooks, and can be merged into the weights.

Shape legend: r rank, I and O the inputs and outputs of a linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

TARGETS = (".attn.qkv", ".attn.proj")
"""Layers of an encoder block that are adapted, by the end of their name."""


class LowRankUpdate(nn.Module):
    """The update `scale * up @ down` of one linear layer; zero after initialisation, because `up` is.

    Args:
        layer: the layer, for its sizes.
        rank: r.
        scale: factor of the update.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        weight = layer.weight
        self.down = nn.Parameter(weight.new_empty((rank, layer.in_features)))
        self.up = nn.Parameter(weight.new_zeros((layer.out_features, rank)))
        self.scale = scale
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return F.linear(F.linear(x, self.down), self.up) * self.scale

    def delta(self) -> Tensor:
        """What merging adds to the layer's weight: (O, I)."""
        return self.scale * (self.up @ self.down)


class EncoderLoRA(nn.Module):
    """Trainable low-rank updates of an encoder's attention projections.

    Made beside an encoder, not inside it: the encoder's `state_dict` stays what it was. From the moment of its making
    the encoder computes with the updates, until `detach`.

    Args:
        encoder: image encoder; its parameters stay frozen.
        rank: r, at least 1.
        alpha: the update is scaled by alpha / r; None is r, a factor of 1.

    Raises:
        ValueError: a rank below 1, or an encoder without attention projections.

    Example:
        >>> adapter = EncoderLoRA(model.image_encoder, rank=4)  # doctest: +SKIP
    """

    def __init__(self, encoder: nn.Module, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"the rank of an adapter must be at least 1, got {rank}")
        layers = {
            name: module
            for name, module in encoder.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(TARGETS)
        }
        if not layers:
            raise ValueError(f"the encoder has no linear layers named {' or '.join(TARGETS)} to adapt")
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        self.names = list(layers)
        self.updates = nn.ModuleList(LowRankUpdate(layer, rank, self.alpha / rank) for layer in layers.values())
        # Not registered as a submodule: the encoder's weights are not this module's.
        self._layers = list(layers.values())
        self._handles: list[RemovableHandle] = []
        self._is_merged = False
        self.attach()

    def named_updates(self) -> Iterator[tuple[str, LowRankUpdate]]:
        """Name of each adapted layer inside the encoder, and its update."""
        for name, update in zip(self.names, self.updates, strict=True):
            assert isinstance(update, LowRankUpdate)  # noqa: S101  what the list was made of
            yield name, update

    def attach(self) -> None:
        """Let the encoder compute with the updates; nothing happens where it does already."""
        self._require_apart()
        if self._handles:
            return
        for layer, (_, update) in zip(self._layers, self.named_updates(), strict=True):
            self._handles.append(layer.register_forward_hook(_adding(update)))

    def detach(self) -> None:
        """Let the encoder compute without the updates."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the encoder's weights for good, and detach.

        Raises:
            RuntimeError: they are in the weights already.
        """
        self._require_apart()
        self._is_merged = True
        self.detach()
        for layer, (_, update) in zip(self._layers, self.named_updates(), strict=True):
            layer.weight += update.delta().to(layer.weight.dtype)

    def _require_apart(self) -> None:
        if self._is_merged:
            raise RuntimeError("the updates are in the encoder's weights already: adding them again would double them")

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Merge for the length of a block, for instance to save the result; afterwards every bit is as before."""
        attached = bool(self._handles)
        originals = [layer.weight.detach().clone() for layer in self._layers]
        self.merge()
        try:
            yield
        finally:
            with torch.no_grad():
                for layer, original in zip(self._layers, originals, strict=True):
                    layer.weight.copy_(original)
            self._is_merged = False
            if attached:
                self.attach()


def _adding(update: LowRankUpdate) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added: Tensor = output + update(inputs[0])
        return added

    return hook
