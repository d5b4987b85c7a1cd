from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqsam.automatic.grids import checked_grids, image_crops, layer_grids, point_grid


def test_a_grid_is_the_centres_of_cells_row_by_row() -> None:
    np.testing.assert_allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    np.testing.assert_array_equal(point_grid(1), [[0.5, 0.5]])


def test_layers_have_fewer_points() -> None:
    assert [len(grid) for grid in layer_grids(8, 2, 2)] == [64, 16, 4]
    assert [len(grid) for grid in layer_grids(3, 1, 2)] == [9, 1]


def test_a_layer_without_points_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"leave \[2, 0\] points a side"):
        layer_grids(2, 1, 3)


def test_given_grids() -> None:
    first, second = checked_grids([[[0, 1]], np.zeros((0, 2))], 1)
    assert first.dtype == np.float64 and first.shape == (1, 2)
    assert second.shape == (0, 2)


@pytest.mark.parametrize(
    ("grids", "layers", "message"),
    [
        ([[[0.5, 0.5]]], 1, "2 point grids, got 1"),
        ([], 0, "1 point grids, got 0"),
        ([[0.5, 0.5]], 0, r"\(P, 2\), got \(2,\)"),
        ([[[0.5, 1.5]]], 0, r"within \[0, 1\]"),
        ([[[0.5, float("nan")]]], 0, r"within \[0, 1\]"),
    ],
)
def test_wrong_grids(grids: list[object], layers: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_grids(grids, layers)  # type: ignore[arg-type]


def test_crops_of_one_layer() -> None:
    boxes = [crop.box for crop in image_crops(300, 500, 1, 512 / 1500)]
    # the overlap is 102 pixels
    assert boxes == [
        (0, 0, 500, 300),
        (0, 0, 301, 201),
        (0, 99, 301, 300),
        (199, 0, 500, 201),
        (199, 99, 500, 300),
    ]
    assert [crop.size for crop in image_crops(300, 500, 1, 512 / 1500)][:2] == [(300, 500), (201, 301)]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3), st.floats(0, 1))
def test_crops_cover_the_image_and_have_pixels(height: int, width: int, layers: int, overlap: float) -> None:
    crops = image_crops(height, width, layers, overlap)
    for layer in range(layers + 1):
        seen = np.zeros((height, width), dtype=bool)
        for crop in crops:
            x0, y0, x1, y1 = crop.box
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            if crop.layer == layer:
                seen[y0:y1, x0:x1] = True
        assert seen.all()
