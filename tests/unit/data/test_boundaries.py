"""BSDS500 in both layouts, generated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.data import load_object_masks, open_dataset
from hqsam.data.boundaries import load_boundaries, load_regions, read_bsds
from hqsam.errors import DataError
from hqsam.images import write_image


def truths() -> NDArray[np.bool_]:
    return np.random.default_rng(0).random((3, 12, 21)) < 0.1


def regions(*counts: int) -> NDArray[np.uint16]:
    """An annotation for each count, with so many vertical stripes as regions."""
    stripes = [np.tile(np.arange(21) * count // 21 + 1, (12, 1)) for count in counts]
    return np.stack(stripes).astype(np.uint16)


def save_matlab(path: Path, boundaries: NDArray[np.bool_], labels: NDArray[np.uint16]) -> None:
    """A row of cells, each a struct with `Segmentation` and `Boundaries`, as in the published files."""
    scipy_io = pytest.importorskip("scipy.io")
    cells = np.empty((1, len(boundaries)), dtype=object)
    for k, drawn in enumerate(boundaries):
        cells[0, k] = {"Segmentation": labels[k], "Boundaries": drawn.astype(np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, {"groundTruth": cells})


def save_packed(path: Path, boundaries: NDArray[np.bool_], labels: NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, seg=labels, bnd=np.packbits(boundaries, axis=-1), shape=boundaries.shape)


def made(base: Path, folder: str, suffix: str) -> Path:
    for name in ("3096", "101085"):
        (base / "images/val").mkdir(parents=True, exist_ok=True)
        write_image(base / f"images/val/{name}.jpg", np.zeros((12, 21, 3), dtype=np.uint8))
        save = save_matlab if suffix == ".mat" else save_packed
        save(base / folder / f"val/{name}{suffix}", truths(), regions(7, 2, 4))
    return base


@pytest.mark.parametrize(
    ("below", "folder", "suffix"), [("BSR/BSDS500/data", "groundTruth", ".mat"), ("", "gt", ".npz")]
)
def test_both_layouts(tmp_path: Path, below: str, folder: str, suffix: str) -> None:
    made(tmp_path / below, folder, suffix)
    (tmp_path / below / "images/val/Thumbs.db").touch()
    records = read_bsds(tmp_path, "val")
    assert [record.key for record in records] == ["bsds500_val/101085", "bsds500_val/3096"]
    assert np.array_equal(load_boundaries(records[0].annotations, (12, 21)), truths())
    assert np.array_equal(load_regions(records[0].annotations, (12, 21)), regions(4)[0])


@pytest.mark.parametrize(
    ("counts", "chosen"), [((5,), 0), ((9, 2), 1), ((2, 9, 4, 6), 2), ((3, 8, 1, 8, 8), 1), ((4, 4), 0)]
)
def test_the_median_annotator(tmp_path: Path, counts: tuple[int, ...], chosen: int) -> None:
    """The lower one of two, the first one of equals; label 0 is no region."""
    labels = regions(*counts)
    labels[:, 0] = 0
    save_packed(tmp_path / "a.npz", truths(), labels)
    assert np.array_equal(load_regions(tmp_path / "a.npz"), labels[chosen])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Berkeley Segmentation Data Set"):
        read_bsds(tmp_path, "test")
    base = made(tmp_path, "gt", ".npz")
    (base / "gt/val/3096.npz").unlink()
    with pytest.raises(DataError, match="3096 has only one"):
        read_bsds(tmp_path, "val")
    with pytest.raises(ValueError, match="train, val, test"):
        read_bsds(tmp_path, "testing")


def test_annotations_that_cannot_be_used(tmp_path: Path) -> None:
    for name in ("text.npz", "text.mat"):
        (tmp_path / name).write_text("no annotations")
        with pytest.raises(DataError, match=f"cannot be read: .*{name}"):
            load_boundaries(tmp_path / name)
        with pytest.raises(DataError, match=f"cannot be read: .*{name}"):
            load_regions(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        load_boundaries(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", seg=np.zeros((2, 3, 4)))
    with pytest.raises(DataError, match="cannot be read"):
        load_boundaries(tmp_path / "other.npz")
    np.savez(tmp_path / "flat.npz", seg=np.zeros((3, 4)))
    with pytest.raises(DataError, match=r"\(3, 4\), not \(K, H, W\)"):
        load_regions(tmp_path / "flat.npz")
    save_packed(tmp_path / "small.npz", truths(), regions(3))
    with pytest.raises(DataError, match=r"\(12, 21\).*\(21, 12\)"):
        load_regions(tmp_path / "small.npz", (21, 12))
    with pytest.raises(DataError, match=r"\(12, 21\).*\(21, 12\)"):
        load_boundaries(tmp_path / "small.npz", (21, 12))
    save_packed(tmp_path / "none.npz", truths()[:0], regions(3)[:0])
    with pytest.raises(DataError, match="no annotation"):
        load_boundaries(tmp_path / "none.npz")
    with pytest.raises(DataError, match="no annotation"):
        load_regions(tmp_path / "none.npz")


@pytest.mark.parametrize(("folder", "suffix"), [("groundTruth", ".mat"), ("gt", ".npz")])
def test_regions_are_objects_of_a_data_set(tmp_path: Path, folder: str, suffix: str) -> None:
    made(tmp_path / "bsds500", folder, suffix)
    records = open_dataset("bsds500_val", root=tmp_path)
    assert [record.key for record in records] == ["bsds500_val/101085", "bsds500_val/3096"]
    masks = load_object_masks(records[0].objects, (12, 21), records[0].image)
    assert np.array_equal(np.stack(masks) > 0, np.arange(1, 5)[:, None, None] == regions(4)[0])
    with pytest.raises(DataError, match="BSDS500 test is not in"):
        open_dataset("bsds500_test", root=tmp_path)
    with pytest.raises(DataError, match="bsds500_training"):
        open_dataset("bsds500_training", root=tmp_path)
