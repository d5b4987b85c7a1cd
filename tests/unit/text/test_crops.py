from __future__ import annotations

import numpy as np
import pytest

from hqsam.text import object_crop

IMAGE = np.full((40, 60, 3), 200, np.uint8)


def rectangle(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask


def test_the_square_keeps_the_shape_of_the_object() -> None:
    """A box of 20 x 10 becomes the middle half of a square of 20: nothing is stretched."""
    crop = object_crop(IMAGE, rectangle(15, 25, 20, 40), 20, blank=True)
    assert crop.shape == (20, 20, 3)
    assert (crop[5:15] == 200).all()
    assert (crop[:5] == 0).all()
    assert (crop[15:] == 0).all()


def test_scale_enlarges_the_box() -> None:
    crop = object_crop(IMAGE, rectangle(15, 25, 25, 35), 20, scale=2.0, blank=True)
    assert (crop[5:15, 5:15] == 200).all()
    crop[5:15, 5:15] = 0
    assert (crop == 0).all()


def test_the_surroundings_stay_unless_they_are_blanked() -> None:
    crop = object_crop(IMAGE, rectangle(15, 25, 20, 40), 20)
    assert (crop == 200).all()


def test_beyond_the_image_is_black() -> None:
    crop = object_crop(IMAGE, rectangle(0, 40, 0, 60), 60)
    assert (crop[:10] == 0).all()
    assert (crop[10:50] == 200).all()
    assert (crop[50:] == 0).all()


def test_one_pixel() -> None:
    assert (object_crop(IMAGE, rectangle(0, 1, 0, 1), 4) == 200).all()


@pytest.mark.parametrize(
    ("mask", "scale", "message"),
    [
        (rectangle(0, 0, 0, 0), 1.0, "without pixels"),
        (np.full((40, 60), 100, np.uint8), 1.0, "without pixels"),
        (np.full((60, 40), 255, np.uint8), 1.0, "agree in size"),
        (rectangle(0, 9, 0, 9), 0.5, "1 or more, got 0.5"),
    ],
)
def test_wrong_arguments(mask: np.ndarray, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        object_crop(IMAGE, mask, 8, scale=scale)
