from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.data import ObjectRecord, load_object_mask, load_object_masks
from hqsam.data.masks import upright_hw
from hqsam.errors import DataError

SHAPE = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.uint8)
SOFT = np.array([[0, 1, 128, 255]], dtype=np.uint8)
IMAGE = Path("photo.jpg")


def read(path: Path, label: int | None = None, hw: tuple[int, int] = SHAPE.shape) -> np.ndarray:
    mask = load_object_mask(ObjectRecord(mask=path, label=label), hw, IMAGE)
    assert mask.dtype == np.uint8
    assert mask.shape == hw
    return mask


def save(folder: Path, image: Image.Image, name: str = "mask.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def palette(values: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(values, "P")
    image.putpalette(colours)
    return image


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(SHAPE),  # 0/1: every "> 128" rule would call it empty
        Image.fromarray(SHAPE * 255),
        Image.fromarray(SHAPE.astype(bool)),
        Image.fromarray(SHAPE.astype(np.uint16) * 65535),
        Image.fromarray(SHAPE.astype(np.uint16)),
        Image.fromarray(np.repeat(SHAPE[..., None] * 255, 3, axis=2)),
        Image.fromarray(np.dstack([SHAPE * 255] * 3 + [np.full_like(SHAPE, 255)])),
        Image.fromarray(np.dstack([SHAPE * 255, np.full_like(SHAPE, 255)])),
        # the first index has the bright colour, as in many label tools
        palette(SHAPE, [255, 255, 255, 10, 0, 0]),
        palette(SHAPE * 7, [0, 0, 0] + [1, 2, 3] * 20),
    ],
    ids=["0/1", "0/255", "bool", "16bit", "16bit 0/1", "RGB", "RGBA", "LA", "palette", "palette index 7"],
)
def test_every_encoding_of_an_object_reads_the_same(tmp_path: Path, image: Image.Image) -> None:
    np.testing.assert_array_equal(read(save(tmp_path, image)), SHAPE * 255)


def test_float_tiff(tmp_path: Path) -> None:
    path = save(tmp_path, Image.fromarray(SHAPE.astype(np.float32) * 0.5), "mask.tif")
    np.testing.assert_array_equal(read(path), SHAPE * 128)
    with pytest.raises(DataError, match=r"within 0\.\.1.*big\.tif"):
        read(save(tmp_path, Image.fromarray(SHAPE.astype(np.float32) * 7), "big.tif"))


def test_soft_values_are_kept(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(save(tmp_path, Image.fromarray(SOFT)), hw=(1, 4)), SOFT)
    deep = Image.fromarray(SOFT.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read(save(tmp_path, deep, "deep.png"), hw=(1, 4)), SOFT)
    shallow = Image.fromarray(SOFT.astype(np.uint16))
    np.testing.assert_array_equal(read(save(tmp_path, shallow, "shallow.png"), hw=(1, 4)), SOFT)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels(tmp_path: Path, dtype: type) -> None:
    values = np.array([[0, 1, 2], [2, 2, 40]], dtype=dtype)
    values[0, 1] = np.iinfo(dtype).max
    path = save(tmp_path, Image.fromarray(values))
    for label in (2, 40, int(np.iinfo(dtype).max), 7):
        np.testing.assert_array_equal(read(path, label, (2, 3)), (values == label) * 255)
    np.testing.assert_array_equal(read(path, -1, (2, 3)), (values != 0) * 255)


def test_label_of_a_palette_file_is_the_index(tmp_path: Path) -> None:
    path = save(tmp_path, palette(SHAPE * 2, [9] * 9))
    np.testing.assert_array_equal(read(path, 2), SHAPE * 255)
    assert not read(path, 9).any()


def test_empty_mask_is_zeros(tmp_path: Path) -> None:
    assert not read(save(tmp_path, Image.fromarray(SHAPE * 0))).any()


def test_matte_only_on_request(tmp_path: Path) -> None:
    save(tmp_path, Image.fromarray(SHAPE), "mask.png")
    save(tmp_path, Image.fromarray(SHAPE * 99), "alpha.png")
    obj = ObjectRecord(mask=tmp_path / "mask.png", label=-1, alpha=tmp_path / "alpha.png")
    np.testing.assert_array_equal(load_object_mask(obj, SHAPE.shape, IMAGE), SHAPE * 255)
    np.testing.assert_array_equal(load_object_mask(obj, SHAPE.shape, IMAGE, use_alpha=True), SHAPE * 99)


def test_a_file_of_many_objects_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, Image.fromarray(SHAPE * 3))
    opened: list[object] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or original(file))
    masks = load_object_masks([ObjectRecord(mask=path, label=k) for k in (3, 4)], SHAPE.shape, IMAGE)
    assert [int(mask.sum()) for mask in masks] == [3 * 255, 0]
    assert len(opened) == 1


def test_size_mismatch_names_both_files_and_sizes(tmp_path: Path) -> None:
    path = save(tmp_path, Image.fromarray(SHAPE))
    with pytest.raises(DataError, match=r"mask\.png is 4 x 3.*photo\.jpg is 3 x 4"):
        read(path, hw=(4, 3))


def test_unusable_files_are_named(tmp_path: Path) -> None:
    whole = save(tmp_path, Image.fromarray(np.zeros((64, 64), np.uint8)), "whole.png").read_bytes()
    colour = np.zeros((3, 4, 3), np.uint8)
    colour[0, 0] = 200, 0, 0
    save(tmp_path, Image.fromarray(colour), "colour.png")
    drawn = np.dstack([np.zeros((3, 4, 3), np.uint8), SHAPE * 255])
    save(tmp_path, Image.fromarray(drawn), "drawn.png")
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    for name, text in (
        ("colour", "colour image"),
        ("drawn", "alpha channel"),
        ("cut", "cannot be decoded"),
        ("empty", "not an image"),
        ("text", "not an image"),
        ("absent", "not found"),
    ):
        with pytest.raises(DataError, match=text) as error:
            read(tmp_path / f"{name}.png")
        assert f"{name}.png" in str(error.value)


def test_exif_turns_mask_and_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright: rows are stored as columns
    path = save(tmp_path, Image.fromarray(SHAPE * 255), exif=exif)
    assert upright_hw(path) == (4, 3)
    np.testing.assert_array_equal(read(path, hw=(4, 3)), np.rot90(SHAPE * 255, -1))
    with pytest.raises(DataError, match=r"not found.*absent"):
        upright_hw(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png"):
        upright_hw(tmp_path / "text.png")
