"""Procedural colour textures with natural-image statistics: fields in 0..1 mapped through colour ramps.

Fields are cheap because the slow part (random numbers) is drawn on small arrays that are enlarged, warped or tiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
ByteArray = NDArray[np.uint8]
Rng = np.random.Generator

# Hue (degrees), saturation and value ranges of common materials, and how often each is drawn.
_MATERIALS: tuple[tuple[float, tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    (0.20, (60, 140), (0.15, 0.6), (0.15, 0.7)),  # foliage
    (0.22, (15, 45), (0.15, 0.6), (0.12, 0.75)),  # soil, wood, fur
    (0.10, (195, 225), (0.1, 0.55), (0.4, 0.95)),  # sky, water
    (0.20, (0, 360), (0.0, 0.1), (0.1, 0.95)),  # grey, white, black
    (0.10, (25, 55), (0.08, 0.35), (0.55, 0.95)),  # sand, stone, paper
    (0.14, (0, 360), (0.3, 0.85), (0.25, 0.95)),  # paint, cloth, flowers
)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draw one number whose logarithm is uniform between those of low and high."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def material_color(rng: Rng) -> FloatArray:
    """Draw an RGB colour (3,) 0..255 from a prior over natural and man-made materials."""
    weights = np.array([row[0] for row in _MATERIALS])
    _, hue, saturation, value = _MATERIALS[int(rng.choice(len(_MATERIALS), p=weights / weights.sum()))]
    h, s, v = (rng.uniform(*limits) for limits in (hue, saturation, value))
    return hsv_color(h, s, v)


def hsv_color(hue: float, saturation: float, value: float) -> FloatArray:
    """RGB (3,) 0..255 of a hue in degrees, a saturation and a value in 0..1."""
    offsets = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    chroma = value * saturation * np.clip(np.minimum(offsets, 4.0 - offsets), 0.0, 1.0)
    return np.asarray(255.0 * (value - chroma), dtype=np.float32)


def palette(rng: Rng, count: int, base: FloatArray | None = None, spread: float | None = None) -> FloatArray:
    """Draw related RGB colours (count, 3) 0..255, from dark to bright.

    Args:
        rng: source of randomness.
        count: number of colours.
        base: their centre (3,); drawn when None.
        spread: lightness range of the family as a share of its brightness; drawn when None.
    """
    center = material_color(rng) if base is None else base
    width = log_uniform(rng, 0.12, 1.1) if spread is None else spread
    gains = 1.0 + width * (np.linspace(-0.5, 0.5, count) + rng.normal(0, 0.08, count))
    tint = rng.normal(0, 0.05 + 0.08 * rng.random(), (count, 3))
    second = material_color(rng) if rng.random() < 0.25 else center
    share = np.linspace(0, rng.uniform(0.2, 1.0), count)[:, None] * (0.7 if second is not center else 0.0)
    colors = (center * (1 - share) + second * share) * np.clip(gains[:, None] + tint, 0.05, 3.0)
    return np.clip(colors + rng.uniform(-6, 10), 2, 253).astype(np.float32)


def ramp(rng: Rng, colors: FloatArray) -> ByteArray:
    """Colour table (1, 256, 3) that walks through colors (K, 3) with random stops."""
    stops = np.sort(rng.uniform(0, 255, len(colors)))
    stops[0], stops[-1] = 0, 255
    steps = np.arange(256)
    table = np.stack([np.interp(steps, stops, colors[:, c]) for c in range(3)], axis=1)
    return np.clip(np.rint(table), 0, 255).astype(np.uint8)[None]


def colorize(field: FloatArray, table: ByteArray) -> ByteArray:
    """Map a field (H, W), clipped to 0..1, through a colour table (1, 256, 3) to RGB (H, W, 3)."""
    index = cv2.convertScaleAbs(np.clip(field, 0, 1), alpha=255.0)
    return np.asarray(cv2.LUT(cv2.merge([index, index, index]), table), dtype=np.uint8)


def resize(array: NDArray[Any], hw: tuple[int, int], interpolation: int = cv2.INTER_LINEAR) -> FloatArray:
    """Resize an array to (height, width) = hw."""
    return np.asarray(cv2.resize(array, (hw[1], hw[0]), interpolation=interpolation))


def normal(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    """Unit normal noise (H, W) float32."""
    return rng.standard_normal(hw, dtype=np.float32)


def fractal_noise(rng: Rng, hw: tuple[int, int], persistence: float = 0.5, cells: float = 4.0) -> FloatArray:
    """Fractional Brownian noise (H, W), mean near 0.5 and most values in 0..1.

    Args:
        rng: source of randomness.
        hw: height and width.
        persistence: amplitude ratio of an octave to the next coarser one; 0.5 is close to a 1/f^2 power spectrum.
        cells: number of noise cells along the long side of the coarsest octave.
    """
    long_side = max(hw)
    levels = max(1, int(np.ceil(np.log2(long_side / cells))) + 1)
    # Octaves too weak to be seen after 8-bit rounding are not worth their random numbers.
    visible = 1 + int(np.log(0.02) / np.log(persistence)) if persistence < 0.9 else levels
    field = np.zeros((1, 1), np.float32)
    for level in range(min(levels, visible + 1)):
        scale = 2.0 ** (levels - 1 - level)
        size = (max(2, int(np.ceil(hw[0] / scale))), max(2, int(np.ceil(hw[1] / scale))))
        octave = normal(rng, size)
        if level:
            octave *= np.float32(persistence**level)
            octave += resize(field, size, cv2.INTER_CUBIC if max(size) < 400 else cv2.INTER_LINEAR)
        field = octave
    if field.shape != hw:
        field = resize(field, hw, cv2.INTER_CUBIC)
    sample = field[:: max(1, hw[0] // 64), :: max(1, hw[1] // 64)]
    gain = np.float32(0.2 / (float(sample.std()) + 1e-6))
    field *= gain
    field += np.float32(0.5 - float(sample.mean()) * float(gain))
    return field


def affine_tile(tile: FloatArray, hw: tuple[int, int], angle: float, scale: tuple[float, float]) -> FloatArray:
    """Cover (H, W) with a periodic tile, turned by an angle (radians); one tile pixel spans scale (x, y) pixels."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos / scale[0], sin / scale[0], 0.37], [-sin / scale[1], cos / scale[1], 0.71]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(tile, matrix, (hw[1], hw[0]), flags=flags, borderMode=cv2.BORDER_WRAP))


