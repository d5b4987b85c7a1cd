"""Folders of instance and class PNGs opened without a list of what is in them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.data import ImageRecord, load_object_masks, open_dataset
from hqsam.data.label_maps import LabelKind, object_labels
from hqsam.errors import DataError

VALUES = np.array([[0, 1, 1, 3], [0, 3, 255, 255], [7, 7, 0, 0]], dtype=np.uint8)


def draw(path: Path, values: np.ndarray = VALUES, *, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Image.fromarray(values)
    if palette:
        file.putpalette([5, 6, 7] * 256)
        assert file.mode == "P"
    file.save(path)
    return path


def labels_of(records: list[ImageRecord]) -> list[list[int | None]]:
    return [[obj.label for obj in record.objects] for record in records]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a", "sub/c", "void", "unlabelled"):
        draw(tmp_path / f"set/photos/{name}.jpg", np.zeros((3, 4, 3), np.uint8))
    draw(tmp_path / "set/maps/a.png")
    draw(tmp_path / "set/maps/b.png", VALUES * np.uint8(VALUES != 7))
    draw(tmp_path / "set/maps/sub/c.png", VALUES.astype(np.uint16) * 257)
    draw(tmp_path / "set/maps/void.png", np.uint8(VALUES == 255) * np.uint8(255))
    return tmp_path / "set"


def test_every_number_is_an_object(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        records = open_dataset(f"instances:{folder}/photos:{folder}/maps")
    names = ["a.jpg", "b.jpg", "sub/c.jpg", "void.jpg"]
    assert [record.key for record in records] == [f"photos/{name}" for name in names]
    assert labels_of(records) == [[1, 3, 7, 255], [1, 3, 255], [257, 771, 1799, 65535], [255]]
    assert "1 of 5 images have no annotation" in caplog.text
    for record, scale in ((records[0], 1), (records[2], 257)):
        masks = load_object_masks(record.objects, VALUES.shape, record.image)
        for mask, value in zip(masks, (1, 3, 7, 255), strict=True):
            np.testing.assert_array_equal(mask, (VALUES.astype(int) * scale == value * scale) * 255)


def test_classes_leave_void_and_images_of_nothing_else_out(folder: Path) -> None:
    records = open_dataset(f"classes:{folder}/photos:{folder}/maps")
    assert labels_of(records) == [[1, 3, 7], [1, 3], [257, 771, 1799]]
    for path in sorted((folder / "maps").rglob("*.png")):
        if path.name != "void.png":
            path.unlink()
    with pytest.raises(DataError, match="none of 1 label maps has a label other than 0 and void"):
        open_dataset(f"classes:{folder}/photos:{folder}/maps")


@pytest.mark.parametrize(
    ("values", "palette", "kind", "expected"),
    [
        (VALUES, True, "instances", [1, 3, 7]),  # Pascal VOC, DAVIS
        (VALUES, False, "instances", [1, 3, 7, 255]),
        (VALUES.astype(np.uint16), False, "classes", [1, 3, 7, 255]),
        (VALUES.astype(np.uint16) + 65280, False, "classes", [65280, 65281, 65283, 65287]),
        (VALUES > 0, False, "instances", [1]),
        (VALUES * 0, False, "instances", []),
    ],
)
def test_void(tmp_path: Path, values: np.ndarray, palette: bool, kind: LabelKind, expected: list[int]) -> None:
    assert object_labels(draw(tmp_path / "map.png", values, palette=palette), kind) == expected


def test_one_folder_with_the_usual_sub_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("voc/JPEGImages/a.jpg", "own/images/a.jpg", "together/a.jpg"):
        draw(tmp_path / part, np.zeros((3, 4, 3), np.uint8))
    draw(tmp_path / "voc/SegmentationClass/a.png", VALUES, palette=True)
    draw(tmp_path / "voc/SegmentationObject/a.png", np.uint8(VALUES == 3), palette=True)
    draw(tmp_path / "own/labels/a.png")
    draw(tmp_path / "together/a.png")
    assert labels_of(open_dataset(f"classes:{tmp_path}/voc")) == [[1, 3, 7]]
    assert labels_of(open_dataset(f"instances:{tmp_path}/voc")) == [[1]]
    monkeypatch.setenv("HQSAM_DATA", str(tmp_path))
    assert labels_of(open_dataset("instances:own")) == [[1, 3, 7, 255]]
    assert labels_of(open_dataset("instances:together")) == [[1, 3, 7, 255]]
    assert labels_of(open_dataset("together")) == [[None]]  # without the prefix a mask of one object


def test_defects(folder: Path) -> None:
    name = f"classes:{folder}/photos:{folder}/maps"
    draw(folder / "maps/zebra.png")
    with pytest.raises(DataError, match=r"1 label maps without an image in .*photos: zebra\.png"):
        open_dataset(name)
    (folder / "maps/zebra.png").unlink()
    (folder / "maps/b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"not an image.*b\.png"):
        open_dataset(name)
    draw(folder / "maps/b.png", np.dstack([VALUES, VALUES, VALUES * 0]))
    with pytest.raises(DataError, match=r"colour image.*b\.png"):
        open_dataset(name)
    (folder / "maps/b.png").unlink()
    draw(folder / "maps/b.tif", VALUES.astype(np.float32))
    with pytest.raises(DataError, match=r"whole numbers from 0: .*b\.tif"):
        open_dataset(name)
    with pytest.raises(DataError, match=r"no label maps .* in .*photos"):
        open_dataset(f"classes:{folder}/photos:{folder}/photos")
    draw(folder / "maps/b.tif", VALUES[:2])
    record = open_dataset(name)[1]
    with pytest.raises(DataError, match=r"differ in size: .*b\.tif is 4 x 2.*b\.jpg is 4 x 3"):
        load_object_masks(record.objects, VALUES.shape, record.image)


def test_what_is_nothing_says_what_was_tried(folder: Path) -> None:
    for name, text in (
        (f"classes:{folder}/photos:{folder}/none", r"photos \(found\) and .*none \(not found\) here and in"),
        (f"classes:{folder}/none", r"looked for .*set/none \(not found\) here"),
        (f"{folder}/photos:{folder}/x.json", r"photos \(found\) and .*x\.json \(not found\)"),
        ("cocoa", r"cocoa \(not found\).*IMAGES:MASKS, IMAGES:FILE\.json, instances:IMAGES:LABELS.*hqseg44k_train"),
    ):
        with pytest.raises(DataError, match=text):
            open_dataset(name)
