"""A plain ViT at another input size against the published one built for that size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hqsam.checkpoints import save_checkpoint
from hqsam.checkpoints.positions import resize_absolute
from hqsam.registry import create_model, model_spec
from tests.parity.oracles import build_pair

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("image_size", [64, 208])
def test_encoder_with_interpolated_positions(image_size, tmp_path):
    """The published code resizes relative positions itself, so its tables stay as trained: two codes, one rule."""
    trained, _ = build_pair(model_spec("hq_test_vit"))
    spec = replace(model_spec("hq_test_vit"), image_size=image_size)
    oracle, ours = build_pair(spec)
    tensors = trained.state_dict()
    tensors["image_encoder.pos_embed"] = resize_absolute(tensors["image_encoder.pos_embed"], image_size // 16)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if leaf.startswith("rel_pos"):
            setattr(oracle.get_submodule(owner), leaf, torch.nn.Parameter(tensor))
    oracle.load_state_dict(tensors)

    _, source = build_pair(model_spec("hq_test_vit"))
    save_checkpoint(source, tmp_path / "trained.pth")
    ours = create_model("hq_test_vit", tmp_path / "trained.pth", device="cpu", image_size=image_size)
    images = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[5.0, 6.0, 40.0, 50.0]])
    with torch.no_grad():
        embedding, interm = oracle.image_encoder(images)
        features = ours.image_encoder(images)
        sparse, dense = oracle.prompt_encoder(None, boxes, None)
        mine = ours.prompt_encoder(None, boxes, None)
        dense_pe = oracle.prompt_encoder.get_dense_pe()
    assert torch.allclose(embedding, features.image_embedding, atol=1e-4)
    assert torch.allclose(interm[0].permute(0, 3, 1, 2), features.early_feature, atol=1e-4)
    assert torch.allclose(sparse, mine[0], atol=1e-5) and torch.allclose(dense, mine[1], atol=1e-6)
    assert torch.allclose(dense_pe, ours.prompt_encoder.get_dense_pe(), atol=1e-5)
