from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hqsam.data import FeatureStore
from hqsam.errors import DataError
from hqsam.types import ImageFeatures


def open_store(folder: Path, model: str = "m", views: str = "v") -> FeatureStore:
    return FeatureStore(folder / "kept", model_fingerprint=model, view_fingerprint=views)


def features(value: float = 1.5) -> ImageFeatures:
    ramp = torch.arange(4 * 6 * 6).reshape(4, 6, 6) / 8
    return ImageFeatures(ramp + value, (ramp[:2] - value).transpose(1, 2))  # one of them not contiguous


def test_round_trip_in_half_precision(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert not store.has("set/a.jpg#0")
    store.save("set/a.jpg#0", features())
    store.save("set/a.jpg#1", features(3.0))
    again = open_store(tmp_path)
    assert again.has("set/a.jpg#0")
    for kept, given in zip(again.load("set/a.jpg#0"), features(), strict=True):
        assert kept.dtype == torch.float16
        assert torch.equal(kept, given.half())
    assert not torch.equal(again.load("set/a.jpg#1").image_embedding, again.load("set/a.jpg#0").image_embedding)


def test_another_model_or_other_views_are_refused(tmp_path: Path) -> None:
    open_store(tmp_path)
    with pytest.raises(DataError, match=r"another model \(m, this run has x\).*delete"):
        open_store(tmp_path, model="x")
    with pytest.raises(DataError, match="another seed, data or augmentation"):
        open_store(tmp_path, views="x")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_description(tmp_path: Path, content: str) -> None:
    open_store(tmp_path)
    (tmp_path / "kept/meta.json").write_text(content)
    with pytest.raises(DataError, match="kept"):
        open_store(tmp_path)


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(DataError, match="cannot be used"):
        open_store(tmp_path)


def test_missing_and_damaged_views_are_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(DataError, match="no kept features of k"):
        store.load("k")
    store.save("k", features())
    path = store.path("k")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"damaged: {path}"):
        store.load("k")


def test_values_beyond_half_precision_are_not_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(DataError, match="features of k are not finite"):
        store.save("k", features(1e6))
    assert not store.has("k")


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)

    def fail(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(DataError, match="no space left"):
        store.save("k", features())
    assert not store.has("k")
    assert [path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()] == ["meta.json"]
