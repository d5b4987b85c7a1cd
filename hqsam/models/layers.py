"""Layers shared by the prompt encoder and the mask decoders.

Inside the decoders feature maps are channels last, (N, H, W, C): layer norm is then one fused call, a 2x2 stride-2
transposed convolution is one matrix product, and the mask is a product of the flattened map with per-prompt weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.linear import Linear, is_plain_inference, linear, suits_onednn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a channels-first map (B, C, H, W); eps 1e-6 as in SAM."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_last(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), for maps that are channels last already."""
        return super().forward(x)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        out: Tensor = last(x)
        return out


def gelu(x: Tensor) -> Tensor:
    """GELU, in place where nobody will ask for the gradient: a new map of this size costs as much as the function."""
    if not is_plain_inference():
        return F.gelu(x)
    return torch.ops.aten.gelu_(x)  # type: ignore[no-any-return]


def upsample2x(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply a 2x2, stride-2 transposed convolution at every position, whatever the positions are.

    Its windows do not overlap, so each position makes its own 2x2 block: one matrix product.

    Args:
        conv: kernel 2, stride 2, weight (C, D, 2, 2).
        x: (..., C).

    Returns:
        (..., 4, D): the block of each position, row by row.
    """
    c, d = conv.weight.shape[:2]
    weight = conv.weight.permute(2, 3, 1, 0).reshape(4 * d, c)
    bias = None if conv.bias is None else conv.bias.repeat(4)
    blocks: Tensor = linear(x, weight, bias).unflatten(-1, (4, d))
    return blocks


class Upsample4x(nn.Module):
    """Transposed convolution, layer norm, GELU, transposed convolution, on channels-last maps."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(in_channels, mid_channels, 2, stride=2)
        self.norm = LayerNorm2d(mid_channels)
        self.up2 = nn.ConvTranspose2d(mid_channels, out_channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, 4h, 4w, D)."""
        if suits_onednn(x):
            return _transposed(self.up2, gelu(self.norm.forward_last(_transposed(self.up1, x))))
        n, h, w, _ = x.shape
        # Norm and GELU are of single positions, so that blocks are put in their places once, at the end.
        blocks = upsample2x(self.up2, gelu(self.norm.forward_last(upsample2x(self.up1, x))))
        d = blocks.shape[-1]
        rows = blocks.view(n * h, w, 2, 2, 2, 2 * d)  # row and column of the first block, row of the second
        return rows.permute(0, 2, 4, 1, 3, 5).reshape(n, 4 * h, 4 * w, d)


def _transposed(conv: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, 2h, 2w, D), by oneDNN."""
    y: Tensor = conv(x.permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1)


def conv3x3(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a padded 3x3 convolution to a channels-last map: (N, H, W, C) -> (N, H, W, D)."""
    y: Tensor = conv(x.permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1)


def conv3x3_dot(conv: nn.Conv2d, x: Tensor, weights: Tensor) -> Tensor:
    """Dot product of a padded 3x3 convolution's output with per-sample weights, without making that output.

    The convolution is linear, so the weights fold into its kernel: D output channels become one. The nine taps are a
    matrix product and are summed at their offsets (`fold`), with the kernel flipped because `fold` scatters where a
    convolution gathers. Exact up to rounding.

    Args:
        conv: 3x3, padding 1, weight (D, C, 3, 3), bias (D,).
        x: (N, H, W, C).
        weights: (N, D).

    Returns:
        (N, 1, H, W).
    """
    out = F.fold(taps3x3(dot_kernel(conv, weights), x), x.shape[1:3], kernel_size=3, padding=1)
    if conv.bias is None:
        return out
    return out + (weights @ conv.bias).view(-1, 1, 1, 1)


def dot_kernel(conv: nn.Conv2d, weights: Tensor) -> Tensor:
    """A 3x3 kernel whose output channels are summed with per-sample weights (N, D): (N, 9, C), taps flipped."""
    flipped = conv.weight.flip((2, 3)).permute(0, 2, 3, 1).flatten(1)  # (D, 9C)
    return (weights @ flipped).view(weights.shape[0], 9, conv.in_channels)


def taps3x3(kernel: Tensor, x: Tensor) -> Tensor:
    """What each position adds to the 3x3 positions around it: (N, 9, C) and (N, H, W, C) -> (N, 9, H * W)."""
    n, h, w, c = x.shape
    return kernel @ x.reshape(n, h * w, c).transpose(1, 2)
