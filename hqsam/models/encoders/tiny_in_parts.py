"""TinyViT's blocks computed band by band, for CPUs: same weights, same numbers, no big temporaries.

A convolution block of timm makes its hidden layer whole, 67 MB in the first stage, and passes over it five times:
convolution, norm, GELU, depthwise convolution and so on. Here a block goes over bands of rows that stay in the cache,
and each norm, which at inference only scales and shifts, is folded into its convolution.

Shape legend: (h, w) the grid of positions, C channels, n heads, s the side of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hqsam.models.linear import linear

ConvBlock = Any
"""`MBConv` or `PatchMerging` of timm.models.tiny_vit."""
WindowBlock = Any
"""`TinyVitBlock` of timm.models.tiny_vit."""

_POSITIONS = 2048
"""Positions of a band: its hidden layer of 256 channels takes 2 MB."""


def run_conv_block(block: ConvBlock, x: Tensor, *, residual: bool) -> Tensor:
    """Apply a pointwise, a depthwise 3x3 and a pointwise convolution, each with its norm.

    Args:
        block: timm's, in eval mode. A stride of the depthwise convolution is kept.
        x: (h, w, C) of one image.
        residual: whether it is an `MBConv`, with a shortcut and a last GELU, or a `PatchMerging`.

    Returns:
        (h, w, C) or, with stride 2, (h / 2, w / 2, D), rounded up.
    """
    (expand, expand_bias), (mix, mix_bias), (shrink, shrink_bias) = map(
        _folded, (block.conv1, block.conv2, block.conv3)
    )
    height, width, _ = x.shape
    stride = block.conv2.conv.stride[0]
    out_h, out_w = -(-height // stride), -(-width // stride)
    out: Tensor | None = None
    rows = max(1, _POSITIONS // width)
    for top in range(0, out_h, rows):
        end = min(top + rows, out_h)
        low, high = stride * top - 1, stride * (end - 1) + 2  # input rows, with those that the 3x3 window reaches
        hidden = linear(x[max(low, 0) : high], expand.flatten(1), expand_bias, gelu=True)
        hidden = _padded(hidden, max(-low, 0), max(high - height, 0))
        hidden = _gelu(_depthwise(hidden, mix, mix_bias, stride))
        band = linear(hidden, shrink.flatten(1), shrink_bias)
        if residual:
            band = _gelu(band + x[top:end])
        if out is None:  # its number type is that of the layers' output, which autocast may choose
            out = band.new_empty((out_h, out_w, band.shape[-1]))
        out[top:end] = band
    if out is None:
        raise ValueError("an image has at least one position")
    return out


def run_window_block(block: WindowBlock, x: Tensor) -> Tensor:
    """Apply attention in windows, a depthwise 3x3 convolution and an MLP.

    Args:
        block: timm's, in eval mode.
        x: (h, w, C) of one image; overwritten.

    Returns:
        (h, w, C).
    """
    height, width, _ = x.shape
    for top in range(0, height, block.window_size):
        band = x[top : top + block.window_size]
        band += _attend(block, band)
    weight, bias = _folded(block.local_conv)
    rows = max(1, _POSITIONS // width)
    out: Tensor | None = None
    for top in range(0, height, rows):
        end = min(top + rows, height)
        seen = x[max(top - 1, 0) : end + 1]
        seen = _padded(seen, int(top == 0), int(end == height))
        band = _depthwise(seen, weight, bias, 1)
        band = band + block.mlp(band)
        if out is None:
            out = band.new_empty(x.shape)
        out[top:end] = band
    if out is None:
        raise ValueError("an image has at least one position")
    return out


def _attend(block: WindowBlock, band: Tensor) -> Tensor:
    """Attention within the windows of one band: (at most s, w, C) -> the same shape."""
    attention, side = block.attn, block.window_size
    height, width, channels = band.shape
    across, heads = -(-width // side), attention.num_heads
    qkv = attention.qkv(attention.norm(band))
    if (height, width) != (side, across * side):  # windows are padded with zeros before the norm, and those attended to
        outside = attention.qkv(attention.norm(band.new_zeros((1, channels))))
        padded = outside.expand(side, across * side, -1).clone()
        padded[:height, :width] = qkv
        qkv = padded
    windows = qkv.view(side, across, side, heads, -1).permute(1, 3, 0, 2, 4).flatten(2, 3)  # (windows, n, s * s, 3d)
    q, k, v = windows.split([attention.key_dim, attention.key_dim, attention.val_dim], dim=-1)
    scores = (q * attention.scale) @ k.transpose(-2, -1)
    scores += attention.get_attention_biases(band.device)  # in a window of 49 or 196 this is faster than a fused kernel
    out = scores.softmax(dim=-1) @ v
    out = out.view(across, heads, side, side, -1).permute(2, 0, 3, 1, 4).reshape(side, across * side, attention.out_dim)
    projected: Tensor = attention.proj(out[:height, :width])
    return projected


def _padded(x: Tensor, above: int, below: int) -> Tensor:
    """Rows of zeros around (r, w, C); without any `F.pad` would make a copy."""
    return F.pad(x, (0, 0, 0, 0, above, below)) if above or below else x


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """3x3 over rows that are padded already: (r + 2, w, C) -> (r, w, C), fewer with a stride."""
    channels_first = x[None].permute(0, 3, 1, 2)  # not the other way round: strides that torch knows as channels last
    return F.conv2d(channels_first, weight, bias, stride, (0, 1), groups=len(weight))[0].permute(1, 2, 0)


def _folded(layer: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm at inference."""
    norm = layer.bn
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return layer.conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def _gelu(x: Tensor) -> Tensor:
    """In place, what `F.gelu` has no argument for."""
    return torch.ops.aten.gelu_(x)  # type: ignore[no-any-return]
