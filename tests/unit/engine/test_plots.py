"""Plots that a run draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.engine.plots import COLORS, Line, draw_plot, draw_scatter, nice_ticks, running_mean
from hqsam.errors import OutputError


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [3.0, 1.0, -2.0], [1e-12, 1e6, 5.0], [1e-5] * 4])
def test_any_line_can_be_drawn(tmp_path: Path, values: list[float], smooth: bool) -> None:
    draw_plot(tmp_path / "a.png", "title", [Line("a", range(1, len(values) + 1), values)], smooth=smooth)
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    assert pixels.shape == (400, 840, 3)
    assert (pixels == COLORS[0]).all(axis=2).sum() > 50


def test_each_line_has_its_colour_where_its_values_are(tmp_path: Path) -> None:
    steps = [10, 20]
    draw_plot(tmp_path / "a.png", "t", [Line("low", steps, [1.0, 1.0]), Line("high", steps, [9.0, 9.0])])
    pixels = np.asarray(Image.open(tmp_path / "a.png"))[60:340]  # below the legend
    low, high = (np.flatnonzero((pixels == color).all(axis=2).any(axis=1)).mean() for color in COLORS[:2])
    assert low > high + 150  # rows count downwards


@pytest.mark.parametrize("lines", [[], [Line("a", [], [])], [Line("a", [1, 2], [1.0])]])
def test_nothing_to_draw(tmp_path: Path, lines: list[Line]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw_plot(tmp_path / "a.png", "t", lines)


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*a\.png: "):
        draw_plot(tmp_path / "file" / "a.png", "t", [Line("a", [1], [1.0])])


def test_running_mean() -> None:
    values = np.arange(40.0)
    means = running_mean(values)
    assert means[[0, 1, 20, 39]].tolist() == [1.0, 1.5, 20.0, 38.0]  # two on each side, where they are
    assert running_mean(values[:5]).tolist() == values[:5].tolist()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.13, 1.62, [1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]),
        (-3.0, 7.0, [-4, -2, 0, 2, 4, 6, 8]),
        (0.001, 0.001, [0.00094, 0.00096, 0.00098, 0.001, 0.00102, 0.00104, 0.00106]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_whole_ticks() -> None:
    assert nice_ticks(1, 3, 8, whole=True) == [1, 2, 3]


def test_points_lie_above_the_diagonal_where_the_vertical_value_is_larger(tmp_path: Path) -> None:
    draw_scatter(tmp_path / "s.png", "y", {"a": [(20.0, 80.0)], "b": [(50.0, 50.0), (0.0, 100.0)]}, "x")
    pixels = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    colored = pixels.max(axis=2) - pixels.min(axis=2) > 60
    rows, columns = np.nonzero(colored[:, :540])  # the legend is on the right of it
    assert len(rows) > 50
    near = (abs(rows - (40 + 0.2 * 460)) < 6) & (abs(columns - (72 + 0.2 * 460)) < 6)  # (20, 80)
    assert near.sum() > 10
