"""Appearance of one object and its blending into a picture, with the alpha that really reaches the eye."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from hqsam.data.synthetic.shapes import Raster
from hqsam.data.synthetic.textures import (
    ByteArray,
    FloatArray,
    Rng,
    colorize,
    fractal_noise,
    log_uniform,
    palette,
    ramp,
    resize,
    texture_field,
)


@dataclass(frozen=True)
class Layer:
    """One object on the pixel grid, inside the window [y0:y0+h, x0:x0+w].

    Attributes:
        name: kind of object.
        y0: first row of the window.
        x0: first column of the window.
        alpha: (h, w) float32 opacity 0..1, blurred as the camera blurs it.
        listed: whether the object belongs into the scene's list.
    """

    name: str
    y0: int
    x0: int
    alpha: FloatArray
    listed: bool = True

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the layer in the image."""
        return slice(self.y0, self.y0 + self.alpha.shape[0]), slice(self.x0, self.x0 + self.alpha.shape[1])


@dataclass(frozen=True)
class Light:
    """The light of a scene: angle towards it in the image plane (radians), strengths 0..1, lengths in pixels."""

    angle: float
    modelling: float
    shadow: float
    softness: float
    reach: float


def draw_light(rng: Rng, size: int) -> Light:
    """Draw the light of a scene whose long side is size pixels."""
    shadow = rng.uniform(0.1, 0.6) if rng.random() < 0.75 else 0.0
    softness, reach = log_uniform(rng, 0.004, 0.04) * size, log_uniform(rng, 0.004, 0.06) * size
    modelling = rng.uniform(0.05, 0.55) if rng.random() < 0.75 else 0.0
    return Light(rng.uniform(-np.pi, 0), modelling, shadow, softness, reach)


def blurred(array: FloatArray, sigma: float) -> FloatArray:
    """Gaussian blur that leaves its input alone below a sigma with any effect."""
    if sigma < 0.25:
        return array
    return np.asarray(cv2.GaussianBlur(array, (0, 0), sigma), dtype=np.float32)


