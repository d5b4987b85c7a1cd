"""Operations that some ONNX runtimes refuse, said by others while a graph is traced.

The model's code stays as it is: the replacements compute the same numbers, only not as fast in torch on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hqsam.export import winograd


class PortableOperators(TorchFunctionMode):
    """Replace `fold`, `einsum` and fused attention by a convolution, by matrix products, and these with a softmax.

    `fold` would become Col2Im, which TensorRT does not know, and `einsum` Einsum, which it knows in part; fused
    attention with a mask brings operators against rows whose every key is masked, of which there are none here. GELU
    is written in the order in which runtimes know it and make one operator of it.

    Args:
        winograd: compute 3x3 convolutions as `hqsam.export.winograd` does.
    """

    def __init__(self, *, winograd: bool = False) -> None:
        super().__init__()
        self._replacements = {**_PORTABLE, torch.conv2d: conv2d} if winograd else _PORTABLE

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, or what stands for it."""
        return self._replacements.get(func, func)(*args, **(kwargs or {}))


def fold_3x3(
    taps: Tensor, output_size: tuple[int, int], kernel_size: int, dilation: int = 1, padding: int = 0, stride: int = 1
) -> Tensor:
    """`F.fold` of one channel with a 3x3 kernel as a convolution: each of the nine maps moves to its offset.

    Args:
        taps: (N, 9, H * W).
        output_size: (H, W).
        kernel_size: 3.
        dilation: 1.
        padding: 1.
        stride: 1.

    Returns:
        (N, 1, H, W).
    """
    if (taps.shape[1], kernel_size, dilation, padding, stride) != (9, 3, 1, 1, 1):
        raise NotImplementedError("`fold` is exported for one channel, kernel 3, dilation 1, padding 1 and stride 1")
    # `fold` scatters where a convolution gathers, so the ones lie at the opposite offsets
    offsets = torch.eye(9, dtype=taps.dtype, device=taps.device).flip(1).view(1, 9, 3, 3)
    return F.conv2d(taps.unflatten(2, output_size), offsets, padding=1)


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """`F.scaled_dot_product_attention` in single steps.

    Args:
        q: (N, heads, Q, C).
        k: (N, heads, L, C).
        v: (N, heads, L, C).
        attn_mask: broadcasts to (N, heads, Q, L); bool, True where a key counts (in each row at least one does), or
            a number to be added to the scores.
        dropout_p: 0.

    Returns:
        (N, heads, Q, C).
    """
    if dropout_p:
        raise NotImplementedError("a model is exported in eval mode, without dropout")
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    out: Tensor = scores.softmax(-1) @ v
    return out


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """`torch.einsum` of a plain ViT's relative positions as matrix products; other equations stay what they are."""
    rows, columns = "bhwc,hkc->bhwk", "bhwc,wkc->bhwk"
    if equation.replace(" ", "") not in (rows, columns):
        return torch.einsum(equation, *operands)
    queries, positions = operands[0], operands[1].transpose(-2, -1)
    if equation.replace(" ", "") == rows:
        return queries @ positions
    return (queries.transpose(1, 2) @ positions).transpose(1, 2)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """`F.gelu`, exact."""
    if approximate != "none":
        raise NotImplementedError("GELU is exported as it is, not as an approximation")
    return x * (1 + torch.erf(x / math.sqrt(2))) * 0.5


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, *others: Any
) -> Tensor:
    """`torch.conv2d` as modules call it, of wide 3x3 kernels by Winograd's way; `others` are dilation and groups."""
    dilation, groups = others or (1, 1)
    if winograd.is_fit(weight, stride=stride, padding=padding, dilation=dilation, groups=groups):
        return winograd.conv3x3(x, weight, bias)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


def expand(x: Tensor, *sizes: int) -> Tensor:
    """`Tensor.expand`; what has these sizes already is not copied, as ONNX's Expand would do."""
    same = (size == -1 or statically_known_true(size == own) for size, own in zip(sizes, x.shape, strict=False))
    return x if len(sizes) == x.ndim and all(same) else x.expand(*sizes)


_PORTABLE: dict[Any, Callable[..., Any]] = {
    F.fold: fold_3x3,
    F.gelu: gelu,
    F.scaled_dot_product_attention: attention,
    torch.einsum: einsum,
    Tensor.expand: expand,
}
