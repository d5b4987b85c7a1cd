"""Boundary regions against the literal definition: pad with zeros, erode by a 3x3 square d times, subtract."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hqsam.metrics import boundary_iou, boundary_region
from hqsam.metrics.boundary import ring_width

Mask = NDArray[np.bool_]


def literal_region(mask: Mask, ratio: float) -> Mask:
    height, width = mask.shape
    core = mask
    for _ in range(max(1, round(ratio * math.sqrt(height**2 + width**2)))):
        padded = np.pad(core, 1)
        shifted = [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
        core = np.logical_and.reduce(shifted)
    return mask & ~core


def literal_iou(a: Mask, b: Mask, ratio: float) -> float:
    a, b = literal_region(a, ratio), literal_region(b, ratio)
    return (a & b).sum() / (a | b).sum() if (a | b).any() else 1.0


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
ratios = st.sampled_from([0.001, 0.02, 0.05, 0.2, 1.0])


@st.composite
def blobs(draw: st.DrawFn, shape: tuple[int, int]) -> Mask:
    """Random pixels, or a union of rectangles that has an interior."""
    if draw(st.booleans()):
        return draw(hnp.arrays(np.bool_, shape))
    mask = np.zeros(shape, dtype=bool)
    for _ in range(draw(st.integers(0, 4))):
        y, x = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        mask[y : draw(st.integers(y, shape[0])), x : draw(st.integers(x, shape[1]))] = draw(st.booleans())
    return mask


@settings(max_examples=300, deadline=None)
@given(st.data(), shapes, ratios)
def test_equals_literal_definition(data: st.DataObject, shape: tuple[int, int], ratio: float) -> None:
    a, b = data.draw(blobs(shape)), data.draw(blobs(shape))
    np.testing.assert_array_equal(boundary_region(a, ratio), literal_region(a, ratio))
    assert boundary_iou(a, b, ratio) == literal_iou(a, b, ratio)
    assert boundary_iou(a, b, ratio) == boundary_iou(b, a, ratio)


def test_large_mask_equals_literal_definition() -> None:
    y, x = np.mgrid[:150, :200]
    mask = np.hypot(y - 70, x - 90) < 60
    mask[60:80, :] = True
    np.testing.assert_array_equal(boundary_region(mask), literal_region(mask, 0.02))


def test_hand_computed_square() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:8, 2:8] = True  # d = 1: a ring of 20 pixels
    assert boundary_region(mask).sum() == 20
    inner = np.zeros_like(mask)
    inner[3:7, 3:7] = True  # its ring of 12 pixels lies inside the other's core
    assert boundary_iou(mask, inner) == 0.0
    assert boundary_iou(mask, mask) == 1.0


def test_image_border_is_boundary() -> None:
    region = boundary_region(np.ones((6, 8), dtype=bool))
    assert region.sum() == 6 * 8 - 4 * 6
    assert not region[1:-1, 1:-1].any()


def test_input_is_not_changed() -> None:
    mask = np.ones((9, 9), dtype=bool)
    boundary_region(mask)
    assert mask.all()


def test_non_contiguous_mask() -> None:
    mask = np.zeros((30, 40), dtype=bool)
    mask[4:28, 6:33] = True
    np.testing.assert_array_equal(boundary_region(mask[::2, ::-1]), literal_region(mask[::2, ::-1], 0.02))


@pytest.mark.parametrize(("pred", "target", "expected"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (7, 5)])
def test_empty_and_full(pred: int, target: int, expected: float, shape: tuple[int, int]) -> None:
    assert boundary_iou(np.full(shape, pred, dtype=bool), np.full(shape, target, dtype=bool)) == expected


@pytest.mark.parametrize(("hw", "width"), [((1, 1), 1), ((480, 854), 20), ((1024, 1024), 29), ((30, 40), 1)])
def test_ring_width(hw: tuple[int, int], width: int) -> None:
    assert ring_width(hw) == width


@pytest.mark.parametrize("ratio", [0.0, -0.1, math.nan, math.inf])
def test_bad_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="positive number, got"):
        boundary_region(np.ones((3, 3), dtype=bool), ratio)


@pytest.mark.parametrize("mask", [np.ones((3, 3), dtype=np.uint8), np.ones((1, 3, 3), dtype=bool), [[True]]])
def test_bad_masks(mask: Mask) -> None:
    with pytest.raises(ValueError, match=r"\(H, W\) bool array, got"):
        boundary_region(mask)
    with pytest.raises(ValueError, match=r"pred must be an \(H, W\) bool array"):
        boundary_iou(mask, np.ones((3, 3), dtype=bool))


def test_shape_mismatch() -> None:
    with pytest.raises(ValueError, match=r"same shape, got \(3, 3\) and \(3, 4\)"):
        boundary_iou(np.ones((3, 3), dtype=bool), np.ones((3, 4), dtype=bool))