def coordinate(hw: tuple[int, int], angle: float) -> FloatArray:
    """Signed distance in pixels (H, W) from the centre line along direction angle."""
    y = (np.arange(hw[0], dtype=np.float32) - hw[0] / 2) * np.float32(np.sin(angle))
    x = (np.arange(hw[1], dtype=np.float32) - hw[1] / 2) * np.float32(np.cos(angle))
    return np.asarray(y[:, None] + x[None, :], dtype=np.float32)


def _cloud(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    return fractal_noise(rng, hw, rng.uniform(0.4, 0.62), log_uniform(rng, 1.5, 12))


def _rough(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    return fractal_noise(rng, hw, rng.uniform(0.62, 0.85), log_uniform(rng, 4, 40))


def _smooth(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    return fractal_noise(rng, hw, rng.uniform(0.2, 0.35), log_uniform(rng, 1.0, 3.0))


def _fibre(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    angle, width = rng.uniform(0, np.pi), log_uniform(rng, 1.0, 4.0)
    length = width * log_uniform(rng, 6, 40)
    field = affine_tile(normal(rng, (256, 64)), hw, angle, (length, width))
    field = field + affine_tile(normal(rng, (128, 64)), hw, angle + rng.normal(0, 0.1), (length * 2, width * 4))
    return field * np.float32(0.13) + fractal_noise(rng, hw, 0.35, 3)


def _wood(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    angle, period = rng.uniform(0, np.pi), max(hw) / log_uniform(rng, 5, 40)
    phase = coordinate(hw, angle) / np.float32(period)
    phase += fractal_noise(rng, hw, 0.4, 2) * np.float32(rng.uniform(2, 8))
    fibres = affine_tile(normal(rng, (256, 64)), hw, angle + np.pi / 2, (60.0, 1.5))
    return np.asarray(np.sin(phase) * np.float32(0.25) + fibres * np.float32(0.08) + np.float32(0.5), dtype=np.float32)


def _stripes(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    period = max(hw) / log_uniform(rng, 12, 90)
    phase = coordinate(hw, rng.uniform(0, np.pi)) / np.float32(period)
    phase += fractal_noise(rng, hw, 0.4, rng.uniform(2, 5)) * np.float32(rng.uniform(0, 6))
    wave = np.tanh(np.sin(phase) * np.float32(rng.uniform(0.5, 4)))
    return np.asarray(wave * np.float32(0.4) + np.float32(0.5), dtype=np.float32)


def _spots(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    field = fractal_noise(rng, hw, rng.uniform(0.2, 0.4), log_uniform(rng, 8, 50))
    steep = np.tanh((field - np.float32(rng.uniform(0.45, 0.65))) * np.float32(rng.uniform(4, 25)))
    return np.asarray(steep * np.float32(0.35) + np.float32(0.5), dtype=np.float32)


def _cloth(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    n = 128
    turns = 2 * np.pi * np.arange(n, dtype=np.float32) / 8
    tile = np.sin(turns)[:, None] * np.cos(turns)[None, :] if rng.random() < 0.5 else np.sin(turns[:, None] + turns)
    thread = normal(rng, (n, 1)) * 0.25 + normal(rng, (1, n)) * 0.25
    period = log_uniform(rng, 3.0, 14.0) / 8
    weave = affine_tile((tile + thread).astype(np.float32), hw, rng.uniform(0, np.pi), (period, period))
    return weave * np.float32(rng.uniform(0.08, 0.25)) + fractal_noise(rng, hw, 0.45, 3)


def _bricks(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    rows, columns, cell = 8, 6, 24
    tones = rng.uniform(0.35, 0.95, (rows, columns)).astype(np.float32)
    tile = np.repeat(np.repeat(tones, cell, axis=0), 2 * cell, axis=1)
    joint = rng.uniform(0.0, 0.3)
    tile[::cell], tile[1::cell] = joint, joint
    tile[:, :: 2 * cell], tile[:, 1 :: 2 * cell] = joint, joint
    if rng.random() < 0.7:
        for row in range(1, rows, 2):
            tile[row * cell : (row + 1) * cell] = np.roll(tile[row * cell : (row + 1) * cell], cell, axis=1)
    size = log_uniform(rng, 0.5, 4.0)
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    return affine_tile(tile, hw, angle, (size, size)) * np.float32(0.6) + _rough(rng, hw) * np.float32(0.4)


def _cells(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    small = (max(8, hw[0] // 2), max(8, hw[1] // 2))
    count = int(log_uniform(rng, 40, 2500))
    seeds = np.full(small, 255, np.uint8)
    seeds[rng.integers(0, small[0], count), rng.integers(0, small[1], count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    tones = rng.uniform(0.2, 0.8, count + 2).astype(np.float32)
    reach = np.float32(np.sqrt(small[0] * small[1] / count))
    field = tones[np.minimum(labels, count + 1)] - distance / reach * np.float32(rng.uniform(-0.2, 0.5))
    return resize(field, hw) * np.float32(0.8) + fractal_noise(rng, hw, 0.6, 20) * np.float32(0.2)


FIELDS: dict[str, tuple[float, Callable[[Rng, tuple[int, int]], FloatArray]]] = {
    "cloud": (0.2, _cloud),
    "rough": (0.18, _rough),
    "smooth": (0.17, _smooth),
    "fibre": (0.13, _fibre),
    "wood": (0.07, _wood),
    "stripes": (0.05, _stripes),
    "spots": (0.07, _spots),
    "cloth": (0.06, _cloth),
    "bricks": (0.03, _bricks),
    "cells": (0.04, _cells),
}


def texture_field(rng: Rng, hw: tuple[int, int], kind: str | None = None) -> FloatArray:
    """Draw a texture field (H, W) float32, most values in 0..1, of a kind of `FIELDS` (drawn when None)."""
    if kind is None:
        weights = np.array([weight for weight, _ in FIELDS.values()])
        kind = list(FIELDS)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    return np.asarray(FIELDS[kind][1](rng, hw), dtype=np.float32)


def texture(rng: Rng, hw: tuple[int, int], colors: FloatArray, kind: str | None = None) -> ByteArray:
    """Draw an RGB texture (H, W, 3) uint8 in a family of colors (K, 3)."""
    return colorize(texture_field(rng, hw, kind), ramp(rng, colors))
