"""Work that the decoders do in another order than the published ones: the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hqsam.models import hq_decoder
from hqsam.models.hq_decoder import MaskFusion
from hqsam.models.transformer import Attention
from tests.helpers import fill_parameters


def make_attention() -> Attention:
    return fill_parameters(Attention(32, 4, downsample=2), seed=1).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(attention: Attention, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
    """Every projection where it stands, and the textbook's softmax."""

    def heads(layer: torch.nn.Module, x: Tensor) -> Tensor:
        return layer(x).unflatten(2, (4, -1)).transpose(1, 2)

    q, k, v = heads(attention.q_proj, q), heads(attention.k_proj, k), heads(attention.v_proj, v)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None, None], -torch.inf)
    return attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 40])
def test_reading_an_image(rows: int, count: int) -> None:
    """Few tokens and many, an image for each prompt and one for all."""
    attention, tokens = make_attention(), draw(3, count, 32)
    keys, image = draw(rows, 30, 32, seed=1), draw(rows, 30, 32, seed=2)
    torch.testing.assert_close(attention.read(tokens, keys, image), plain(attention, tokens, keys, image))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 40])
def test_writing_to_an_image(rows: int, count: int, ragged: bool) -> None:
    attention, image, queries = make_attention(), draw(rows, 30, 32), draw(rows, 30, 32, seed=1)
    keys, tokens = draw(3, count, 32, seed=2), draw(3, count, 32, seed=3)
    keep = torch.arange(count) < torch.tensor([[1], [count], [max(1, count - 1)]]) if ragged else None
    expected = image + plain(attention, queries, keys, tokens, keep)
    torch.testing.assert_close(attention.write(image, queries, keys, tokens, keep), expected)
    projected = attention.write_projected(image, attention.q_proj(queries), keys, tokens, keep)
    torch.testing.assert_close(projected, expected)


def test_every_parameter_gets_its_gradient() -> None:
    """Also those that change nothing: processes that train together wait for every parameter's."""
    attention, image, tokens = make_attention(), draw(2, 30, 32), draw(2, 3, 32, seed=1)
    for new in (True, False):
        attention.zero_grad()
        read = attention.read(tokens, image, image) if new else plain(attention, tokens, image, image)
        written = (
            attention.write(image, image, tokens, tokens) if new else image + plain(attention, image, tokens, tokens)
        )
        (read.square().sum() + written.square().sum()).backward()
        gradients = [parameter.grad for parameter in attention.parameters()]
        assert all(gradient is not None for gradient in gradients)
        if new:
            expected = gradients
    torch.testing.assert_close(expected, gradients)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("band", [1, 70, 8192])
@pytest.mark.parametrize("size", [(1, 1), (8, 12), (13, 9)])
def test_fusion_in_bands(count: int, band: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hq_decoder, "_BAND", band)
    fusion = fill_parameters(MaskFusion(4, 8), seed=2).double()
    feature, weights = draw(count, *size, 4), draw(count, 4, seed=1)
    with torch.no_grad():
        found = fusion.dot(feature, weights)
    whole = fusion.conv1(feature.permute(0, 3, 1, 2))
    whole = fusion.conv2(torch.nn.functional.gelu(fusion.norm(whole)))  # (N, 4, h, w)
    torch.testing.assert_close(found, (whole * weights[:, :, None, None]).sum(1, keepdim=True))
    torch.testing.assert_close(fusion.dot(feature, weights).detach(), found)
