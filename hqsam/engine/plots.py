"""Plots as PNG files: lines with axes and a legend, and the scores of single objects against each other."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
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
COLUMN_COLORS: dict[str, Color] = {"sam": RED, "hq": GREEN, "sum": BLUE}
COLORS: tuple[Color, ...] = (BLUE, RED, GREEN)
"""In the order in which lines are given; the last is used again for more."""

_SIZE = (840, 400)
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 28, 40, 50
_FONT = 14
_GRID, _INK = (226, 226, 226), (60, 60, 60)
_FAINT = 0.28
"""Share of its colour that the unsmoothed values of a smoothed line keep."""
_INTERVALS = 5
_SQUARE, _SIDE = 460, 190
"""Side of a scatter plot's square, and the width of the legend beside it."""
_LONGEST = 18
"""Letters of a name in that legend."""
_MARKED = 40
"""Values of a line up to which each has a mark."""


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: in the legend.
        x: where the values belong, steps for instance; at least one.
        values: as many finite numbers.
        color: RGB; None takes the next of `COLORS`.
    """

    name: str
    x: Sequence[float]
    values: Sequence[float]
    color: Color | None = None


def draw_plot(
    path: Path,
    title: str,
    lines: Sequence[Line],
    *,
    smooth: bool = False,
    x_label: str = "step",
    whole: bool = True,
) -> None:
    """Draw lines.

    Args:
        path: PNG file, replaced atomically.
        title: above the plot.
        lines: at least one.
        smooth: show the running mean of each line, and its own values faintly behind. Otherwise values have marks where
            they are few.
        x_label: what the horizontal axis shows.
        whole: only whole numbers are marked on the horizontal axis.

    Raises:
        ValueError: no lines, or a line without values.
        OutputError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not lines or any(len(line.x) != len(line.values) or not line.values for line in lines):
        raise ValueError("a plot needs at least one line, and each line as many values as places, at least one")
    sheet = Image.new("RGB", _SIZE, "white")
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(_FONT)
    frame = _Frame.around(lines, whole)
    _draw_axes(draw, frame, title, x_label)
    colors = [line.color or COLORS[min(k, len(COLORS) - 1)] for k, line in enumerate(lines)]
    curves = [np.asarray(line.values, dtype=float) for line in lines]
    if smooth:
        for line, values, color in zip(lines, curves, colors, strict=True):
            faint = tuple(round(255 - _FAINT * (255 - part)) for part in color)
            draw.line(frame.points(line.x, values), fill=faint, width=1)
    for line, values, color in zip(lines, curves, colors, strict=True):
        points = frame.points(line.x, running_mean(values) if smooth else values)
        draw.line(points, fill=color, width=3, joint="curve")
        few = len(points) == 1 or (not smooth and len(points) <= _MARKED)
        for x, y in points if few else []:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
    _draw_legend(draw, [line.name for line in lines], colors)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def draw_scatter(
    path: Path, title: str, groups: Mapping[str, Sequence[tuple[float, float]]], x_label: str, limit: float = 100.0
) -> None:
    """Draw points in a square from 0 to `limit` with its diagonal: what lies above it is better vertically.

    Args:
        path: PNG file, replaced atomically.
        title: above the plot; says what the vertical axis is.
        groups: name in the legend -> points (x, y) within 0..limit.
        x_label: what the horizontal axis shows.
        limit: largest value of both axes.

    Raises:
        OutputError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    size = (_SQUARE + _LEFT + _RIGHT + _SIDE, _SQUARE + _TOP + _BOTTOM)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.font = ImageFont.load_default(_FONT)
    ticks = nice_ticks(0.0, limit)
    frame = _Frame(ticks, ticks, (0.0, limit), (size[0] - _SIDE, size[1]))
    _draw_axes(draw, frame, title, x_label)
    draw.line([(frame.column(0), frame.row(0)), (frame.column(limit), frame.row(limit))], fill=_INK)
    for k, (name, points) in enumerate(groups.items()):
        color = _hue(k, len(groups))
        for x, y in points:
            column, row = frame.column(x), frame.row(y)
            draw.ellipse((column - 3, row - 3, column + 3, row + 3), outline=color, width=2)
        row = _TOP + 4 + 20 * k
        if row < size[1] - 20:
            left = size[0] - _SIDE
            draw.ellipse((left, row, left + 8, row + 8), outline=color, width=2)
            draw.text((left + 14, row + 4), f"{name[:_LONGEST]} ({len(points)})", fill=_INK, anchor="lm")
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _hue(number: int, count: int) -> Color:
    """Colours around the wheel, so that many groups can be told apart."""
    red, green, blue = colorsys.hsv_to_rgb(number / max(1, count), 0.85, 0.78)
    return round(255 * red), round(255 * green), round(255 * blue)


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
    size: tuple[int, int] = _SIZE

    @staticmethod
    def around(lines: Sequence[Line], whole: bool) -> _Frame:
        places = [place for line in lines for place in line.x]
        values = [float(value) for line in lines for value in line.values]
        low, high = float(min(places)), float(max(places))
        if low == high:
            low, high = low - 1, high + 1
        x_ticks = [tick for tick in nice_ticks(low, high, 8, whole=whole) if low <= tick <= high]
        return _Frame(x_ticks, nice_ticks(min(values), max(values)), (low, high))

    def column(self, place: float) -> float:
        low, high = self.x_range
        return _LEFT + (place - low) / (high - low) * (self.size[0] - _LEFT - _RIGHT)

    def row(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.size[1] - _BOTTOM - (value - low) / (high - low) * (self.size[1] - _TOP - _BOTTOM)

    def points(self, places: Sequence[float], values: NDArray[np.float64]) -> list[tuple[float, float]]:
        return [(self.column(place), self.row(value)) for place, value in zip(places, values.tolist(), strict=True)]


def _draw_axes(draw: ImageDraw, frame: _Frame, title: str, x_label: str) -> None:
    left, right, bottom = _LEFT, frame.size[0] - _RIGHT, frame.size[1] - _BOTTOM
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
        draw.text((column, bottom + 8), f"{tick:.6g}", fill=_INK, anchor="ma")
    draw.line([(left, _TOP), (left, bottom), (right, bottom)], fill=_INK)
    draw.text((left, 10), title, fill="black")
    draw.text(((left + right) / 2, frame.size[1] - 6), x_label, fill=_INK, anchor="md")


def _draw_legend(draw: ImageDraw, names: Sequence[str], colors: Sequence[Color]) -> None:
    """In one row at the top right."""
    column = float(_SIZE[0] - _RIGHT)
    for name, color in list(zip(names, colors, strict=True))[::-1]:
        column -= draw.textlength(name)
        draw.text((column, 10), name, fill=_INK)
        column -= 28
        draw.line([(column, 18), (column + 20, 18)], fill=color, width=3)
        column -= 18