def relief(alpha: ByteArray, light: Light) -> FloatArray:
    """Brightness gain (h, w) of a body with this outline, round at its edges, under the light."""
    hw = (alpha.shape[0], alpha.shape[1])
    small = resize(alpha, (max(2, hw[0] // 3), max(2, hw[1] // 3)), cv2.INTER_AREA)
    depth = cv2.distanceTransform((small > 100).astype(np.uint8), cv2.DIST_L2, 3)
    top = max(float(depth.max()), 1.0)
    height = cv2.GaussianBlur(np.sqrt(depth * (2 * top - depth)), (0, 0), max(0.8, 0.06 * top))
    slope_x, slope_y = cv2.Sobel(height, cv2.CV_32F, 1, 0), cv2.Sobel(height, cv2.CV_32F, 0, 1)
    lit = -(slope_x * np.float32(np.cos(light.angle)) + slope_y * np.float32(np.sin(light.angle))) / 8
    return resize(1 + np.float32(light.modelling) * np.tanh(lit), hw)


def local_color(canvas: FloatArray, layer: Layer) -> FloatArray:
    """Mean RGB (3,) of the picture where the layer will lie."""
    step = max(1, max(layer.alpha.shape) // 48)
    patch = canvas[layer.window][::step, ::step].reshape(-1, 3)
    weight = layer.alpha[::step, ::step].reshape(-1) + np.float32(1e-3)
    return np.asarray((patch * weight[:, None]).sum(axis=0) / weight.sum(), dtype=np.float32)


def _family(rng: Rng, under: FloatArray, contrast: float) -> FloatArray:
    """Colours for an object on a ground of mean colour under; contrast is the least RGB distance between the two."""
    alike = rng.random() < 0.3
    base = under * np.exp(rng.normal(0, 0.25)) + rng.normal(0, 10, 3) if alike else None
    colors = palette(rng, 4, None if base is None else np.clip(base, 8, 247).astype(np.float32))
    gap = colors.mean(axis=0) - under
    distance = float(np.linalg.norm(gap))
    if distance < contrast:
        # Push along brightness, away from the nearer end of the range.
        sign = 1.0 if under.mean() < 110 + 30 * rng.random() else -1.0
        colors = colors + np.float32(sign * (contrast - distance * 0.5) / np.sqrt(3))
    return np.clip(colors, 2, 253).astype(np.float32)


def _add_markings(rng: Rng, color: FloatArray, colors: FloatArray) -> None:
    """Lay patches or stripes of a second texture over an object's colours in place: edges that are no boundary."""
    hw = (color.shape[0], color.shape[1])
    where = texture_field(rng, hw, str(rng.choice(["cloud", "stripes", "spots", "cells"])))
    share = np.clip((where - np.float32(rng.uniform(0.45, 0.65))) * np.float32(log_uniform(rng, 5, 60)) + 0.5, 0, 1)
    base = colors[int(rng.integers(len(colors)))] if rng.random() < 0.5 else None
    second = colorize(texture_field(rng, hw), ramp(rng, palette(rng, 3, base))).astype(np.float32)
    color += (second - color) * (share * np.float32(rng.uniform(0.4, 1.0)))[..., None]


def paint(rng: Rng, raster: Raster, under: FloatArray, light: Light) -> FloatArray:
    """Draw the colours (h, w, 3) float32 0..255 of an object on a ground of mean colour under (3,)."""
    hw = (raster.alpha.shape[0], raster.alpha.shape[1])
    colors = _family(rng, under, log_uniform(rng, 22, 90))
    parts, depth = rng.choice([0.0, rng.uniform(0.1, 0.6)], p=[0.2, 0.8]), log_uniform(rng, 0.25, 1.0)
    field = texture_field(rng, hw, "smooth" if rng.random() < 0.25 else None)
    index = (field - np.float32(0.5)) * np.float32(depth) + np.float32(0.5) + raster.tone * np.float32(parts)
    color = colorize(index, ramp(rng, colors)).astype(np.float32)
    if rng.random() < 0.35:
        _add_markings(rng, color, colors)
    gain = relief(raster.alpha, light)
    if rng.random() < 0.5:
        gain *= 1 + (fractal_noise(rng, hw, 0.3, 2) - np.float32(0.5)) * np.float32(rng.uniform(0.1, 0.6))
    if rng.random() < 0.5:
        gain *= 1 + (fractal_noise(rng, hw, 0.8, 30) - np.float32(0.5)) * np.float32(log_uniform(rng, 0.08, 0.6))
    color *= gain[..., None]
    if rng.random() < 0.15:
        color += (np.clip(gain - np.float32(1.15), 0, 1) * np.float32(rng.uniform(100, 300)))[..., None]
    return np.clip(color, 0, 255)


def cast_shadow(rng: Rng, canvas: FloatArray, layer: Layer, light: Light) -> None:
    """Darken the picture in place where the object keeps the light away."""
    if light.shadow <= 0 or rng.random() < 0.2:
        return
    size = (canvas.shape[0], canvas.shape[1])
    factor = max(2, int(light.softness / 2))
    small = (max(2, size[0] // factor), max(2, size[1] // factor))
    ground = np.zeros(small, np.float32)
    fy, fx = small[0] / size[0], small[1] / size[1]
    h, w = layer.alpha.shape
    patch = cv2.resize(layer.alpha, (max(1, round(w * fx)), max(1, round(h * fy))), interpolation=cv2.INTER_AREA)
    dx, dy = -np.cos(light.angle) * light.reach, -np.sin(light.angle) * light.reach
    lean = rng.uniform(0.25, 1.0) if rng.random() < 0.35 else 1.0
    # A lean below 1 lays the shadow down on the ground, hinged at the foot of the object.
    foot = (layer.y0 + h) * fy
    matrix = np.array([[1, (1 - lean) * -1.5 * np.cos(light.angle), layer.x0 * fx + dx * fx], [0, lean, 0.0]])
    matrix[0, 2] -= matrix[0, 1] * h * fy
    matrix[1, 2] = foot - lean * h * fy + dy * fy
    cv2.warpAffine(patch, matrix, (small[1], small[0]), dst=ground, flags=cv2.INTER_LINEAR)
    ground = cv2.GaussianBlur(ground, (0, 0), max(0.6, light.softness / factor))
    rows, columns = np.nonzero(ground.max(axis=1) > 0.01)[0], np.nonzero(ground.max(axis=0) > 0.01)[0]
    if len(rows) == 0 or len(columns) == 0:
        return
    r, c = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    y0, y1 = int(r.start / fy), min(size[0], int(np.ceil(r.stop / fy)))
    x0, x1 = int(c.start / fx), min(size[1], int(np.ceil(c.stop / fx)))
    gain = 1 - np.float32(light.shadow) * resize(ground[r, c], (y1 - y0, x1 - x0))
    canvas[y0:y1, x0:x1] *= gain[..., None]


def blend(canvas: FloatArray, layer: Layer, color: FloatArray) -> None:
    """Lay the colours (h, w, 3) over the picture in place, weighted by the layer's alpha."""
    view = canvas[layer.window]
    view += (color - view) * layer.alpha[..., None]


def visible_alphas(layers: Sequence[Layer], hw: tuple[int, int]) -> list[FloatArray]:
    """Alpha (h, w) of each layer, in its own window, that layers later in the list leave visible."""
    through = np.ones(hw, np.float32)
    result = []
    for layer in reversed(layers):
        view = through[layer.window]
        result.append(layer.alpha * view)
        view *= 1 - layer.alpha
    return result[::-1]
