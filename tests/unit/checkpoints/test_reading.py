from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hqsam.checkpoints import CheckpointError, read_tensors
from hqsam.checkpoints.reading import read_file

TENSORS = {"a.weight": torch.arange(600.0), "a.bias": torch.ones(2, 3, dtype=torch.float16)}


def write(path: Path, value: Any, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".ckpt"])
def test_content_decides_not_the_suffix(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        write(path, TENSORS, legacy=kind == "legacy")
    tensors = read_tensors(str(path))
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "net", "head"])
def test_wrappers_are_unwrapped(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "a.pth", {key: OrderedDict(TENSORS), "epoch": 3, "optimizer": {"lr": 0.1}})
    assert set(read_tensors(path)) == set(TENSORS)


def test_settings_under_a_wrappers_name_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {"model": {"name": "vit_l"}, "net": {"state_dict": TENSORS}})
    assert set(read_tensors(path)) == set(TENSORS)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_prefix_of_all_names_is_removed(tmp_path: Path, prefix: str) -> None:
    path = write(tmp_path / "a.pth", {"state_dict": {prefix + name: tensor for name, tensor in TENSORS.items()}})
    assert set(read_tensors(path)) == set(TENSORS)


def test_a_prefix_of_some_names_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {"module.a": torch.ones(1), "b": torch.ones(1)})
    assert set(read_tensors(path)) == {"module.a", "b"}


WHOLE = ["image_encoder.pos_embed", "prompt_encoder.no_mask_embed.weight", "mask_decoder.iou_token.weight"]


@pytest.mark.parametrize("names", [WHOLE, ["vision_encoder.pos_embed", "mask_decoder.iou_token.weight"]])
@pytest.mark.parametrize(
    "prefix", ["sam.", "model.sam.", "module._orig_mod.", "trainer.net.sam_model.", "_orig_mod.module.sam."]
)
def test_any_prefix_of_a_whole_model_is_removed(tmp_path: Path, prefix: str, names: list[str]) -> None:
    tensors = {prefix + name: torch.ones(1) for name in ["pixel_mean", *names]}
    path = write(tmp_path / "a.pth", {"state_dict": tensors})
    assert list(read_tensors(path)) == ["pixel_mean", *names]
    path = write(tmp_path / "b.pth", {**tensors, "loss.weight": torch.ones(1)})
    assert list(read_tensors(path)) == [*tensors, "loss.weight"]


def test_the_name_of_a_part_is_no_prefix(tmp_path: Path) -> None:
    names = ["mask_decoder.transformer.image_encoder.weight", "mask_decoder.iou_token.weight"]
    assert list(read_tensors(write(tmp_path / "a.pth", dict.fromkeys(names, torch.ones(1))))) == names


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {"a": torch.nn.Parameter(torch.ones(2))})
    assert not read_tensors(path)["a"].requires_grad


def test_metadata_and_size(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors", {"note": "hello"})
    file = read_file(tmp_path / "a.safetensors")
    assert file.metadata == {"note": "hello"} and file.size_bytes == (tmp_path / "a.safetensors").stat().st_size
    assert read_file(write(tmp_path / "a.pth", TENSORS)).metadata == {}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, attack: SimpleNamespace, legacy: bool) -> None:
    trace = tmp_path / "was_run"
    path = write(tmp_path / "evil.pth", {**TENSORS, "x": attack.make(trace)}, legacy=legacy)
    with pytest.raises(CheckpointError, match=r"holds Python objects besides tensors .*can run code.*re-save"):
        read_tensors(path)
    assert not trace.exists()


def test_a_bare_pickle_with_code_is_refused(tmp_path: Path, attack: SimpleNamespace) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(attack.make(tmp_path / "was_run"), protocol=2))
    with pytest.raises(CheckpointError, match="holds Python objects besides tensors"):
        read_tensors(tmp_path / "evil.pkl")
    assert not (tmp_path / "was_run").exists()


def test_the_refused_object_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", {"state_dict": TENSORS, "args": argparse.Namespace(lr=1)})
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace"):
        read_tensors(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_truncated(tmp_path: Path, kind: str, fraction: float) -> None:
    path = tmp_path / "a.pth"
    if kind == "safetensors":
        save_file(TENSORS, path)
    else:
        write(path, TENSORS, legacy=kind == "legacy")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    with pytest.raises(CheckpointError, match=r"a\.pth is .*truncated.*again"):
        read_tensors(path)


def zip_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors here")


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "there is no file"),
        (lambda p: p.mkdir(), "is a folder"),
        (lambda p: p.touch(), r"is empty \(0 bytes\)"),
        (lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), "is a web page"),
        (lambda p: p.write_text("\n <html>"), "is a web page"),
        (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50)), "neither a PyTorch nor a safetensors file"),
        (lambda p: p.write_bytes(b"\x01"), "neither a PyTorch nor a safetensors file"),
        (lambda p: p.write_bytes(bytes(8) + b"{}"), "damaged or truncated safetensors"),
        (zip_archive, "not a readable PyTorch file"),
        (torchscript, "TorchScript program"),
        (lambda p: write(p, [torch.ones(1)]), "holds a list, not a dictionary"),
        (lambda p: write(p, torch.ones(1)), "holds a Tensor, not a dictionary"),
        (lambda p: write(p, {}), "empty dictionary"),
        (lambda p: write(p, {"model": {}}), r"plain tensors: 'model' \(dict\)"),
        (lambda p: write(p, {"a": torch.ones(1), "epoch": 3}), r"plain tensors: 'epoch' \(int\)"),
        (lambda p: write(p, {0: torch.ones(1)}), r"plain tensors: 0 \(Tensor\)"),
        (lambda p: write(p, {"a": torch.eye(2).to_sparse()}), r"plain tensors: 'a'"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch, about the unusual files made here
def test_unusable_files(tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "file.pth"
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(path)
    assert "file.pth" in str(caught.value) and "\n" not in str(caught.value)
