"""Families that no training configuration is given: what a model makes of kinds of objects that it has not seen.

Each draws one object as a `Shape`, as in `living` and `made`, and looks like none of theirs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hqsam.data.synthetic.shapes import Shape, arc, curve
from hqsam.data.synthetic.textures import FloatArray, Rng, log_uniform


def _closed(points: FloatArray) -> FloatArray:
    return np.concatenate([points, points[:1]])


def snowflake(rng: Rng) -> Shape:
    """Six equal arms with side branches."""
    shape = Shape()
    width, count = log_uniform(rng, 0.02, 0.07), int(rng.integers(2, 6))
    starts, reach, spread = np.linspace(0.25, 0.85, count), rng.uniform(0.15, 0.45), rng.uniform(0.6, 1.3)
    for turn in np.arange(6) * np.pi / 3:
        along = np.array([np.cos(turn), np.sin(turn)])
        shape.stroke([(0, 0), along], width, width * 0.8)
        for start in starts:
            for side in (-spread, spread):
                twig = np.array([np.cos(turn + side), np.sin(turn + side)])
                shape.stroke([start * along, start * along + reach * (1.1 - start) * twig], width * 0.7, tone=0.4)
    return shape


def spring(rng: Rng) -> Shape:
    """A coil seen from the side, its wire crossing itself, with straight ends."""
    shape = Shape()
    turns, rise, tilt = int(rng.integers(4, 13)), rng.uniform(0.12, 0.35), rng.uniform(0.12, 0.35)
    angle = np.linspace(0, 2 * np.pi * turns, 40 * turns)
    coil = np.stack([0.5 * np.cos(angle), rise * angle / (2 * np.pi) + tilt * np.sin(angle)], axis=1)
    width = log_uniform(rng, 0.03, 0.11)
    shape.stroke(coil, width, tone=rng.uniform(-0.3, 0.3))
    for end, way in ((coil[0], -1), (coil[-1], 1)):
        shape.stroke([end, end + (0, way * rng.uniform(0.2, 0.6))], width, tone=0.2)
    return shape


def cactus(rng: Rng) -> Shape:
    """A ribbed column with arms that turn upwards."""
    shape = Shape()
    width, high = rng.uniform(0.2, 0.4), rng.uniform(1.2, 2.0)
    for side in rng.permutation([-1, 1, -1])[: int(rng.integers(1, 4))]:
        foot, reach = rng.uniform(0.25, 0.6) * high, rng.uniform(0.3, 0.6)
        tip = foot + rng.uniform(0.3, 0.8)
        arm = [(0, -foot), (side * reach, -foot), (side * reach * 1.1, -foot - 0.15), (side * reach * 1.1, -tip)]
        shape.stroke(curve(arm, 24), width * rng.uniform(0.5, 0.8), tone=-0.2)
    shape.stroke([(0, 0), (0, -high)], width, width * rng.uniform(0.7, 1.0))
    for x in np.linspace(-0.35, 0.35, int(rng.integers(2, 5))) * width:
        shape.stroke([(x, 0), (x, -high)], 0.02, tone=-0.7)
    return shape


def candelabra(rng: Rng) -> Shape:
    """A stem on a foot with pairs of curved arms that bear candles."""
    shape = Shape()
    metal, candle = log_uniform(rng, 0.025, 0.07), rng.uniform(0.05, 0.11)
    tops = [(0.0, -1.2)]
    for pair in range(1, int(rng.integers(2, 5))):
        reach, low = 0.32 * pair, rng.uniform(0.3, 0.6)
        for side in (-1, 1):
            arm = [(0, -low), (side * reach * 0.6, -low + 0.12), (side * reach, -low - 0.15), (side * reach, -1.0)]
            shape.stroke(curve(arm, 24), metal, tone=-0.2)
            tops.append((side * reach, -1.0))
    shape.stroke([(0, 0), (0, -1.2)], metal * 1.5)
    for x, y in tops:
        shape.stroke([(x - 0.08, y), (x + 0.08, y)], metal, tone=-0.5)
        shape.stroke([(x, y), (x, y - rng.uniform(0.2, 0.5))], candle, tone=0.8)
    shape.fill([(-0.4, 0.08), (0.4, 0.08), (0.1, -0.08), (-0.1, -0.08)], tone=-0.5)
    return shape


def jug(rng: Rng) -> Shape:
    """A turned vessel with a handle, at times two, and at times a spout."""
    shape = Shape()
    heights = np.linspace(0, 1.6, 7)
    radii = rng.uniform(0.15, 0.65, 7)
    side = curve(np.stack([radii, -heights], axis=1), 40)
    for way in (-1, 1)[: int(rng.integers(1, 3))]:
        ends = side[30] * (way, 1), side[12] * (way, 1)
        out = (way * (max(side[30][0], side[12][0]) + rng.uniform(0.2, 0.5)), (ends[0][1] + ends[1][1]) / 2)
        shape.stroke(curve([ends[0], out, ends[1]], 24), rng.uniform(0.05, 0.12), tone=-0.4)
    shape.fill(np.concatenate([side, (side * (-1, 1))[::-1]]))
    if rng.random() < 0.5:
        start = side[20]
        shape.stroke([start * 0.9, start + (0.35, -0.1), start + (0.5, -0.45)], 0.16, 0.07, tone=0.3)
    return shape


def kite(rng: Rng) -> Shape:
    """A kite with a cross of sticks and a long tail with bows."""
    shape = Shape()
    wide, cross = rng.uniform(0.4, 0.7), rng.uniform(0.3, 0.7)
    shape.fill([(0, 0), (wide, cross), (0, 1.5), (-wide, cross)])
    shape.stroke([(-wide, cross), (wide, cross)], 0.03, tone=-0.7)
    shape.stroke([(0, 0), (0, 1.5)], 0.03, tone=-0.7)
    y = np.linspace(1.5, rng.uniform(2.6, 4.0), 40)
    tail = np.stack([rng.uniform(0.1, 0.4) * np.sin((y - 1.5) * rng.uniform(2, 5)), y], axis=1)
    shape.stroke(tail, log_uniform(rng, 0.012, 0.04), tone=-0.4)
    for k in np.linspace(8, 39, int(rng.integers(2, 7))).astype(int):
        for side in (-0.16, 0.16):
            shape.fill([tail[k], tail[k] + (side, -0.09), tail[k] + (side, 0.09)], tone=0.7)
    return shape


def guitar(rng: Rng) -> Shape:
    """A waisted body with a sound hole in another tone, a neck, a head with pegs."""
    shape = Shape()
    waist, lower, neck = rng.uniform(0.2, 0.35), rng.uniform(0.45, 0.65), rng.uniform(0.9, 1.5)
    half = curve([(0.02, 0), (0.38, -0.2), (waist, -0.55), (lower, -1.0), (0.3, -1.3), (0.02, -1.35)], 50) * (1, -1)
    shape.fill(np.concatenate([half, (half * (-1, 1))[::-1]]))
    shape.disc((0, 0.5), 0.14, tone=-0.9)
    shape.stroke([(0, 0.5), (0, -neck)], rng.uniform(0.08, 0.14), tone=-0.6)
    for y in np.linspace(-neck, -neck - 0.25, 3):
        shape.stroke([(-0.16, y), (0.16, y)], 0.04, tone=0.5)
    shape.stroke([(0, -neck), (0, -neck - 0.32)], 0.17, tone=-0.3)
    return shape


def snail(rng: Rng) -> Shape:
    """A spiral shell on a creeping foot, with two stalks."""
    shape = Shape()
    foot = curve([(-1.0, 0.0), (-0.2, -0.12), (0.7, -0.1), (1.05, -0.45)], 30)
    shape.stroke(foot, rng.uniform(0.08, 0.16), rng.uniform(0.18, 0.28), tone=0.5)
    for lean in (-0.1, 0.22):
        shape.stroke([foot[-1], foot[-1] + (lean, -0.4)], 0.035, 0.02, tone=0.4)
        shape.disc(foot[-1] + (lean, -0.42), 0.04, tone=-0.4)
    radius, turns = rng.uniform(0.45, 0.65), rng.uniform(2.0, 3.5)
    shape.disc((-0.1, -radius - 0.05), radius)
    angle = np.linspace(0, 2 * np.pi * turns, 90)
    reach = radius * (1 - angle / angle[-1])[:, None]
    spiral = reach * np.stack([np.cos(angle), np.sin(angle)], axis=1) + (-0.1, -radius - 0.05)
    shape.stroke(spiral, 0.05, 0.02, tone=-0.8)
    return shape


def windmill(rng: Rng) -> Shape:
    """A tapering tower with four lattice sails."""
    shape = Shape()
    shape.fill([(-0.4, 1.3), (0.4, 1.3), (0.22, 0), (-0.22, 0)])
    shape.fill(arc((0, 0), 0.24, 0.2, np.pi, 2 * np.pi, 20), tone=-0.6)
    beam, bars, wide = rng.uniform(0.025, 0.05), int(rng.integers(4, 10)), rng.uniform(0.12, 0.25)
    for turn in rng.uniform(0, np.pi / 2) + np.arange(4) * np.pi / 2:
        along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        shape.stroke([(0, 0), along], beam, tone=-0.3)
        shape.stroke([0.25 * along + wide * across, along + wide * across], beam * 0.6, tone=-0.3)
        for share in np.linspace(0.25, 1, bars):
            shape.stroke([share * along, share * along + wide * across], beam * 0.6, tone=-0.3)
    return shape


def saw(rng: Rng) -> Shape:
    """A hand saw: a toothed blade and a handle with a hole."""
    shape = Shape()
    teeth, deep, tip = int(rng.integers(10, 31)), rng.uniform(0.03, 0.09), rng.uniform(0.12, 0.3)
    x = np.linspace(0, 2, 2 * teeth + 1)
    edge = np.stack([x, np.where(np.arange(len(x)) % 2, deep, 0.0)], axis=1)
    shape.fill(np.concatenate([[(2, -tip), (0, -0.5)], edge]), tone=0.4)
    grip = curve([(0.15, -0.55), (-0.4, -0.5), (-0.55, -0.1), (-0.3, 0.15), (0.12, 0.02)], 30, closed=True)
    shape.fill(grip, tone=-0.7)
    shape.cut(arc((-0.25, -0.2), 0.14, 0.2))
    return shape


def knot(rng: Rng) -> Shape:
    """A rope along a torus knot, crossing itself, with two or more holes."""
    shape = Shape()
    lobes, turns = [(3, 2), (5, 2), (4, 3)][int(rng.integers(3))]
    angle = np.linspace(0, 2 * np.pi, 240)
    radius = 1 + rng.uniform(0.3, 0.6) * np.cos(lobes * angle)
    shape.stroke(
        np.stack([radius * np.cos(turns * angle), radius * np.sin(turns * angle)], axis=1), rng.uniform(0.1, 0.28)
    )
    return shape


def anchor(rng: Rng) -> Shape:
    """A shank with a ring, a stock, and curved arms with flukes."""
    shape = Shape()
    bar, reach = rng.uniform(0.07, 0.16), rng.uniform(0.5, 0.8)
    shape.stroke([(0, -1), (0, 0.8)], bar)
    shape.stroke(_closed(arc((0, -1.18), 0.16)), bar * 0.6, tone=-0.5)
    shape.stroke([(-0.45, -0.75), (0.45, -0.75)], bar * 0.8, tone=0.4)
    shape.stroke(arc((0, 0.25), reach, 0.55, 0.05 * np.pi, 0.95 * np.pi, 30), bar)
    for side in (-1, 1):
        x = side * reach
        shape.fill([(x * 1.25, 0.35), (x * 0.7, 0.3), (x * 1.05, -0.02)], tone=-0.3)
    return shape


def racket(rng: Rng) -> Shape:
    """An oval frame with crossed strings, a throat and a grip."""
    shape = Shape()
    rx, string, count = rng.uniform(0.45, 0.65), log_uniform(rng, 0.01, 0.025), int(rng.integers(5, 12))
    for share in np.linspace(-0.85, 0.85, count):
        half = float(np.sqrt(1 - share**2))
        shape.stroke([(share * rx, -half * 0.8), (share * rx, half * 0.8)], string, tone=0.7)
        shape.stroke([(-half * rx, share * 0.8), (half * rx, share * 0.8)], string, tone=0.7)
    shape.stroke(_closed(arc((0, 0), rx, 0.8)), rng.uniform(0.06, 0.12))
    for side in (-1, 1):
        shape.stroke([(side * rx * 0.6, 0.65), (0, 1.1)], 0.06)
    shape.stroke([(0, 1.1), (0, 1.1 + rng.uniform(0.4, 0.9))], rng.uniform(0.1, 0.16), tone=-0.8)
    return shape


def grapes(rng: Rng) -> Shape:
    """A bunch of berries that hide each other in part, on a stalk."""
    shape = Shape()
    shape.stroke(curve([(0, 0.2), (0.03, -0.2), (rng.normal(0, 0.2), -0.6)], 16), 0.06, tone=-0.6)
    rows = int(rng.integers(4, 8))
    for row in range(rows):
        for place in np.arange(rows - row) - (rows - row - 1) / 2:
            center = (0.3 * place + rng.normal(0, 0.05), 0.26 * row + rng.normal(0, 0.04))
            shape.disc(center, rng.uniform(0.15, 0.21), tone=rng.uniform(-0.5, 0.8))
    return shape


def crane(rng: Rng) -> Shape:
    """A building crane: a lattice mast, a jib with ties, a hook on a rope."""
    shape = Shape()
    beam, wide, reach = log_uniform(rng, 0.015, 0.035), rng.uniform(0.1, 0.18), rng.uniform(1.0, 1.7)
    levels, cells = np.linspace(0, -2.0, int(rng.integers(7, 14))), np.linspace(-0.5, reach, int(rng.integers(7, 14)))
    for way in (-1, 1):
        shape.stroke([(way * wide / 2, 0), (way * wide / 2, -2.0)], beam)
        for low, high in zip(levels[:-1], levels[1:], strict=True):
            shape.stroke([(-way * wide / 2, low), (way * wide / 2, high)], beam * 0.6, tone=0.3)
    for y in (-2.0, -2.0 - wide):
        shape.stroke([(-0.5, y), (reach, y)], beam)
    for k, (start, end) in enumerate(zip(cells[:-1], cells[1:], strict=True)):
        ys = (-2.0, -2.0 - wide) if k % 2 else (-2.0 - wide, -2.0)
        shape.stroke([(start, ys[0]), (end, ys[1])], beam * 0.6, tone=0.3)
    for end in (-0.5, reach * 0.8):
        shape.stroke([(0, -2.5), (end, -2.0 - wide)], beam * 0.6)
    shape.stroke([(0, -2.0), (0, -2.5)], beam * 1.4)
    shape.fill([(-0.55, -1.75), (-0.3, -1.75), (-0.3, -2.0), (-0.55, -2.0)], tone=-0.7)
    x, low = reach * rng.uniform(0.4, 0.9), -rng.uniform(0.8, 1.6)
    shape.stroke([(x, -2.0), (x, low)], beam * 0.6)
    shape.disc((x, low), 0.08, tone=-0.6)
    return shape


def hanger(rng: Rng) -> Shape:
    """A clothes hanger: a bent hook, shoulders, a bar, at times with a cloth over it."""
    shape = Shape()
    wire, drop = log_uniform(rng, 0.025, 0.08), rng.uniform(0.3, 0.6)
    hook = arc((0, -0.3), 0.16, None, -1.1 * np.pi, 0.5 * np.pi, 30)
    shape.stroke(np.concatenate([hook, [(0, 0)]]), wire * 0.8, tone=0.5)
    if rng.random() < 0.4:
        left, right = np.sort(rng.uniform(-0.7, 0.7, 2)) + (-0.15, 0.15)
        shape.fill([(left, drop), (right, drop), (right, drop + rng.uniform(0.5, 1.2)), (left, drop + 1.0)], tone=0.8)
    shape.stroke(_closed(np.array([(0, 0), (1, drop), (-1, drop)], np.float32)), wire)
    return shape


FAMILIES: dict[str, tuple[float, Callable[[Rng], Shape]]] = {
    "snowflake": (1.0, snowflake),
    "spring": (1.0, spring),
    "cactus": (1.0, cactus),
    "candelabra": (1.0, candelabra),
    "jug": (1.0, jug),
    "kite": (1.0, kite),
    "guitar": (1.0, guitar),
    "snail": (1.0, snail),
    "windmill": (1.0, windmill),
    "saw": (1.0, saw),
    "knot": (1.0, knot),
    "anchor": (1.0, anchor),
    "racket": (1.0, racket),
    "grapes": (1.0, grapes),
    "crane": (1.0, crane),
    "hanger": (1.0, hanger),
}
