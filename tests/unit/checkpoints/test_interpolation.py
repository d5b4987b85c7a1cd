"""Weights between two files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hqsam.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    load_checkpoint,
    official_state_dict,
    read_tensors,
    save_checkpoint,
)
from hqsam.cli import main
from hqsam.models import Sam
from hqsam.registry import create_model

Build = Callable[..., Sam]
HEAD = "mask_decoder.hf_token.weight"
TRUNK = "mask_decoder.mask_tokens.weight"


def bits(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in read_tensors(path).items()}


@pytest.fixture
def before(build: Build, tmp_path: Path) -> Path:
    return save_checkpoint(build("hq_test_tiny", seed=1), tmp_path / "before.safetensors").path


@pytest.fixture
def after(build: Build, tmp_path: Path) -> Path:
    return save_checkpoint(build("hq_test_tiny", seed=2), tmp_path / "after.safetensors").path


def test_every_part_of_two_whole_models_is_moved(before: Path, after: Path, tmp_path: Path) -> None:
    info = convert_checkpoint(before, tmp_path / "out.safetensors", interpolate=after, share=0.25)
    a, b, out = (read_tensors(path) for path in (before, after, info.path))
    assert out.keys() == a.keys()
    for name, tensor in out.items():
        assert torch.allclose(tensor.float(), 0.75 * a[name] + 0.25 * b[name], atol=1e-6), name
    assert not torch.equal(a[TRUNK], b[TRUNK])


def test_a_head_alone_moves_the_head_and_nothing_else(before: Path, build: Build, tmp_path: Path) -> None:
    source = build("hq_test_tiny", seed=2)
    head = save_checkpoint(source, tmp_path / "head.safetensors", part="hq", metadata={"recommended_fusion": "hq"})
    info = convert_checkpoint(before, tmp_path / "out.safetensors", interpolate=head.path)
    a, b, out = (read_tensors(path) for path in (before, head.path, info.path))
    assert torch.allclose(out[HEAD], (a[HEAD] + b[HEAD]) / 2, atol=1e-6)
    assert all(torch.equal(out[name], tensor) for name, tensor in a.items() if name not in b)
    assert "recommended_fusion" not in info.metadata


def test_a_head_is_moved_towards_that_of_a_whole_model(after: Path, build: Build, tmp_path: Path) -> None:
    head = save_checkpoint(build("hq_test_tiny", seed=1), tmp_path / "head.safetensors", part="hq").path
    info = convert_checkpoint(head, tmp_path / "out.safetensors", interpolate=after, share=1)
    b, out = read_tensors(after), read_tensors(info.path)
    assert info.layout == "hq_head"
    assert all(torch.equal(tensor, b[name]) for name, tensor in out.items())


def test_what_a_run_states_about_its_weights_goes_with_them(build: Build, after: Path, tmp_path: Path) -> None:
    strings = {"step": "40", "val_mbiou": "70.123", "note": "x"}
    before = save_checkpoint(build("hq_test_tiny"), tmp_path / "before.safetensors", metadata=strings).path
    moved = convert_checkpoint(before, tmp_path / "moved.safetensors", interpolate=after, share=0.5)
    assert moved.metadata["note"] == "x" and not {"step", "val_mbiou"} & set(moved.metadata)
    stayed = convert_checkpoint(before, tmp_path / "stayed.safetensors", interpolate=after, share=0)
    assert strings.items() <= stayed.metadata.items()


def test_what_is_equal_stays_as_it_is_to_the_bit(build: Build, tmp_path: Path) -> None:
    model = build("hq_test_tiny")
    official_state_dict(model)[HEAD].view(-1)[:3] = torch.tensor([-0.0, torch.inf, -torch.inf])  # shares memory
    before = save_checkpoint(model, tmp_path / "before.safetensors").path
    out = convert_checkpoint(before, tmp_path / "out.safetensors", interpolate=before, share=0.3).path
    assert bits(before) == bits(out)


def test_no_share_changes_nothing(before: Path, after: Path, tmp_path: Path) -> None:
    out = convert_checkpoint(before, tmp_path / "out.safetensors", interpolate=after, share=0).path
    assert bits(before) == bits(out)


def test_counters_that_a_file_lacks_do_not_matter(before: Path, after: Path, tmp_path: Path) -> None:
    tensors = {n: t for n, t in read_tensors(after).items() if not n.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "fewer.pth")
    whole = convert_checkpoint(before, tmp_path / "whole.safetensors", interpolate=after).path
    fewer = convert_checkpoint(before, tmp_path / "fewer.safetensors", interpolate=tmp_path / "fewer.pth").path
    assert len(tensors) < len(read_tensors(after))
    assert bits(whole) == bits(fewer)
    turned = convert_checkpoint(tmp_path / "fewer.pth", tmp_path / "turned.pth", interpolate=before).path
    assert torch.allclose(read_tensors(turned)[TRUNK], read_tensors(whole)[TRUNK], atol=1e-6)


def test_a_file_that_is_not_whole_is_refused(before: Path, after: Path, tmp_path: Path) -> None:
    tensors = read_tensors(after)
    del tensors[TRUNK]
    torch.save(tensors, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"part\.pth"):
        convert_checkpoint(before, tmp_path / "out.pth", interpolate=tmp_path / "part.pth")


def test_a_head_that_is_put_in_is_what_moves(before: Path, after: Path, build: Build, tmp_path: Path) -> None:
    head = save_checkpoint(build("hq_test_tiny", seed=3), tmp_path / "head.safetensors", part="hq").path
    out = convert_checkpoint(before, tmp_path / "out.safetensors", head=head, interpolate=after, share=0.25).path
    expected = 0.75 * read_tensors(head)[HEAD] + 0.25 * read_tensors(after)[HEAD]
    assert torch.allclose(read_tensors(out)[HEAD], expected, atol=1e-6)


def test_the_command(before: Path, after: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(before), str(out), "--interpolate", str(after), "--share", "0.25"]) == 0
    expected = 0.75 * read_tensors(before)[HEAD] + 0.25 * read_tensors(after)[HEAD]
    assert torch.allclose(read_tensors(out)[HEAD], expected, atol=1e-6)
    assert main(["convert", str(before), str(out), "--share", "0.25"]) == 2
    assert "interpolate" in capsys.readouterr().err


def test_half_precision_is_averaged_in_full(before: Path, after: Path, tmp_path: Path) -> None:
    half = convert_checkpoint(before, tmp_path / "half.safetensors", dtype=torch.float16).path
    out = read_tensors(convert_checkpoint(half, tmp_path / "out.safetensors", interpolate=after).path)
    exact = (read_tensors(half)[HEAD].float() + read_tensors(after)[HEAD]) / 2
    assert out[HEAD].dtype == torch.float16
    assert torch.equal(out[HEAD], exact.half())
    full = convert_checkpoint(half, tmp_path / "full.safetensors", interpolate=after, dtype=torch.float32).path
    assert torch.allclose(read_tensors(full)[HEAD], exact, rtol=1e-6, atol=1e-8)
    assert not torch.equal(read_tensors(full)[HEAD], exact.half().float())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range(share: float, before: Path, after: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="share must be from 0 to 1"):
        convert_checkpoint(before, tmp_path / "out.safetensors", interpolate=after, share=share)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_model_of_another_kind_is_refused(before: Path, build: Build, tmp_path: Path) -> None:
    other = save_checkpoint(build("hq_test_vit"), tmp_path / "vit.pth").path
    with pytest.raises(CheckpointError, match="does not fit the model"):
        convert_checkpoint(before, tmp_path / "out.pth", interpolate=other)


def test_files_without_a_common_part_are_refused(build: Build, tmp_path: Path) -> None:
    model = build("hq_test_tiny")
    plain = save_checkpoint(model, tmp_path / "sam.pth", part="sam").path
    head = save_checkpoint(model, tmp_path / "head.pth", part="hq").path
    with pytest.raises(CheckpointError, match="no part of it is in the model"):
        convert_checkpoint(plain, tmp_path / "out.pth", interpolate=head)


def test_heads_of_two_kinds_are_refused(before: Path, tmp_path: Path) -> None:
    other = create_model("hq_test_tiny", device="cpu", head="final+mask")
    other.head_state = "trained"
    path = save_checkpoint(other, tmp_path / "other.safetensors").path
    with pytest.raises(CheckpointError, match="fuses only final and mask"):
        convert_checkpoint(before, tmp_path / "out.safetensors", interpolate=path)


def test_the_result_loads(before: Path, after: Path, build: Build, tmp_path: Path) -> None:
    info = convert_checkpoint(before, tmp_path / "out.pth", interpolate=after)
    model = build("hq_test_tiny", seed=3)
    load_checkpoint(model, info.path)
    assert torch.equal(official_state_dict(model)[HEAD], read_tensors(info.path)[HEAD])
