"""Linear layers and large products by oneDNN on a CPU, in place of the BLAS that torch was built with.

torch multiplies float32 matrices with MKL, which on processors of other makers than Intel leaves out the widest
vectors; oneDNN, which computes torch's convolutions, does not, and applies a GELU before a product leaves the cache.
torch's compiler calls it so; there is no public name for it, therefore everything here can do without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROWS = 64
"""With fewer rows a call costs more than it spares."""
_FEW, _LARGE = 4, 2**22
"""Products that are taken one after the other, and their least multiplications; elsewhere all are one call."""
_SIGNATURE = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
)


def _find_product() -> Any:
    """torch's entry to oneDNN's linear layer, or None where there is none, or another than is known here."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return None
    try:
        product = torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None
    return product if str(product._schema) == _SIGNATURE else None


_PRODUCT = _find_product()


def is_plain_inference() -> bool:
    """Whether nobody will ask for a gradient and no graph is being made: maps may be overwritten, and cut."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def suits_onednn(x: Tensor) -> bool:
    """Whether oneDNN computes with this tensor: on a CPU, at inference, with the number type that it has."""
    return (
        _PRODUCT is not None
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and is_plain_inference()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """`torch.nn.functional.linear` by the faster library, equal up to rounding, and GELU of it where that is asked.

    Args:
        x: (..., I).
        weight: (O, I), of the same number type.
        bias: (O,).
        gelu: apply the exact GELU.

    Returns:
        (..., O).
    """
    rows = x.numel() // max(1, x.shape[-1])
    if rows >= _ROWS and suits_onednn(x):
        flat = x.reshape(rows, x.shape[-1])
        out: Tensor = _PRODUCT(flat, weight, bias, *(("gelu", [], "none") if gelu else ("none", [], "")))
        return out.view(*x.shape[:-1], len(weight))
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """`torch.bmm` by the faster library where the products are few and large: (N, M, K) and (N, K, L) -> (N, M, L)."""
    if not _is_few_and_large(a, b):
        return torch.bmm(a, b)
    if len(a) == 1:
        return _product(a[0], b[0])[None]
    return torch.stack([_product(*pair) for pair in zip(a, b, strict=True)])


def baddbmm(added: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`torch.baddbmm` likewise: what spreads to (N, M, L), plus `bmm`."""
    if not _is_few_and_large(a, b):
        return torch.baddbmm(added, a, b)
    out = added.new_empty((len(a), a.shape[1], b.shape[2]))
    for row, pair, total in zip(added.expand_as(out), zip(a, b, strict=True), out, strict=True):
        torch.add(row, _product(*pair), out=total)
    return out


def _product(a: Tensor, b: Tensor) -> Tensor:
    out: Tensor = _PRODUCT(a, b.t(), None, "none", [], "")
    return out


def _is_few_and_large(a: Tensor, b: Tensor) -> bool:
    return suits_onednn(a) and 0 < len(a) <= _FEW and a[0].numel() * b.shape[2] >= _LARGE


class Linear(nn.Linear):
    """`torch.nn.Linear` that computes with `linear`.

    Attributes:
        gelu: whether it applies a GELU.
    """

    gelu = False

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias, gelu=self.gelu)


def replace_linear(network: nn.Module) -> None:
    """Let a network of timm's compute its linear layers with `linear`; parameters and their names stay.

    The GELU of an MLP moves into the layer before it.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _same(child))
        first, activation = getattr(module, "fc1", None), getattr(module, "act", None)
        if isinstance(first, Linear) and type(activation) is nn.GELU and activation.approximate == "none":
            first.gelu = True
            module.act = nn.Identity()


def _same(layer: nn.Linear) -> Linear:
    ours = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    ours.weight, ours.bias = layer.weight, layer.bias
    return ours.train(layer.training)
