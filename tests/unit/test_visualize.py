from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.visualize import draw_box, draw_mask, enlarge, side_by_side

Array = NDArray[np.uint8]


def grey(height: int = 40, width: int = 60) -> Array:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def square(shape: tuple[int, int] = (40, 60)) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[10:30, 20:40] = True
    return mask


def test_blend_contour_and_surroundings() -> None:
    image = grey()
    out = draw_mask(image, square(), (200, 0, 100), alpha=0.5)
    assert out.dtype == np.uint8 and out.shape == image.shape
    assert (image == 100).all()
    assert out[20, 30].tolist() == [150, 50, 100]
    assert out[10, 30].tolist() == [200, 0, 100]
    assert (out[:7] == 100).all() and (out[:, 45:] == 100).all()


def test_hole_has_a_contour_and_no_colour() -> None:
    mask = square()
    mask[17:23, 27:33] = False
    out = draw_mask(grey(), mask, (200, 0, 100), alpha=0.5)
    assert out[20, 30].tolist() == [100, 100, 100]
    assert out[16, 30].tolist() == [200, 0, 100]


@pytest.mark.parametrize("value", [False, True])
def test_empty_and_full_masks(value: bool) -> None:
    out = draw_mask(grey(), np.full((40, 60), value), (0, 0, 0), alpha=1.0)
    assert (out == (0 if value else 100)).all()


def test_one_pixel_image() -> None:
    assert draw_mask(grey(1, 1), np.ones((1, 1), dtype=bool), (9, 9, 9)).tolist() == [[[9, 9, 9]]]


def test_box() -> None:
    out = draw_box(grey(), [20, 10, 39.4, 29.0], (0, 255, 0))
    assert out[10, 30].tolist() == out[20, 39].tolist() == [0, 255, 0]
    assert (out[15:25, 25:35] == 100).all()


def test_panels() -> None:
    sheet = side_by_side([grey(40, 60), grey(20, 300)], ["a title wider than its panel", "b"])
    assert sheet.dtype == np.uint8 and sheet.shape[0] > 40 and sheet.shape[1] > 360 + 60
    assert (sheet[:, 0] == 255).all() and (sheet[-1] == 255).all()
    plain = side_by_side([grey(40, 60), grey(20, 300)])
    assert plain.shape[0] < sheet.shape[0] and (plain == 100).all(axis=2).sum() == 40 * 60 + 20 * 300


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB, got float64 \(40, 60, 3\)"):
        draw_mask(grey() / 255, square())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bool \(40, 60\) like the image, got bool \(40, 61\)"):
        draw_mask(grey(), square((40, 61)))
    with pytest.raises(ValueError, match=r"got uint8 \(40, 60\)"):
        draw_mask(grey(), square().astype(np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"alpha must be within 0\.\.1, got 2"):
        draw_mask(grey(), square(), alpha=2)
    with pytest.raises(ValueError, match="at least one, got"):
        side_by_side([])
    with pytest.raises(ValueError, match="each of 1 panels needs a title, got 2"):
        side_by_side([grey()], ["a", "b"])


def test_enlarge_cuts_and_resizes() -> None:
    image = grey()
    image[10:20, 30:50] = 200
    part = enlarge(image, (30, 10, 50, 20), long_side=100)
    assert part.shape == (50, 100, 3) and (part == 200).all()
    assert enlarge(image, (-5, -5, 500, 500), long_side=60).shape == (40, 60, 3)
    with pytest.raises(ValueError, match="has no pixel inside"):
        enlarge(image, (70, 0, 80, 10))
