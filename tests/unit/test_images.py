from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hqsam.boxes import mask_to_box, masks_to_boxes
from hqsam.errors import DataError
from hqsam.geometry import ResizeLongestSide, resized_hw
from hqsam.images import read_image, read_reduced, write_image


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_round_trip(tmp_path, rgb):
    write_image(tmp_path / "sub" / "a.png", rgb)
    assert np.array_equal(read_image(tmp_path / "sub" / "a.png"), rgb)


def test_kinds_of_files(tmp_path, rgb):
    gray = rgb[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    assert np.array_equal(read_image(tmp_path / "gray.png"), np.repeat(gray[..., None], 3, 2))
    Image.fromarray(np.dstack([rgb, gray])).save(tmp_path / "rgba.png")
    assert np.array_equal(read_image(tmp_path / "rgba.png"), rgb)
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 1], gray)
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == rgb.shape
    Image.fromarray(rgb[:1, :1]).save(tmp_path / "one.png")
    assert read_image(tmp_path / "one.png").shape == (1, 1, 3)


def test_exif_orientation_is_applied(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(rgb, -1))


def slope(height: int, width: int) -> np.ndarray:
    """Each pixel says where it is: red across, green down."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 250 / width, y * 250 / height, x * 0], axis=2).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_reduced_jpeg_is_the_same_picture_at_the_same_place(tmp_path, orientation, options):
    """At sizes that no reduction divides, an extent at the wrong edge would shift the picture."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(slope(203, 331)).save(path, exif=exif, quality=95, **options)
    full = Image.fromarray(read_image(path))
    for factor in (1.0, 1.9, 2.0, 3.0, 4.5, 8.0, 30.0):
        step = max(k for k in (1, 2, 4, 8) if k <= factor)
        pixels, extent = read_reduced(path, factor)
        assert pixels.shape[:2] == (-(-full.height // step), -(-full.width // step))
        assert (extent[2] - extent[0], extent[3] - extent[1]) == (full.width / step, full.height / step)
        small = np.asarray(Image.fromarray(pixels).resize((20, 20), Image.Resampling.BILINEAR, box=extent))
        expected = np.asarray(full.resize((20, 20), Image.Resampling.BILINEAR))
        assert np.abs(small.astype(int) - expected)[1:-1, 1:-1].max() <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_reduced_jpegs_of_other_colours(tmp_path, mode):
    Image.fromarray(slope(64, 96)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    pixels, extent = read_reduced(tmp_path / "a.jpg", 4.0)
    assert (pixels.shape, extent) == ((16, 24, 3), (0, 0, 24, 16))
    expected = np.asarray(Image.fromarray(read_image(tmp_path / "a.jpg")).resize((24, 16), Image.Resampling.BOX))
    assert np.abs(pixels.astype(int) - expected).max() <= 4


def test_other_formats_and_tiny_jpegs_are_not_reduced(tmp_path, rgb):
    write_image(tmp_path / "a.png", rgb)
    pixels, extent = read_reduced(tmp_path / "a.png", 8.0)
    assert np.array_equal(pixels, rgb)
    assert extent == (0, 0, 9, 6)
    write_image(tmp_path / "one.jpg", rgb[:1, :1])
    assert read_reduced(tmp_path / "one.jpg", 8.0)[1] == (0, 0, 1, 1)


def test_bad_files(tmp_path, rgb):
    write_image(tmp_path / "whole.jpg", np.repeat(np.repeat(rgb, 20, 0), 20, 1))
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    for name, text in (
        ("cut.jpg", "truncated"),
        ("empty.jpg", "0 bytes"),
        ("text.jpg", "not an image"),
        ("none.jpg", "not found"),
    ):
        with pytest.raises(DataError, match=text) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)


def test_resize_rule():
    assert resized_hw(480, 640, 1024) == (768, 1024)
    assert resized_hw(683, 1024, 1024) == (683, 1024)
    assert resized_hw(1, 3000, 1024) == (1, 1024)  # 0.34 would round to nothing
    with pytest.raises(ValueError, match="at least one pixel"):
        resized_hw(0, 5, 1024)


def test_coordinates_scale_per_axis():
    transform = ResizeLongestSide(1024)
    coords = np.array([[10, 20]])
    scaled = transform.apply_coords(coords, (333, 500))
    assert scaled.tolist() == [[10 * 1024 / 500, 20 * 682 / 333]]
    assert coords.tolist() == [[10, 20]]
    boxes = transform.apply_boxes(np.array([[0, 0, 500, 333]]), (333, 500))
    assert np.allclose(boxes, [[0, 0, 1024, 682]])


def test_boxes_of_masks():
    import torch

    mask = np.zeros((7, 8), bool)
    assert mask_to_box(mask) is None
    mask[2:5, 6] = True
    assert mask_to_box(mask).tolist() == [6, 2, 6, 4]
    stack = torch.from_numpy(np.stack([mask, np.zeros_like(mask), np.ones_like(mask)]))
    assert masks_to_boxes(stack).tolist() == [[6, 2, 6, 4], [0, 0, 0, 0], [0, 0, 7, 6]]
