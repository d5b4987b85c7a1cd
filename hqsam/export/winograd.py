"""A 3x3 convolution by Winograd's minimal filtering, F(4 x 4, 3 x 3) (Lavin and Gray, 2016, section 4.3).

A quarter of the multiplications, in exchange for linear maps of the tiles and more rounding. It pays where a runtime
makes convolutions of plain matrix products and arithmetic is dear, as in WebAssembly; libraries for graphics cards and
processors with wide vectors have better convolutions of their own.

Shape legend: N maps, (H, W) = (4h, 4w) positions, C channels to D channels; a tile of 4x4 results reads 6x6 positions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_RESULTS, _READ = 4, 6
"""Positions of a tile along a side: those it makes and those it reads."""

# The three matrices of F(4, 3), named as in the paper: results = A^T [(G g) * (B^T d)].
_DATA = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_RESULT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d` with a 3x3 kernel, stride 1 and padding 1.

    The six positions of a tile are the outermost dimension but one wherever they are mapped, so that each map is few
    large matrix products, and positions are gathered once along each side.

    Args:
        x: (N, C, H, W); H and W are multiples of 4.
        weight: (D, C, 3, 3).
        bias: (D,).

    Returns:
        (N, D, H, W), equal to `F.conv2d` but for about 1e-5 of its largest value in float32.
    """
    count, channels, height, width = x.shape
    made, rows, columns = weight.shape[0], height // _RESULTS, width // _RESULTS
    data, result = (torch.tensor(m, dtype=x.dtype, device=x.device) for m in (_DATA, _RESULT))
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    x = x.index_select(1, _places(rows, x)).reshape(count, _READ, rows * (width + 2) * channels)
    x = (data @ x).view(count, _READ * rows, width + 2, channels)
    x = x.index_select(2, _places(columns, x)).reshape(count, _READ * rows, _READ, columns * channels)
    x = (data @ x).view(count, _READ, rows, _READ, columns, channels)
    x = x @ _mapped_kernel(weight)[:, None]  # (N, 6, h, 6, w, D)
    x = result @ x.view(count, _READ * rows, _READ, columns * made)
    x = result @ x.view(count, _READ, rows * _RESULTS * columns * made)
    x = x.view(count, _RESULTS, rows, _RESULTS, columns, made)
    if bias is not None:
        x = x + bias
    return x.permute(0, 2, 1, 4, 3, 5).reshape(count, height, width, made).permute(0, 3, 1, 2)


def is_fit(weight: Tensor, *, stride: object, padding: object, dilation: object, groups: int) -> bool:
    """Whether a convolution is of the kind that `conv3x3` computes, and wide enough for it to be less work."""
    plain = all(value in (1, (1, 1)) for value in (stride, padding, dilation)) and groups == 1
    return plain and tuple(weight.shape[2:]) == (3, 3) and min(weight.shape[:2]) >= 4 * _READ


def _places(tiles: int, x: Tensor) -> Tensor:
    """Which position of a padded side each tile reads first, which second, and so on: (6 * tiles,)."""
    first = _RESULTS * torch.arange(tiles, device=x.device)
    return (torch.arange(_READ, device=x.device)[:, None] + first).flatten()


def _mapped_kernel(weight: Tensor) -> Tensor:
    """G g G^T for each pair of channels: (D, C, 3, 3) -> (6, 6, C, D)."""
    kernel = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)
    mapped = kernel @ weight.double() @ kernel.t()  # (D, C, 6, 6)
    return mapped.permute(2, 3, 1, 0).to(weight.dtype)
