"""SAM's ViT blocks computed part by part, for CPUs: same weights, same numbers, no big temporaries.

A block of timm makes tensors of tens to hundreds of megabytes: all windows with their padding, the hidden layer of the
MLP, a bias for every pair of 4096 positions and every head. On a CPU such memory is handed back and fetched anew each
time, and page faults and cache misses cost as much as the arithmetic. Here a block goes over bands of rows: what a band
needs stays in the cache, and queries, keys and values are computed for real positions only, not for the padding of
windows. The relative positions (MViTv2, arXiv 2112.01526, section 4.1) are added for a few queries at a time.

Shape legend: (h, w) the grid of positions, C channels, n heads of d = C / n channels, s the side of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.drop_path import drop_paths
from hqsam.models.linear import linear

Block = Any
"""`Block` of timm.models.vision_transformer_sam."""
Attention = Any
"""`Attention` of timm.models.vision_transformer_sam, with tables of relative positions."""

_QUERIES = 256
"""Queries of one head that attend together: 4 MB of scores, which malloc does not hand back in between."""
_ROWS = 1024
"""Positions that go through an MLP together."""


def suits_parts(encoder: nn.Module, images: Tensor) -> bool:
    """Whether an encoder computes these images part by part where nobody chose.

    On a CPU, unless there is a gradient or the encoder is being trained, traced, compiled or exported.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    whole = (
        traced
        or encoder.training
        or torch.is_grad_enabled()
        or any(path.draws is not None for path in drop_paths(encoder))
    )
    return images.device.type == "cpu" and not whole


def run_block(block: Block, x: Tensor) -> None:
    """Apply a block to the positions of one image, in place.

    Args:
        block: timm's, in eval mode.
        x: (h, w, C), contiguous; overwritten with the block's output.
    """
    if block.window_size:
        for top in range(0, x.shape[0], block.window_size):
            band = x[top : top + block.window_size]
            band += _attend_in_windows(block, band)
            _add_mlp(block, band)
    else:
        _add_global_attention(block, x)
        _add_mlp(block, x)


def _add_mlp(block: Block, x: Tensor) -> None:
    for rows in x.view(-1, x.shape[-1]).split(_ROWS):
        rows += block.mlp(block.norm2(rows))


def _attend_in_windows(block: Block, band: Tensor) -> Tensor:
    """Attention within the windows of one band: (at most s, w, C) -> the same shape."""
    attention, side = block.attn, block.window_size
    height, width, channels = band.shape
    across, heads = -(-width // side), attention.num_heads
    qkv = attention.qkv(block.norm1(band))
    if (height, width) != (side, across * side):  # SAM pads the normalised windows with zeros, which are attended to
        outside = attention.qkv(band.new_zeros((1, channels)))
        padded = outside.expand(side, across * side, -1).clone()
        padded[:height, :width] = qkv
        qkv = padded
    windows = qkv.view(side, across, side, 3, heads, -1).permute(3, 1, 4, 0, 2, 5)  # (3, windows, n, s, s, d)
    q, k, v = windows.reshape(3, across * heads, side * side, -1).unbind(0)
    by_row, by_column = _position_terms(attention, q.view(-1, side, side, q.shape[-1]))
    bias = (by_row[..., :, None] + by_column[..., None, :]).reshape(1, across * heads, side * side, side * side)
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias)
    out = out.view(across, heads, side, side, -1).permute(2, 0, 3, 1, 4).reshape(side, across * side, channels)
    projected: Tensor = attention.proj(out[:height, :width])
    return projected


def _add_global_attention(block: Block, x: Tensor) -> None:
    attention = block.attn
    height, width, channels = x.shape
    q, k, v = _all_positions(block, x)
    out = torch.empty((height * width, channels), dtype=q.dtype)
    for head, found in enumerate(out.view(height * width, attention.num_heads, -1).unbind(1)):
        _attend_everywhere(attention, q[head].view(height, width, -1), k[head], v[head], found)
    for part, attended in zip(x.view(-1, channels).split(_ROWS), out.split(_ROWS), strict=True):
        part += attention.proj(attended)


def _attend_everywhere(attention: Attention, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """One head's attention among all positions, a few rows of queries at a time; scores have float32 at least.

    Written out because the products of torch's fused kernel are small: oneDNN is twice as fast with large ones.

    Args:
        attention: whose tables fit the grid.
        q: (h, w, d).
        k: (h * w, d).
        v: (h * w, d).
        out: (h * w, d), overwritten.
    """
    height, width, channels = q.shape
    with torch.autocast("cpu", enabled=False):
        exact = torch.promote_types(q.dtype, torch.float32)
        q, k = q.to(exact), k.to(exact)
        by_row, by_column = _position_terms(attention, q[None])
        scaled, values = q * channels**-0.5, v.t().contiguous()
        rows = max(1, _QUERIES // width)
        for top in range(0, height, rows):
            part = slice(top, top + rows)
            scores = linear(scaled[part], k).unflatten(-1, (height, width))  # (rows, w, h, w)
            scores += by_row[0, part, :, :, None]
            scores += by_column[0, part, :, None, :]
            shares = scores.view(-1, height * width).softmax(dim=-1)
            out[top * width : (top + rows) * width] = linear(shares.to(v.dtype), values)


def _all_positions(block: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all positions: (n, h * w, d) each."""
    attention = block.attn
    channels, heads = x.shape[-1], attention.num_heads
    parts = x.view(-1, channels).split(_ROWS)
    found: Tensor | None = None
    for number, rows in enumerate(parts):
        qkv = attention.qkv(block.norm1(rows)).view(len(rows), 3, heads, -1).permute(1, 2, 0, 3)
        if found is None:  # its number type is that of the layer's output, which autocast may choose
            found = qkv.new_empty((3, heads, sum(map(len, parts)), channels // heads))
        found[:, :, number * _ROWS : number * _ROWS + len(rows)] = qkv
    if found is None:
        raise ValueError("an image has at least one position")
    q, k, v = found.unbind(0)
    return q, k, v


def _position_terms(attention: Attention, q: Tensor) -> tuple[Tensor, Tensor]:
    """What relative positions add to the scores, by the row and by the column of the key.

    Args:
        attention: whose tables, (2h - 1, d) and (2w - 1, d), fit the grid.
        q: (b, h, w, d) queries.

    Returns:
        (b, h, w, h) and (b, h, w, w).
    """
    rows, columns = (_by_distance(table).to(q.dtype) for table in (attention.rel_pos_h, attention.rel_pos_w))
    by_row = q @ rows.transpose(1, 2)
    by_column = (q.transpose(1, 2) @ columns.transpose(1, 2)).transpose(1, 2)
    return by_row, by_column


def _by_distance(table: Tensor) -> Tensor:
    """(2L - 1, d) vectors from the largest negative distance on -> (L, L, d), of each query and key."""
    length = (len(table) + 1) // 2
    place = torch.arange(length)
    return table[place[:, None] - place + length - 1]
