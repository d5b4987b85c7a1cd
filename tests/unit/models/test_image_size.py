"""Models for another input than the one that their weights were trained with."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hqsam import SamPredictor, create_model, inspect_checkpoint, load_checkpoint, save_checkpoint
from hqsam.checkpoints import CheckpointError, official_state_dict
from hqsam.checkpoints.positions import resize_absolute, resize_relative
from hqsam.models import Sam
from hqsam.registry import build_model, model_spec
from tests.helpers import fill_parameters

VIT, TINY = "hq_test_vit", "hq_test_tiny"
GLOBAL = [f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for block in (1, 3) for axis in "hw"]
POSITIONS = ["image_encoder.pos_embed", *GLOBAL]


def filled(name: str, image_size: int = 128) -> Sam:
    return fill_parameters(build_model(replace(model_spec(name), image_size=image_size))).eval()


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_checkpoint(filled(VIT), path)
    return path


def load(path: Path, image_size: int | None) -> dict[str, torch.Tensor]:
    return official_state_dict(create_model(VIT, path, device="cpu", image_size=image_size))


@pytest.mark.parametrize("name", [VIT, TINY])
@pytest.mark.parametrize("image_size", [16, 48, 112, 336])
def test_any_multiple_of_16(name: str, image_size: int) -> None:
    model = filled(name, image_size)
    predictor = SamPredictor(model)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
    masks, _, logits = predictor.predict(box=[3, 4, 30, 40], multimask_output=False)
    again, _, _ = predictor.predict(box=[3, 4, 30, 40], mask_input=masks[0] | True, multimask_output=False)
    assert model.image_size == image_size
    assert predictor.get_image_embedding().shape[2:] == (image_size // 16,) * 2
    assert logits.shape == (1, image_size // 4, image_size // 4) and np.isfinite(logits).all()
    assert masks.shape == again.shape == (1, 50, 40)


@pytest.mark.parametrize("image_size", [0, -16, 8, 100, 513, 512.0, True])
@pytest.mark.parametrize("name", [VIT, TINY])
def test_impossible_sizes(name: str, image_size: int) -> None:
    with pytest.raises(ValueError, match=f"positive multiple of 16 pixels, got {image_size}"):
        create_model(name, image_size=image_size)


def test_the_trained_size_changes_nothing(vit_file: Path) -> None:
    plain, named = load(vit_file, None), load(vit_file, 128)
    wanted = official_state_dict(filled(VIT))
    assert all(torch.equal(plain[n], t) and torch.equal(named[n], t) for n, t in wanted.items())


@pytest.mark.parametrize("image_size", [64, 80, 256])
def test_only_positions_of_global_attention_change(vit_file: Path, image_size: int) -> None:
    before, after = load(vit_file, None), load(vit_file, image_size)
    grid = image_size // 16
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        name for name in before if name in POSITIONS
    ]
    assert after["image_encoder.pos_embed"].shape == (1, grid, grid, 32)
    assert all(after[name].shape[0] == 2 * grid - 1 for name in GLOBAL)


def test_a_grid_as_large_as_a_window(vit_file: Path) -> None:
    """At 48 pixels the tables of windowed blocks have the length that those of global blocks get."""
    before, after = load(vit_file, None), load(vit_file, 48)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert sorted(changed) == sorted(POSITIONS)


def test_rules_of_interpolation() -> None:
    ramp = torch.linspace(-1, 1, 8).expand(8, 8)
    grid = torch.stack([ramp, ramp.T, torch.ones(8, 8)], dim=-1)[None]
    assert torch.equal(resize_absolute(grid, 8), grid)
    for size in (4, 6, 12):
        resized = resize_absolute(grid, size)[0]
        centres = ((torch.arange(size) + 0.5) / size * 8 - 0.5) / 3.5 - 1
        inner = slice(size // 4, -(size // 4))
        assert torch.allclose(resized[inner, inner, 0], centres[inner].expand(len(centres[inner]), -1), atol=0.02)
        assert torch.allclose(resized[..., 0], resized[..., 1].T, atol=1e-6)
        assert torch.allclose(resized[..., 2], torch.ones(size, size), atol=1e-6)
    table = torch.randn(15, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_relative(table, 15), table)
    assert torch.allclose(resize_relative(table, 31)[15], table[7], atol=1e-6)
    assert torch.allclose(resize_relative(table, 7).mean(0), resize_relative(table.flip(0), 7).mean(0), atol=1e-6)
    half = resize_absolute(grid.half(), 4)
    assert half.dtype == torch.float32 and half.is_contiguous()


def test_saved_with_its_sizes(vit_file: Path, tmp_path: Path) -> None:
    small = create_model(VIT, vit_file, device="cpu", image_size=64)
    path = tmp_path / "small.safetensors"
    assert save_checkpoint(small, path).metadata["image_size"] == "64"
    assert inspect_checkpoint(path).layout == "hq_sam"
    same = load(path, None)  # the file says so
    assert all(torch.equal(same[name], tensor) for name, tensor in official_state_dict(small).items())
    back = load(path, 128)
    assert torch.equal(back[GLOBAL[0]], resize_relative(same[GLOBAL[0]], 15))
    assert "image_size" not in save_checkpoint(small, tmp_path / "head.safetensors", part="hq").metadata


def test_tiny_vit_has_nothing_to_interpolate(tmp_path: Path) -> None:
    model = filled(TINY, 64)
    path = tmp_path / "tiny.safetensors"
    assert save_checkpoint(model, path).metadata["image_size"] == "64"
    loaded = official_state_dict(create_model(TINY, path, device="cpu", image_size=192))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in official_state_dict(model).items())


@pytest.mark.parametrize("name", POSITIONS)
def test_contradicting_positions_are_refused(name: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {key: tensor.clone() for key, tensor in official_state_dict(filled(VIT)).items()}
    tensors[name] = tensors[name][:, :5].contiguous() if name == POSITIONS[0] else tensors[name][:11].contiguous()
    save_file(tensors, tmp_path / "odd.safetensors")
    for image_size in (64, 128):
        model = build_model(replace(model_spec(VIT), image_size=image_size))
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(model, tmp_path / "odd.safetensors")


def test_what_the_log_says(vit_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        load(vit_file, None)
        assert not caplog.records
        load(vit_file, 64)
    (record,) = caplog.records
    assert "made for an input of 128 pixels; its positions are interpolated to 64" in record.getMessage()
    assert record.levelno == logging.WARNING  # only weights of the published size are expected to be adapted
