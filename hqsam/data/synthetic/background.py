"""Backgrounds: dead leaves, plain surfaces, landscapes, rooms, foliage, out-of-focus lights."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from hqsam.data.synthetic.living import outline
from hqsam.data.synthetic.textures import (
    ByteArray,
    FloatArray,
    Rng,
    fractal_noise,
    log_uniform,
    material_color,
    palette,
    resize,
    texture,
)


def _rgb(color: FloatArray) -> tuple[float, ...]:
    return tuple(float(c) for c in np.clip(color, 0, 255))


def dead_leaves(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    """Overlapping textured shapes of power-law sizes, the simplest model with the statistics of natural images."""
    long_side = max(hw)
    families = np.stack([palette(rng, 5) for _ in range(int(rng.integers(2, 7)))])
    middle = families.mean(axis=(0, 1))
    colors = middle + np.float32(rng.uniform(0.3, 1.0)) * (families - middle)
    base = texture(rng, hw, colors[0])
    # The fourth channel says which of two detail textures a leaf wears.
    canvas = np.dstack([base, np.zeros(hw, np.uint8)])
    count, smallest = int(log_uniform(rng, 80, 1200)), log_uniform(rng, 0.006, 0.03)
    largest = rng.uniform(0.12, 0.4)
    # Inverse of the distribution function of p(r) ~ r^-3 between the two limits.
    u = rng.random(count)
    radii = long_side / np.sqrt(u / largest**2 + (1 - u) / smallest**2)
    straight, rough = rng.random(), log_uniform(rng, 0.03, 0.6)
    for radius in radii:
        center = rng.uniform(-0.05, 1.05, 2) * (hw[1], hw[0])
        color = colors[int(rng.integers(len(colors)))][int(rng.integers(5))] * rng.uniform(0.75, 1.25)
        value = (*_rgb(color), float(rng.integers(0, 256)))
        angle, ratio = rng.uniform(0, 360), rng.uniform(0.3, 1.0)
        if rng.random() < straight * 0.7:
            box = ((float(center[0]), float(center[1])), (2 * radius, 2 * radius * ratio), angle)
            cv2.fillConvexPoly(canvas, np.rint(cv2.boxPoints(box) * 16).astype(np.int32), value, cv2.LINE_AA, 4)
        else:
            points = outline(rng, rough, radius, 20 if radius < 12 else 48) * (1.0, ratio)
            turn = np.deg2rad(angle)
            points = points @ np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
            cv2.fillPoly(canvas, [np.rint((points + center) * 16).astype(np.int32)], value, cv2.LINE_AA, 4)
    rgb, choice = np.ascontiguousarray(canvas[..., :3]), canvas[..., 3].astype(np.float32) / 255
    first, second = fractal_noise(rng, hw, 0.75, 20), fractal_noise(rng, hw, 0.5, 8)
    strength = np.float32(log_uniform(rng, 0.1, 0.8))
    gain = 1 + strength * (first * choice + second * (1 - choice) - np.float32(0.5))
    return shade(rgb, gain.astype(np.float32))


def shade(image: ByteArray, gain: FloatArray) -> ByteArray:
    """Multiply RGB (H, W, 3) uint8 by a gain (H, W), rounded and clipped."""
    scaled = cv2.multiply(image, cv2.merge([gain, gain, gain]), dtype=cv2.CV_8U)
    return np.asarray(scaled, dtype=np.uint8)


def _surface(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    return texture(rng, hw, palette(rng, 5))


def _plain(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    return texture(rng, hw, palette(rng, 3, spread=rng.uniform(0.03, 0.3)), "smooth")


def _perspective(rng: Rng, hw: tuple[int, int], image: ByteArray) -> ByteArray:
    """Lay a texture down as a plane that recedes towards the top."""
    h, w = hw
    pinch = rng.uniform(0.15, 0.45)
    source = np.array([(w * pinch, 0), (w * (1 - pinch), 0), (w, h), (0, h)], np.float32)
    goal = np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float32)
    # The whole texture is squeezed into the far end; reflection fills what it leaves open at the sides.
    matrix = cv2.getPerspectiveTransform(source, goal)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(image, matrix, (w, h), flags=flags, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(warped, dtype=np.uint8)


def _landscape(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    h, w = hw
    horizon = int(h * rng.uniform(0.2, 0.75))
    sky_color = np.array([rng.uniform(90, 220), rng.uniform(140, 225), rng.uniform(180, 250)], np.float32)
    sky_colors = palette(rng, 4, sky_color, rng.uniform(0.05, 0.5))
    sky = texture(rng, (max(horizon, 2), w), sky_colors, rng.choice(["smooth", "cloud"]))
    ground = texture(rng, (h - horizon, w), palette(rng, 5), rng.choice(["rough", "cloud", "fibre", "cells", "spots"]))
    image = np.concatenate([sky[:horizon], _perspective(rng, (h - horizon, w), ground)])
    for _ in range(int(rng.integers(0, 4))):
        # A ridge, hedge or skyline along the horizon.
        steps = fractal_noise(rng, (8, max(w // 4, 8)), rng.uniform(0.3, 0.8), rng.uniform(2, 8))[4]
        edge = horizon - h * (rng.uniform(0, 0.1) + rng.uniform(0.02, 0.3) * np.clip(steps, 0, 1))
        if rng.random() < 0.3:
            edge = np.repeat(edge[:: max(1, len(edge) // 20)], max(1, len(edge) // 20))[: len(edge)]
        x = np.linspace(0, w, len(edge))
        line = np.concatenate([np.stack([x, edge], 1), [(w, horizon + 3), (0, horizon + 3)]])
        cover = np.zeros(hw, np.uint8)
        cv2.fillPoly(cover, [np.rint(line * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        strip = slice(max(0, int(edge.min()) - 2), min(h, horizon + 5))
        size = (strip.stop - strip.start, w)
        alpha = cover[strip, :, None].astype(np.float32) / 255
        hill = texture(rng, size, palette(rng, 4), rng.choice(["rough", "cloud", "cells"]))
        image[strip] = np.rint(image[strip] * (1 - alpha) + hill * alpha).astype(np.uint8)
    return image


def _room(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    h, w = hw
    edge = int(h * rng.uniform(0.45, 0.85))
    wall = texture(rng, (edge, w), palette(rng, 4, spread=rng.uniform(0.05, 0.5)))
    kind = rng.choice(["wood", "bricks", "cloth", "cloud", "smooth"])
    floor = texture(rng, (h - edge, w), palette(rng, 4), kind)
    image = np.concatenate([wall, _perspective(rng, (h - edge, w), floor)])
    skirting = 1 + int(log_uniform(rng, 0.002, 0.03) * h)
    cv2.line(image, (0, edge), (w, edge), _rgb(material_color(rng)), skirting, cv2.LINE_AA)
    for _ in range(int(rng.integers(1, 7))):
        # Pictures, windows, cupboards, shelves.
        bw, bh = int(w * log_uniform(rng, 0.05, 0.4)), int(h * log_uniform(rng, 0.05, 0.5))
        x, y = int(rng.uniform(-0.1, 0.95) * w), int(rng.uniform(-0.1, 0.9) * edge)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + bw, w), min(y + bh, h)
        if x1 - x0 < 8 or y1 - y0 < 8:
            continue
        image[y0:y1, x0:x1] = texture(rng, (y1 - y0, x1 - x0), palette(rng, 4))
        frame = int(log_uniform(rng, 1, 0.02 * h + 1))
        cv2.rectangle(image, (x, y), (x + bw, y + bh), _rgb(material_color(rng)), frame, cv2.LINE_AA)
    return image


def _foliage(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    """Many strokes in a common direction family: grass, straw, twigs, fur."""
    colors = palette(rng, 6)
    image = np.ascontiguousarray(texture(rng, hw, colors * 0.6, "cloud"))
    count, long_side = int(log_uniform(rng, 300, 1800)), max(hw)
    lean, spread, length = rng.uniform(0, np.pi), rng.uniform(0.1, 1.2), log_uniform(rng, 0.03, 0.25) * long_side
    width = max(1, int(log_uniform(rng, 0.001, 0.012) * long_side))
    roots = rng.uniform(-0.1, 1.1, (count, 2)) * (hw[1], hw[0])
    turn = lean + rng.normal(0, spread, (count, 1)) + rng.normal(0, 0.6, (count, 1)) * np.linspace(0, 1, 5)
    steps = length * rng.uniform(0.4, 1.2, (count, 1)) / 4
    lines = roots[:, None] + np.cumsum(np.stack([np.cos(turn) * steps, np.sin(turn) * steps], axis=2), axis=1)
    fixed = np.rint(lines * 16).astype(np.int32)
    light = rng.uniform(0.6, 1.4, count)
    for k in range(count):
        color = _rgb(colors[int(light[k] * 1000) % 6] * light[k])
        cv2.polylines(image, [fixed[k]], False, color, width, cv2.LINE_AA, 4)
    return image


def _bokeh(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    """Strongly defocused leaves with discs of light."""
    small = (max(16, hw[0] // 4), max(16, hw[1] // 4))
    image = cv2.GaussianBlur(dead_leaves(rng, small), (0, 0), log_uniform(rng, 0.006, 0.03) * max(small))
    radius = log_uniform(rng, 0.01, 0.05) * max(small)
    lights = image.copy()
    for _ in range(int(rng.integers(3, 40)) if rng.random() < 0.5 else 0):
        x, y = rng.uniform(0, 1, 2) * (small[1], small[0])
        color = _rgb(material_color(rng) * 0.5 + 120)
        reach = int(radius * 16 * rng.uniform(0.7, 1.2))
        cv2.circle(lights, (int(x * 16), int(y * 16)), reach, color, -1, cv2.LINE_AA, 4)
    image = cv2.addWeighted(image, 0.45, lights, 0.55, 0)
    return np.asarray(resize(image, hw, cv2.INTER_CUBIC), dtype=np.uint8)


def _patchwork(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    """Two or three textures with a ragged border between them."""
    image = texture(rng, hw, palette(rng, 5))
    for _ in range(int(rng.integers(1, 3))):
        field = fractal_noise(rng, hw, rng.uniform(0.25, 0.6), rng.uniform(1.5, 5))
        share = np.clip((field - np.float32(rng.uniform(0.4, 0.65))) * np.float32(log_uniform(rng, 5, 80)) + 0.5, 0, 1)
        share = share[..., None]
        image = np.rint(image * (1 - share) + texture(rng, hw, palette(rng, 5)) * share).astype(np.uint8)
    return image


KINDS: dict[str, tuple[float, Callable[[Rng, tuple[int, int]], ByteArray]]] = {
    "dead_leaves": (0.22, dead_leaves),
    "surface": (0.13, _surface),
    "plain": (0.10, _plain),
    "landscape": (0.18, _landscape),
    "room": (0.13, _room),
    "foliage": (0.08, _foliage),
    "bokeh": (0.08, _bokeh),
    "patchwork": (0.08, _patchwork),
}


def background(rng: Rng, hw: tuple[int, int]) -> ByteArray:
    """Draw a background RGB (H, W, 3) uint8 of a random kind of `KINDS`."""
    weights = np.array([weight for weight, _ in KINDS.values()])
    kind = list(KINDS)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    return KINDS[kind][1](rng, hw)
