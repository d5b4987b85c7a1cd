"""Winograd's convolution against torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hqsam.export import winograd
from hqsam.export.rewriting import PortableOperators


@pytest.mark.parametrize(("count", "height", "width"), [(1, 4, 4), (2, 8, 20), (1, 64, 32)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_is_the_convolution(count: int, height: int, width: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 32, height, width, generator=generator)
    weight = torch.randn(64, 32, 3, 3, generator=generator)
    bias = torch.randn(64, generator=generator) if has_bias else None
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 3e-5)):
        w, b = weight.to(dtype), None if bias is None else bias.to(dtype)
        expected = F.conv2d(x.to(dtype), w, b, padding=1)
        difference = (winograd.conv3x3(x.to(dtype), w, b) - expected).abs().max()
        assert difference <= limit * expected.abs().max()


def test_takes_the_place_of_wide_3x3_convolutions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    plain = winograd.conv3x3

    def note(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        seen.append(tuple(weight.shape))
        return plain(x, weight, bias)

    monkeypatch.setattr(winograd, "conv3x3", note)
    x, wide = torch.randn(1, 32, 8, 8), torch.nn.Conv2d(32, 48, 3, padding=1)
    others = [
        torch.nn.Conv2d(32, 48, 3),
        torch.nn.Conv2d(32, 48, 3, padding=1, stride=2),
        torch.nn.Conv2d(32, 48, 3, padding=2, dilation=2),
        torch.nn.Conv2d(32, 64, 3, padding=1, groups=32),
        torch.nn.Conv2d(32, 4, 3, padding=1),
        torch.nn.Conv2d(32, 48, 1),
    ]
    with torch.no_grad():
        expected = [conv(x) for conv in (wide, *others)]
        with PortableOperators():
            assert torch.equal(wide(x), expected[0]) and not seen
        with PortableOperators(winograd=True):
            found = [conv(x) for conv in (wide, *others)]
    assert seen == [(48, 32, 3, 3)]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_gelu_is_exact() -> None:
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    with PortableOperators():
        found = F.gelu(x)
        with pytest.raises(NotImplementedError):
            F.gelu(x, approximate="tanh")
    torch.testing.assert_close(found, F.gelu(x))
