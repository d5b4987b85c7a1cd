"""TinyViT band by band: the numbers of timm's own forward pass, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hqsam.models import EncoderLoRA, TinyViTSpec
from hqsam.models.encoders import tiny_in_parts
from hqsam.models.encoders.tiny_vit import TinyViTEncoder
from hqsam.types import ImageFeatures


def make_encoder(image_size: int, dtype: torch.dtype = torch.float64, window: int = 3) -> TinyViTEncoder:
    """Random weights, biases and statistics of the batch norms."""
    spec = TinyViTSpec(
        widths=(8, 12, 16, 24), depths=(2, 1, 2, 1), num_heads=(1, 2, 2, 3), window_sizes=(window, window, 5, window)
    )
    encoder = TinyViTEncoder(spec, image_size).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(dtype)
                tensor.add_(0.2 * (noise.abs() if name.endswith("running_var") else noise))
    return encoder


def images(count: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


@torch.no_grad()
def both(encoder: TinyViTEncoder, x: Tensor) -> tuple[ImageFeatures, ImageFeatures]:
    """Timm's pass, and the one that is chosen."""
    encoder.in_parts = False
    whole = encoder(x)
    encoder.in_parts = None
    return whole, encoder(x)


def assert_same(whole: ImageFeatures, parts: ImageFeatures, tolerance: float = 1e-10) -> None:
    for expected, found in zip(whole, parts, strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("size", "window"), [((96, 96), 3), ((112, 80), 3), ((64, 64), 8), ((16, 48), 4), ((144, 96), 5)]
)
def test_any_size_and_window(size: tuple[int, int], window: int) -> None:
    """Windows that fit, windows that reach beyond the image, and one larger than the image."""
    assert_same(*both(make_encoder(96, window=window), images(2, *size)))


@pytest.mark.parametrize("positions", [1, 50, 75, 10**6])
def test_size_of_the_bands_changes_nothing(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_in_parts, "_POSITIONS", positions)
    assert_same(*both(make_encoder(112), images(1, 112, 112)))


def test_float32_within_rounding() -> None:
    assert_same(*both(make_encoder(112, torch.float32), images(2, 112, 112, torch.float32)), tolerance=1e-5)


def test_bfloat16() -> None:
    """Both round in every layer; neither is nearer to the truth."""
    assert_same(*both(make_encoder(112, torch.bfloat16), images(1, 112, 112, torch.bfloat16)), tolerance=0.1)


def test_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        whole, parts = both(make_encoder(112, torch.float32), images(1, 112, 112, torch.float32))
    assert_same(ImageFeatures(*(x.float() for x in whole)), ImageFeatures(*(x.float() for x in parts)), tolerance=0.1)


def test_an_adapter_takes_part() -> None:
    encoder = make_encoder(112)
    adapter = EncoderLoRA(encoder, rank=2).double()
    x = images(1, 112, 112)
    plain, _ = both(encoder, x)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    whole, parts = both(encoder, x)
    assert not torch.allclose(plain.image_embedding, whole.image_embedding)
    assert_same(whole, parts)


def test_weights_may_change_between_two_passes() -> None:
    """Timm keeps what it makes of its attention biases."""
    encoder, x = make_encoder(96), images(1, 96, 96)
    both(encoder, x)
    with torch.no_grad():
        encoder.backbone.stages[2].blocks[0].attn.attention_biases.add_(1.5 * torch.arange(25))
    assert_same(*both(encoder, x))


def test_images_are_not_changed_and_gradients_flow() -> None:
    encoder, x = make_encoder(96), images(1, 96, 96)
    kept = x.clone()
    both(encoder, x)
    assert torch.equal(x, kept)
    encoder(x).image_embedding.sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "attn.qkv" in name)
