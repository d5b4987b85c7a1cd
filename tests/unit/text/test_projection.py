from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hqsam.errors import CheckpointError
from hqsam.text import ProjectionInfo, TextProjection, load_projection, save_projection

INFO = ProjectionInfo(clip="ViT-B-32/openai", sam="hq_vit_l", template="a photo of {}")


@pytest.mark.parametrize("hidden", [None, 20])
def test_projection_reads_directions_and_not_lengths(hidden: int | None) -> None:
    projection = TextProjection(12, hidden_dim=hidden)
    embeddings = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    tokens = projection(embeddings)
    assert tokens.shape == (3, 256)
    torch.testing.assert_close(projection(embeddings * 7.0), tokens)


@pytest.mark.parametrize("shape", [(12,), (3, 11), (1, 3, 12)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 12\)"):
        TextProjection(12)(torch.zeros(shape))


@pytest.mark.parametrize("hidden", [None, 20])
def test_file_round_trip(tmp_path: Path, hidden: int | None) -> None:
    projection = TextProjection(12, 32, hidden_dim=hidden)
    path = tmp_path / "new" / "p.safetensors"
    save_projection(projection, path, INFO)
    loaded, info = load_projection(path)
    assert info == INFO
    assert (loaded.clip_dim, loaded.dim, loaded.hidden_dim) == (12, 32, hidden)
    for name, tensor in projection.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "p.safetensors"
    save_projection(TextProjection(12, 32, hidden_dim=20), path, INFO)
    return path


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("name", ["layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"])
@pytest.mark.parametrize("change", ["missing", "renamed", "narrower", "scalar"])
def test_any_changed_tensor_is_an_error(saved: Path, name: str, change: str) -> None:
    tensors, metadata = load_file(saved), metadata_of(saved)
    tensor = tensors.pop(name)
    if change == "renamed":
        tensors[name.replace("layers", "layer")] = tensor
    elif change == "narrower":
        tensors[name] = tensor[..., :-1].clone()
    elif change == "scalar":
        tensors[name] = torch.zeros(())
    save_file(tensors, saved, metadata)
    with pytest.raises(CheckpointError, match=r"p\.safetensors"):
        load_projection(saved)


def test_an_extra_tensor_is_an_error(saved: Path) -> None:
    tensors, metadata = load_file(saved), metadata_of(saved)
    save_file({**tensors, "more": torch.zeros(1)}, saved, metadata)
    with pytest.raises(CheckpointError, match="does not fit together"):
        load_projection(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": None}, "not a text projection"),
        ({"format": "pt"}, "not a text projection"),
        ({"format_version": "2"}, "format version '2'"),
        ({"clip": None}, "lacks clip"),
        ({"sam": None, "template": None}, "lacks sam, template"),
        ({"clip_dim": "13"}, "does not fit together"),
    ],
)
def test_changed_metadata(saved: Path, change: dict[str, str | None], message: str) -> None:
    metadata = {**metadata_of(saved), **change}
    save_file(load_file(saved), saved, {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(CheckpointError, match=message):
        load_projection(saved)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        load_projection(tmp_path / "missing.safetensors")
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not a text projection"):
        load_projection(path)


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("p.pth", INFO),
        ("p.safetensors", ProjectionInfo(clip="", sam="hq_vit_l")),
        ("p.safetensors", ProjectionInfo(clip="a/b", sam="")),
        ("p.safetensors", ProjectionInfo(clip="a/b", sam="hq_vit_l", template="photo")),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, name: str, info: ProjectionInfo) -> None:
    with pytest.raises(CheckpointError):
        save_projection(TextProjection(12), tmp_path / name, info)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["hq_vit_l", "sam_vit_l", "hq_vit_l.embedded"])
def test_head_and_tag_may_differ(name: str) -> None:
    INFO.require_sam(name)


@pytest.mark.parametrize("name", ["hq_vit_b", "sam_vit_tiny", "vit_lx"])
def test_another_sam_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"trained with 'hq_vit_l', the model is '{name}'"):
        INFO.require_sam(name)
