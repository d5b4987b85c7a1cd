"""SAM's ViT part by part: the numbers of timm's own forward pass, whatever the sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hqsam.models import EncoderLoRA
from hqsam.models.encoders import in_parts
from hqsam.models.encoders.sam_vit import SamViTEncoder, SamViTSpec
from hqsam.types import ImageFeatures


def make_encoder(image_size: int, dtype: torch.dtype = torch.float64, window_size: int = 3) -> SamViTEncoder:
    """Random weights, position tables and biases included, which a fresh timm model sets to zero."""
    spec = SamViTSpec(width=24, depth=4, num_heads=3, global_blocks=(1, 3), window_size=window_size)
    encoder = SamViTEncoder(spec, image_size).to(dtype).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
    return encoder


def images(count: int, size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


@torch.no_grad()
def both(encoder: SamViTEncoder, x: Tensor) -> tuple[ImageFeatures, ImageFeatures]:
    """Timm's pass, and the one that is chosen."""
    encoder.in_parts = False
    whole = encoder(x)
    encoder.in_parts = None
    return whole, encoder(x)


def assert_same(whole: ImageFeatures, parts: ImageFeatures, tolerance: float = 1e-10) -> None:
    for expected, found in zip(whole, parts, strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("grid", "window"), [(6, 3), (7, 3), (2, 3), (8, 8), (5, 4), (1, 2)])
def test_any_grid_and_window(grid: int, window: int) -> None:
    """Windows that fit, windows that reach beyond the image on two sides, and one larger than the image."""
    encoder = make_encoder(16 * grid, window_size=window)
    assert_same(*both(encoder, images(2, 16 * grid)))


@pytest.mark.parametrize("limits", [(1, 1), (7, 5), (40, 100)])
def test_size_of_the_parts_changes_nothing(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_parts, "_QUERIES", limits[0])
    monkeypatch.setattr(in_parts, "_ROWS", limits[1])
    assert_same(*both(make_encoder(112), images(1, 112)))


def test_any_number_of_threads() -> None:
    """More threads take more heads at once."""
    encoder, threads = make_encoder(96), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert_same(*both(encoder, images(1, 96)))
    finally:
        torch.set_num_threads(threads)


def test_float32_within_rounding() -> None:
    encoder = make_encoder(112, torch.float32)
    assert_same(*both(encoder, images(2, 112, torch.float32)), tolerance=1e-5)


def test_bfloat16() -> None:
    """Both round in every layer; neither is nearer to the truth."""
    encoder = make_encoder(112, torch.bfloat16)
    assert_same(*both(encoder, images(1, 112, torch.bfloat16)), tolerance=0.05)


def test_autocast() -> None:
    encoder = make_encoder(112, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        whole, parts = both(encoder, images(1, 112, torch.float32))
    assert_same(ImageFeatures(*(x.float() for x in whole)), ImageFeatures(*(x.float() for x in parts)), tolerance=0.05)


def test_an_adapter_takes_part() -> None:
    encoder = make_encoder(112)
    adapter = EncoderLoRA(encoder, rank=2).double()
    x = images(1, 112)
    (plain, _) = both(encoder, x)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    whole, parts = both(encoder, x)
    assert not torch.allclose(plain.image_embedding, whole.image_embedding)
    assert_same(whole, parts)


def test_images_are_not_changed_and_gradients_flow() -> None:
    encoder, x = make_encoder(96), images(1, 96)
    kept = x.clone()
    both(encoder, x)
    assert torch.equal(x, kept)
    encoder(x).image_embedding.sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "attn.qkv" in name)
