"""Plots of a training run as PNG files: lines over steps, with axes and a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hqsam.checkpoints import atomic_path
from hqsam.visualize import BLUE, RED, Color

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

GREEN: Color = (35, 150, 90)
COLORS: tuple[Color, ...] = (BLUE, RED, GREEN)
"""In the order in which lines are given; the last is used again for more."""

_SIZE = (840, 400)
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 28, 40, 50
_FONT = 14
_GRID, _INK = (226, 226, 226), (60, 60, 60)
_FAINT = 0.28
"""Share of its colour that the unsmoothed values of a smoothed line keep."""
_INTERVALS = 5
_MARKED = 40
"""Values of a line up to which each has a mark."""


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: in the legend.
        steps: where the values belong; ascending, at least one.
        values: as many finite numbers.
        color: RGB; None takes the next of `COLORS`.
    """

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    color: Color | None = None


def draw_plot(path: Path, title: str, lines: Sequence[Line], *, smooth: bool = False) -> None:
    """Draw lines over steps.

    Args:
        path: PNG file, replaced atomically.
        title: above the plot.
        lines: at least one.
        smooth: show the running mean of each line, and its own values faintly behind. Otherwise values have marks where
            they are few.

    Raises:
        ValueError: no lines, or a line without values.
        OutputError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not lines or any(len(line.steps) != len(line.values) or not line.values for line in lines):
        raise ValueError("a plot needs at least one line, and each line as many values as steps, at least one")
    sheet = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(_FONT)
    frame = _Frame.around(lines)
    _draw_axes(draw, frame, title)
    colors = [line.color or COLORS[min(k, len(COLORS) - 1)] for k, line in enumerate(lines)]
    curves = [np.asarray(line.values, dtype=float) for line in lines]
    if smooth:
        for line, values, color in zip(lines, curves, colors, strict=True):
            faint = tuple(round(255 - _FAINT * (255 - part)) for part in color)
            draw.line(frame.points(line.steps, values), fill=faint, width=1)
    for line, values, color in zip(lines, curves, colors, strict=True):
        points = frame.points(line.steps, running_mean(values) if smooth else values)
        draw.line(points, fill=color, width=3, joint="curve")
        few = len(points) == 1 or (not smooth and len(points) <= _MARKED)
        for x, y in points if few else []:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
    _draw_legend(draw, [line.name for line in lines], colors)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each value and its neighbours, a twentieth of all of them on each side; as many values."""
    reach = len(values) // 20
    sums = np.cumsum(np.insert(values, 0, 0.0))
    place = np.arange(len(values))
    first, last = np.maximum(0, place - reach), np.minimum(len(values), place + reach + 1)
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def nice_ticks(low: float, high: float, intervals: int = _INTERVALS, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover low..high; at least two.

    Args:
        low: smallest value.
        high: largest value, not below `low`.
        intervals: about how many steps from one tick to the next.
        whole: whole numbers only.
    """
    span = high - low
    if span <= 1e-12 * max(abs(low), abs(high), 1e-300):
        span = max(abs(high), 1e-9) * 0.1  # a flat line lies in the middle
        low, high = low - span / 2, high + span / 2
    raw = span / intervals
    power = 10.0 ** math.floor(math.log10(raw))
    width = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    width = max(width, 1.0) if whole else width
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return [number * width for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Frame:
    """The plotting area: ticks of both axes and how values become pixels."""

    x_ticks: list[float]
    y_ticks: list[float]
    x_range: tuple[float, float]

    @staticmethod
    def around(lines: Sequence[Line]) -> _Frame:
        steps = [step for line in lines for step in line.steps]
        values = [float(value) for line in lines for value in line.values]
        low, high = float(min(steps)), float(max(steps))
        if low == high:
            low, high = low - 1, high + 1
        x_ticks = [tick for tick in nice_ticks(low, high, 8, whole=True) if low <= tick <= high]
        return _Frame(x_ticks, nice_ticks(min(values), max(values)), (low, high))

    def column(self, step: float) -> float:
        low, high = self.x_range
        return _LEFT + (step - low) / (high - low) * (_SIZE[0] - _LEFT - _RIGHT)

    def row(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return _SIZE[1] - _BOTTOM - (value - low) / (high - low) * (_SIZE[1] - _TOP - _BOTTOM)

    def points(self, steps: Sequence[int], values: NDArray[np.float64]) -> list[tuple[float, float]]:
        return [(self.column(step), self.row(value)) for step, value in zip(steps, values.tolist(), strict=True)]


def _draw_axes(draw: ImageDraw, frame: _Frame, title: str) -> None:
    left, right, bottom = _LEFT, _SIZE[0] - _RIGHT, _SIZE[1] - _BOTTOM
    width = frame.y_ticks[1] - frame.y_ticks[0]
    largest = max(abs(frame.y_ticks[0]), abs(frame.y_ticks[-1]))
    decimals = max(0, -math.floor(math.log10(width) + 1e-9))
    fixed = largest < 1e5 and decimals <= 4
    for tick in frame.y_ticks:
        row = frame.row(tick)
        draw.line([(left, row), (right, row)], fill=_GRID)
        text = f"{tick:.{decimals}f}" if fixed else f"{tick:.3g}"
        draw.text((left - 8, row), text, fill=_INK, anchor="rm")
    for tick in frame.x_ticks:
        column = frame.column(tick)
        draw.line([(column, bottom), (column, bottom + 5)], fill=_INK)
        draw.text((column, bottom + 8), f"{tick:.0f}", fill=_INK, anchor="ma")
    draw.line([(left, _TOP), (left, bottom), (right, bottom)], fill=_INK)
    draw.text((left, 10), title, fill="black")
    draw.text(((left + right) / 2, _SIZE[1] - 6), "step", fill=_INK, anchor="md")


def _draw_legend(draw: ImageDraw, names: Sequence[str], colors: Sequence[Color]) -> None:
    """In one row at the top right."""
    column = float(_SIZE[0] - _RIGHT)
    for name, color in list(zip(names, colors, strict=True))[::-1]:
        column -= draw.textlength(name)
        draw.text((column, 10), name, fill=_INK)
        column -= 28
        draw.line([(column, 18), (column + 20, 18)], fill=color, width=3)
        column -= 18
