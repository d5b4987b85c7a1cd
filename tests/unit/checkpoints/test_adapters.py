"""Adapter files: round trip, merging into a file or a model, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hqsam.checkpoints import (
    convert_checkpoint,
    inspect_checkpoint,
    load_adapter,
    load_checkpoint,
    official_state_dict,
    read_tensors,
    save_adapter,
    save_checkpoint,
)
from hqsam.errors import CheckpointError
from hqsam.models import EncoderLoRA
from hqsam.registry import create_model
from tests.helpers import fill_parameters
from tests.unit.models.test_lora import NAMES, build, learned


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_and_merging(name: str, tmp_path: Path) -> None:
    model, _ = build(name)
    save_checkpoint(model, tmp_path / "base.safetensors")
    adapter = learned(model, alpha=5.0)
    file = save_adapter(model, adapter, tmp_path / "lora.safetensors")
    assert all(key.startswith("image_encoder.") and key.count(".lora_") == 1 for key in read_tensors(file))

    other = create_model(name, tmp_path / "base.safetensors", device="cpu")
    loaded = load_adapter(other, file)
    for (_, a), (_, b) in zip(adapter.named_updates(), loaded.named_updates(), strict=True):
        assert torch.equal(a.down, b.down) and torch.equal(a.up, b.up) and a.scale == b.scale
    loaded.merge()
    convert_checkpoint(tmp_path / "base.safetensors", tmp_path / "merged.safetensors", lora=file)
    converted = create_model(name, tmp_path / "merged.safetensors", device="cpu")
    expected, before = official_state_dict(converted), official_state_dict(model)
    changed = [key for key, tensor in official_state_dict(other).items() if not torch.equal(tensor, before[key])]
    assert len(changed) == len(adapter.names) and all(".attn." in key for key in changed)
    for key, tensor in official_state_dict(other).items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=1e-7)


def test_what_is_no_adapter_or_of_another_encoder(tmp_path: Path) -> None:
    model, _ = build("hq_test_vit")
    whole = tmp_path / "model.safetensors"
    save_checkpoint(model, whole)
    file = save_adapter(model, learned(model), tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="not an adapter"):
        load_adapter(model, whole)
    tiny, images = build("hq_test_tiny")
    plain = tiny.image_encoder(images)[0]
    with pytest.raises(CheckpointError, match=r"lora.safetensors: the adapter does not fit"):
        load_adapter(tiny, file)
    assert torch.equal(tiny.image_encoder(images)[0], plain)
    save_checkpoint(tiny, tmp_path / "tiny.safetensors")
    with pytest.raises(CheckpointError, match="adapter of another encoder"):
        convert_checkpoint(tmp_path / "tiny.safetensors", tmp_path / "x.safetensors", lora=file)
    for act in (lambda: load_checkpoint(model, file), lambda: inspect_checkpoint(file)):
        with pytest.raises(CheckpointError, match=r"is an encoder adapter .* --lora FILE"):
            act()
    with pytest.raises(CheckpointError, match=r"an adapter is a .safetensors file"):
        save_adapter(model, EncoderLoRA(model.image_encoder, 1), tmp_path / "lora.pth")


@pytest.mark.parametrize("numbers", [("0", "4.0"), ("3", "4.0"), ("2", "nan"), ("2", "-inf")])
def test_an_adapter_with_wrong_numbers_is_refused(numbers: tuple[str, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, _ = build("hq_test_vit")
    file = save_adapter(model, EncoderLoRA(model.image_encoder, 2), tmp_path / "lora.safetensors")
    save_checkpoint(model, tmp_path / "model.safetensors")
    save_file(load_file(file), file, {"rank": numbers[0], "alpha": numbers[1]})
    with pytest.raises(CheckpointError, match=f"rank {numbers[0]} and alpha {numbers[1]}"):
        load_adapter(model, file)
    with pytest.raises(CheckpointError, match=f"rank {numbers[0]} and alpha {numbers[1]}"):
        convert_checkpoint(tmp_path / "model.safetensors", tmp_path / "x.safetensors", lora=file)


def test_an_adapter_without_its_numbers_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, _ = build("hq_test_vit")
    file = save_adapter(model, learned(model), tmp_path / "lora.safetensors")
    save_file(load_file(file), file)
    with pytest.raises(CheckpointError, match="does not state the rank and alpha"):
        load_adapter(model, file)


def test_a_plain_sam_takes_an_adapter_too(tmp_path: Path) -> None:
    model, images = build("hq_test_tiny")
    file = save_adapter(model, learned(model), tmp_path / "lora.safetensors")
    plain = create_model("sam_test_tiny", device="cpu")
    fill_parameters(plain)
    before = plain.image_encoder(images)[0]
    load_adapter(plain, file)
    assert not torch.equal(plain.image_encoder(images)[0], before)
