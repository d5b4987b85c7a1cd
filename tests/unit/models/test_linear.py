"""Linear layers by oneDNN against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hqsam.models import linear as module
from hqsam.models.encoders.timm_backbones import build_tiny_vit
from hqsam.models.encoders.tiny_vit import TinyViTSpec
from hqsam.models.layers import Upsample4x
from hqsam.models.linear import Linear, linear, replace_linear

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


def layer(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("shape", [(300, 24), (2, 9, 11, 24), (3, 24), (24,), (0, 24), (64, 24)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", list(DTYPES))
@torch.no_grad()
def test_any_shape_and_type(shape: tuple[int, ...], gelu: bool, dtype: torch.dtype) -> None:
    for bias in (True, False):
        plain, x = layer(dtype, bias=bias), torch.randn(shape, dtype=dtype)
        expected = plain(x.double() if dtype == torch.float64 else x)
        expected = F.gelu(expected) if gelu else expected
        found = linear(x, plain.weight, plain.bias, gelu=gelu)
        assert found.shape == expected.shape and found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@torch.no_grad()
def test_input_in_any_layout() -> None:
    """Transposed, cut out, and repeated without a copy; the input stays as it is."""
    plain, x = layer(), torch.randn(24, 30, 10)
    for view in (x.permute(1, 2, 0), x[:, 3:17, ::2].permute(1, 2, 0), torch.randn(1, 24).expand(100, 24)):
        kept = view.clone()
        torch.testing.assert_close(linear(view, plain.weight, plain.bias), plain(view), rtol=1e-5, atol=1e-5)
        assert torch.equal(view, kept)


@torch.no_grad()
def test_weight_in_any_layout() -> None:
    x, weight = torch.randn(100, 24), torch.randn(24, 80)[:, ::2].t()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_plain_layer() -> None:
    for gelu in (False, True):
        plain = layer().requires_grad_(True)
        ours = Linear(24, 40)
        ours.load_state_dict(plain.state_dict())
        ours.gelu, x = gelu, torch.randn(100, 24)
        plain_out = plain(x)
        (F.gelu(plain_out) if gelu else plain_out).sum().backward()
        ours(x).sum().backward()
        assert torch.equal(ours.weight.grad, plain.weight.grad)


@torch.no_grad()
def test_autocast_chooses_the_type() -> None:
    plain, x = layer(), torch.randn(100, 24)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear(x, plain.weight, plain.bias)
    assert found.dtype == torch.bfloat16


@torch.no_grad()
def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = layer(), torch.randn(100, 24)
    monkeypatch.setattr(module, "_PRODUCT", None)
    assert torch.equal(linear(x, plain.weight, plain.bias, gelu=True), F.gelu(plain(x)))


def test_another_signature_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SIGNATURE", "of another torch")
    assert module._find_product() is None


@torch.no_grad()
def test_compiled_is_a_graph_of_torch() -> None:
    plain, x = layer(), torch.randn(100, 24)
    compiled = torch.compile(lambda x: linear(x, plain.weight, plain.bias, gelu=True), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.gelu(plain(x)))


class Mlp(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(6, 8), act, nn.Linear(8, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU("tanh"), nn.ReLU()])
def test_replaced_layers_give_the_same(act: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Mlp(act), nn.Linear(6, 2))
    state, x = network.state_dict(), torch.randn(100, 6)
    expected = network(x)
    replace_linear(network)
    assert {name: t.data_ptr() for name, t in network.state_dict().items()} == {
        name: t.data_ptr() for name, t in state.items()
    }
    assert isinstance(network[0].fc1, Linear) and isinstance(network[1], Linear)
    torch.testing.assert_close(network(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected)


def test_every_linear_layer_of_an_encoder_is_replaced() -> None:
    backbone = build_tiny_vit(TinyViTSpec(widths=(8, 8, 8, 8), num_heads=(1, 1, 1, 1)))
    found = [m for m in backbone.modules() if isinstance(m, nn.Linear)]
    assert found and all(isinstance(m, Linear) for m in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_upsampling_is_that_of_the_layers(dtype: torch.dtype) -> None:
    """At inference and with gradients, of one map and of several."""
    torch.manual_seed(0)
    up = Upsample4x(16, 12, 5).to(dtype)
    for count in (1, 3):
        x = torch.randn(count, 6, 7, 16).to(dtype)
        y = up.up2(F.gelu(up.norm(up.up1(x.permute(0, 3, 1, 2))))).permute(0, 2, 3, 1)
        with torch.enable_grad():
            differentiable = up(x)
        for found in (up(x), differentiable):
            assert found.is_contiguous() and found.shape == (count, 24, 28, 5)
            tolerance = 1e-5 if dtype == torch.float32 else 5e-2
            torch.testing.assert_close(found, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 4, 5])
@pytest.mark.parametrize("dtype", list(DTYPES))
@torch.no_grad()
def test_products_row_by_row(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors in any layout, few rows and many, large ones and small ones."""
    a, b = torch.randn(rows, 40, 24, dtype=dtype), torch.randn(rows, 30, 24, dtype=dtype).transpose(1, 2)
    added = torch.randn(1, 40, 30, dtype=dtype)
    for least in (1, 10**9):
        monkeypatch.setattr(module, "_LARGE", least)
        for left, right in ((a, b), (b.transpose(1, 2), a.transpose(1, 2))):
            torch.testing.assert_close(module.bmm(left, right), left @ right, rtol=DTYPES[dtype], atol=DTYPES[dtype])
        expected = (a.double() @ b.double() + added.double()).to(dtype)
        found = module.baddbmm(added, a, b)
        torch.testing.assert_close(found, expected, rtol=DTYPES[dtype], atol=5 * DTYPES[dtype])
        every = module.baddbmm(added.expand(rows, -1, -1), a, b)
        torch.testing.assert_close(every, found)
