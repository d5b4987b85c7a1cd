"""Vector shapes of fills and strokes in their own units, their placement, and exact anti-aliased rasterisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from hqsam.data.synthetic.textures import ByteArray, FloatArray, Rng

Point = Sequence[float] | NDArray[Any]  # xy
_SHIFT = 4  # fractional bits of the coordinates handed to OpenCV


@dataclass(frozen=True)
class Part:
    """One drawing step of a shape.

    Attributes:
        contours: (N, 2) xy arrays; a fill takes them all at once by the even-odd rule, a stroke has one.
        width: (N,) stroke widths in shape units, or None for a fill.
        cut: takes away from the shape instead of adding.
        tone: -1..1, where the part lies in the object's family of colours.
    """

    contours: tuple[FloatArray, ...]
    width: FloatArray | None = None
    cut: bool = False
    tone: float = 0.0


@dataclass
class Shape:
    """A list of parts, drawn in order; x to the right, y down, any unit (placement normalises the size)."""

    parts: list[Part] = field(default_factory=list)

    def fill(self, *contours: object, tone: float = 0.0) -> None:
        """Add a filled area bounded by closed contours (even-odd rule)."""
        self.parts.append(Part(tuple(np.asarray(c, dtype=np.float32) for c in contours), tone=tone))

    def cut(self, *contours: object) -> None:
        """Take an area away from what has been drawn so far."""
        self.parts.append(Part(tuple(np.asarray(c, dtype=np.float32) for c in contours), cut=True))

    def stroke(self, points: object, start: float, end: float | None = None, *, tone: float = 0.0) -> None:
        """Add a line with round ends whose width goes from start to end (constant when end is None)."""
        line = np.asarray(points, dtype=np.float32)
        width = np.linspace(start, start if end is None else end, len(line), dtype=np.float32)
        self.parts.append(Part((line,), width=width, tone=tone))

    def disc(self, center: Point, radius: float, ry: float | None = None, *, tone: float = 0.0) -> None:
        """Add an axis-aligned ellipse."""
        self.fill(arc(center, radius, radius if ry is None else ry), tone=tone)


@dataclass(frozen=True)
class Raster:
    """A shape on the pixel grid of an image, inside the window [y0:y0+h, x0:x0+w].

    Attributes:
        y0: first row of the window.
        x0: first column of the window.
        alpha: (h, w) uint8 coverage 0..255.
        tone: (h, w) float32, tone of the topmost part.
    """

    y0: int
    x0: int
    alpha: ByteArray
    tone: FloatArray


def arc(
    center: Point, rx: float, ry: float | None = None, start: float = 0.0, stop: float = 2 * np.pi, n: int = 48
) -> FloatArray:
    """Points (n, 2) on an ellipse; the last point of a full turn is left out."""
    angles = np.linspace(start, stop, n, endpoint=abs(stop - start) < 2 * np.pi - 1e-6)
    x, y = center[0] + rx * np.cos(angles), center[1] + (rx if ry is None else ry) * np.sin(angles)
    return np.stack([x, y], axis=1).astype(np.float32)


def curve(points: object, n: int = 24, *, closed: bool = False) -> FloatArray:
    """Catmull-Rom spline (about n points) through control points (K, 2)."""
    knots = np.asarray(points, dtype=np.float64)
    count = len(knots)
    if closed:
        padded = np.concatenate([knots[-1:], knots, knots[:2]])
        segments = count
    else:
        padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
        segments = count - 1
    where = np.linspace(0, segments, n, endpoint=not closed)
    index = np.minimum(where.astype(int), segments - 1)
    t = (where - index)[:, None]
    a, b, c, d = (padded[index + k] for k in range(4))
    result = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.asarray(result, dtype=np.float32)


def wander(rng: Rng, start: Point, angle: float, length: float, bend: float, n: int = 12) -> FloatArray:
    """A smooth random curve (n, 2) from start, leaving at an angle, turning by about bend radians on its way."""
    turn = np.cumsum(rng.normal(0, bend / np.sqrt(n), n)) + rng.normal(0, bend / 2) * np.linspace(0, 1, n)
    steps = length / (n - 1) * np.stack([np.cos(angle + turn), np.sin(angle + turn)], axis=1)
    points = np.concatenate([[[0.0, 0.0]], np.cumsum(steps[1:], axis=0)]) + np.asarray(start, dtype=np.float64)
    return points.astype(np.float32)


def _densify(points: FloatArray, step: float, closed: bool) -> tuple[FloatArray, FloatArray]:
    """Subdivide a polyline so that no edge is longer than step; also the fractional source index of each point."""
    ring = np.concatenate([points, points[:1]]) if closed else points
    lengths = np.linalg.norm(np.diff(ring, axis=0), axis=1)
    counts = np.clip(np.ceil(lengths / step), 1, 64).astype(int)
    index = np.concatenate([i + np.arange(k) / k for i, k in enumerate(counts)] + [[] if closed else [len(counts)]])
    source = np.arange(len(ring))
    dense = np.stack([np.interp(index, source, ring[:, k]) for k in range(2)], axis=1)
    return dense.astype(np.float32), index.astype(np.float32)


def bend(rng: Rng, shape: Shape, amount: float) -> Shape:
    """The shape under a smooth random deformation of about amount times its size."""
    low, high = bounds(shape)
    size = float(max(high - low))
    waves = rng.normal(0, 1, (3, 2)) * 2.5 / size
    phases, pushes = rng.uniform(0, 2 * np.pi, 3), rng.normal(0, amount * size / 1.7, (3, 2))
    parts = []
    for part in shape.parts:
        moved, width = [], part.width
        for contour in part.contours:
            if len(contour) > 1:
                contour, index = _densify(contour, size / 40, part.width is None)
                if part.width is not None:
                    width = np.interp(index, np.arange(len(part.width)), part.width).astype(np.float32)
            moved.append((contour + np.sin(contour @ waves.T + phases) @ pushes).astype(np.float32))
        parts.append(replace(part, contours=tuple(moved), width=width))
    return Shape(parts)


def bounds(shape: Shape) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest xy of all points of the shape that add to it."""
    points = np.concatenate([c for part in shape.parts if not part.cut for c in part.contours])
    return points.min(axis=0), points.max(axis=0)


