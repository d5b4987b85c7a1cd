"""Simulated prompts: where clicks fall, what points and noise are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hqsam.data.clicks import Click, central_click, correction_click, random_pixels, shaken_box, surplus_click

HW = (40, 60)


def box(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros(HW, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def test_the_first_click_is_at_the_centre() -> None:
    assert central_click(box(10, 5, 21, 16)) == Click(15, 10, True)
    assert central_click(np.ones((9, 9), dtype=np.bool_)) == Click(4, 4, True)  # beyond the image is outside
    two = box(2, 2, 7, 7) | box(20, 10, 35, 25)
    assert central_click(two) == Click(27, 17, True)  # of two parts the deeper
    assert correction_click(np.zeros(HW, dtype=np.bool_), two) == central_click(two)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_pixel_is_farther_from_the_outside(seed: int) -> None:
    mask = np.random.default_rng(seed).random((9, 11)) < 0.7
    if not mask.any():
        return
    y, x = np.nonzero(~np.pad(mask, 1))
    inside = np.argwhere(mask)
    depth = [np.hypot(y - r - 1, x - c - 1).min() for r, c in inside]
    click = central_click(mask)
    assert (click.y, click.x) == tuple(inside[int(np.argmax(np.round(depth, 4)))])


def test_a_click_says_what_is_wrong() -> None:
    truth = box(10, 10, 40, 30)
    missing = correction_click(box(10, 10, 25, 30), truth)
    assert missing is not None and missing.positive and 25 <= missing.x < 40
    surplus = correction_click(box(10, 10, 55, 30), truth)
    assert surplus is not None and not surplus.positive and 40 <= surplus.x < 55
    both = correction_click(box(14, 10, 55, 30), truth)  # four columns missing, fifteen too many
    assert both is not None and not both.positive
    assert correction_click(truth, truth) is None
    equal = correction_click(box(20, 10, 50, 30), truth)
    assert equal is not None and not equal.positive  # as deep on both sides


def test_no_pixel_is_clicked_twice() -> None:
    truth = np.zeros(HW, dtype=np.bool_)
    truth[5, 5:8] = True
    clicks: list[Click] = []
    nothing = np.zeros(HW, dtype=np.bool_)
    while (click := correction_click(nothing, truth, clicks)) is not None:
        clicks.append(click)
    assert sorted((c.x, c.y) for c in clicks) == [(5, 5), (6, 5), (7, 5)]


def test_nothing_to_click_on() -> None:
    nothing = np.zeros(HW, dtype=np.bool_)
    with pytest.raises(ValueError, match="no pixel inside"):
        central_click(nothing)
    with pytest.raises(ValueError, match="no pixel inside"):
        random_pixels(nothing, 3, np.random.default_rng(0))
    assert correction_click(nothing, nothing) is None


def test_random_points_are_different_pixels_of_the_object() -> None:
    mask = box(10, 5, 13, 9)
    points = random_pixels(mask, 5, np.random.default_rng(0))
    assert points.shape == (5, 2)
    assert len({tuple(p) for p in points.tolist()}) == 5
    assert all(mask[int(y), int(x)] for x, y in points)
    assert len(random_pixels(mask, 100, np.random.default_rng(0))) == 12


def test_noise_of_a_box() -> None:
    true = np.array([10, 10, 29, 19], dtype=np.float32)
    assert shaken_box(true, 0.0, HW, np.random.default_rng(0)).tolist() == true.tolist()
    boxes = np.stack([shaken_box(true, 0.4, (400, 600), np.random.default_rng(k)) for k in range(200)])
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2] + 1
    assert (np.abs(centres - [19.5, 14.5]) <= 0.2 * np.array([20, 10]) + 1e-4).all()
    assert (np.abs(sides / [20, 10] - 1) <= 0.4 + 1e-4).all()
    assert np.abs(sides / [20, 10] - 1).max() > 0.35
    one = shaken_box(np.array([3, 3, 3, 3], dtype=np.float32), 1.0, HW, np.random.default_rng(1))
    assert (one[2:] >= one[:2]).all()
    cut = shaken_box(np.array([0, 0, 59, 39], dtype=np.float32), 1.0, HW, np.random.default_rng(2))
    assert (cut >= 0).all() and (cut <= [59, 39, 59, 39]).all()
    with pytest.raises(ValueError, match="within 0 and 1"):
        shaken_box(true, 1.5, HW, np.random.default_rng(0))


def test_a_click_on_the_deepest_surplus() -> None:
    truth = np.zeros((40, 60), dtype=bool)
    truth[5:20, 5:20] = True
    pred = truth.copy()
    pred[5:20, 20:25] = True  # 5 wide, joined to the object
    pred[25:38, 40:53] = True  # 13 wide
    pred[38, 53] = True  # joined to it by a corner
    found = surplus_click(pred, truth)
    assert found is not None
    click, region = found
    assert click == Click(46, 31, False)
    assert region[25:38, 40:53].all() and region[38, 53] and region.sum() == 13 * 13 + 1
    assert surplus_click(pred, truth, min_depth=7.5) is None
    assert surplus_click(truth, truth) is None and surplus_click(np.zeros_like(truth), truth) is None
    assert surplus_click(truth, truth, min_depth=0) is None
    assert surplus_click(np.ones_like(truth), np.zeros_like(truth)) is not None
