"""Low-rank adaptation of the encoder: nothing at first, only the adapter learns, merging changes no output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hqsam.models import EncoderLoRA, Sam
from hqsam.registry import create_model
from tests.helpers import fill_parameters

NAMES = ["hq_test_vit", "hq_test_tiny"]


def build(name: str) -> tuple[Sam, torch.Tensor]:
    model = create_model(name, device="cpu")
    fill_parameters(model)
    images = torch.randn(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    return model, images


def learned(model: Sam, rank: int = 3, alpha: float | None = None) -> EncoderLoRA:
    """An adapter whose updates are not zero."""
    adapter = EncoderLoRA(model.image_encoder, rank, alpha)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, update in adapter.named_updates():
            update.up.copy_(torch.randn(update.up.shape, generator=generator) * 0.05)
    return adapter


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_new_adapter_changes_nothing(name: str) -> None:
    model, images = build(name)
    names = list(model.state_dict())
    before = model.image_encoder(images)
    EncoderLoRA(model.image_encoder, rank=2)
    after = model.image_encoder(images)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_merged_equals_unmerged(name: str) -> None:
    model, images = build(name)
    plain = model.image_encoder(images)
    adapter = learned(model, alpha=6.0)
    adapted = model.image_encoder(images)
    assert (adapted[0] - plain[0]).abs().max() > 1e-3 * plain[0].abs().max()
    weights = {key: tensor.clone() for key, tensor in model.image_encoder.state_dict().items()}
    with adapter.merged():
        merged = model.image_encoder(images)
    again = model.image_encoder(images)
    for a, b, c in zip(adapted, merged, again, strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
        assert torch.equal(a, c)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.image_encoder.state_dict().items())
    adapter.detach()
    assert torch.equal(model.image_encoder(images)[0], plain[0])


def test_updates_are_added_once() -> None:
    model, images = build("hq_test_vit")
    adapter = learned(model, alpha=6.0)
    adapter.merge()
    merged = model.image_encoder(images)
    for again in (adapter.merge, adapter.attach):
        with pytest.raises(RuntimeError, match="already"):
            again()
    assert torch.equal(model.image_encoder(images)[0], merged[0])


def test_only_the_adapter_gets_gradients() -> None:
    model, images = build("hq_test_vit")
    adapter = learned(model)
    sum(part.square().mean() for part in model.image_encoder(images)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_attention_projection_is_adapted() -> None:
    model, _ = build("hq_test_vit")
    adapter = EncoderLoRA(model.image_encoder, rank=4)
    assert adapter.names == [f"backbone.blocks.{k}.attn.{kind}" for k in range(4) for kind in ("qkv", "proj")]
    assert {tuple(update.down.shape) for _, update in adapter.named_updates()} == {(4, 32)}


def test_impossible_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        EncoderLoRA(create_model("hq_test_vit", device="cpu").image_encoder, 0)
    with pytest.raises(ValueError, match="no linear layers"):
        EncoderLoRA(nn.Sequential(nn.Conv2d(3, 4, 1)), 2)