def place(shape: Shape, center: Point, long_side: float, angle: float, squeeze: float, flip: bool) -> Shape:
    """Move a shape to pixel units: turned, mirrored, narrowed, its bounding box long_side pixels long around center.

    Args:
        shape: any shape.
        center: xy in pixels (pixel centres are whole numbers).
        long_side: pixels.
        angle: radians, applied after the other changes of form.
        squeeze: factor on the x axis.
        flip: mirror left to right.
    """
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-squeeze if flip else squeeze, 1.0])
    turned = [replace(p, contours=tuple((c @ matrix.T).astype(np.float32) for c in p.contours)) for p in shape.parts]
    low, high = bounds(Shape(turned))
    scale = long_side / max(float(max(high - low)), 1e-6)
    offset = np.asarray(center) - scale * (low + high) / 2
    width_scale = np.float32(scale * np.sqrt(abs(squeeze)))
    parts = []
    for part in turned:
        contours = tuple((c * scale + offset).astype(np.float32) for c in part.contours)
        parts.append(replace(part, contours=contours, width=None if part.width is None else part.width * width_scale))
    return Shape(parts)


def _fixed(points: FloatArray, corner: tuple[int, int], factor: int) -> NDArray[np.int32]:
    # Pixel centres are whole numbers on both grids, so the finer grid starts half a coarse pixel earlier.
    fine = (points - np.array(corner) + 0.5) * factor - 0.5
    return np.asarray(np.rint(fine * (1 << _SHIFT)), dtype=np.int32)


def _draw(canvas: ByteArray, part: Part, corner: tuple[int, int], factor: int, value: int, *, min_width: float) -> None:
    lines = [_fixed(c, corner, factor) for c in part.contours]
    if part.width is None:
        cv2.fillPoly(canvas, lines, value, cv2.LINE_8, _SHIFT)
        return
    thick = np.maximum(np.rint(np.maximum(part.width, min_width) * factor), 1).astype(int)
    if len(thick) < 2 or (thick == thick[0]).all():
        cv2.polylines(canvas, lines, False, value, int(thick[0]), cv2.LINE_8, _SHIFT)
        return
    line = lines[0]
    for k in range(len(line) - 1):
        start, end = (int(line[k, 0]), int(line[k, 1])), (int(line[k + 1, 0]), int(line[k + 1, 1]))
        cv2.line(canvas, start, end, value, int(thick[k] + thick[k + 1] + 1) // 2, cv2.LINE_8, _SHIFT)


def rasterize(shape: Shape, hw: tuple[int, int], *, margin: int = 0, min_width: float = 1.3) -> Raster | None:
    """Draw a shape given in pixels of an (H, W) image, at 3 or 4 times the resolution, averaged down.

    Args:
        shape: in pixel units, see `place`.
        hw: image height and width.
        margin: pixels to keep free around the shape where the image allows (room for blur).
        min_width: thinnest stroke in pixels.

    Returns:
        The raster in a window around the visible part of the shape; None when nothing lies in the image.
    """
    low, high = bounds(shape)
    widest = max([0.0] + [float(p.width.max()) for p in shape.parts if p.width is not None and not p.cut]) / 2
    edge = widest + margin + 2
    x0, y0 = (max(0, int(np.floor(low[k] - edge))) for k in range(2))
    x1, y1 = (min(hw[1 - k], int(np.ceil(high[k] + edge)) + 1) for k in range(2))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    size = (y1 - y0, x1 - x0)
    factor = 4 if size[0] * size[1] < 400_000 else 3
    fine = np.zeros((size[0] * factor, size[1] * factor), np.uint8)
    tones = np.full(size, 128, np.uint8)
    for part in shape.parts:
        _draw(fine, part, (x0, y0), factor, 0 if part.cut else 255, min_width=min_width)
        if not part.cut:
            # A pixel of excess on the tone map keeps a thin part's own tone up to its anti-aliased edge.
            tone = int(128 + 127 * np.clip(part.tone, -1, 1))
            _draw(tones, part, (x0, y0), 1, tone, min_width=min_width + 1)
    alpha = np.asarray(cv2.resize(fine, (size[1], size[0]), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if int(alpha.max()) < 128:
        return None
    return Raster(y0, x0, alpha, (tones.astype(np.float32) - np.float32(128)) / np.float32(127))
