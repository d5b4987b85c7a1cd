"""Families of shapes that grow: animals, people, plants, hair, blobs. Each draws one whole object as a `Shape`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.data.synthetic.shapes import Shape, arc, curve, wander
from hqsam.data.synthetic.textures import FloatArray, Rng, log_uniform


def outline(rng: Rng, roughness: float, radius: float = 1.0, n: int = 96) -> FloatArray:
    """A closed random contour (n, 2) around the origin: a circle with Fourier waves; roughness 0 is a circle."""
    angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
    orders = np.arange(2, 12)
    weights = rng.normal(0, roughness, (2, len(orders))) / orders**1.1
    waves = weights[0] @ np.cos(np.outer(orders, angles)) + weights[1] @ np.sin(np.outer(orders, angles))
    r = radius * np.clip(1 + waves, 0.15, 2.5)
    return np.stack([r * np.cos(angles), r * np.sin(angles)], axis=1).astype(np.float32)


def hair(
    rng: Rng, shape: Shape, points: FloatArray, angles: NDArray[Any], length: float, width: float, *, tone: float = 0.0
) -> None:
    """Add one thin tapering curve per point, leaving along its angle."""
    for point, angle in zip(points, angles, strict=True):
        line = wander(rng, point, angle + rng.normal(0, 0.15), length * rng.uniform(0.5, 1.2), 0.9, 9)
        shape.stroke(line, width * rng.uniform(0.6, 1.3), width * 0.15, tone=tone)


def blob(rng: Rng) -> Shape:
    """A smooth or rough blob, at times with a hole or a second, joined blob."""
    shape = Shape()
    shape.fill(outline(rng, rng.uniform(0.1, 0.9)))
    if rng.random() < 0.3:
        shape.fill(outline(rng, 0.4, 0.6) + rng.uniform(-0.8, 0.8, 2), tone=rng.uniform(-1, 1))
    if rng.random() < 0.25:
        shape.cut(outline(rng, 0.3, rng.uniform(0.15, 0.4)) + rng.uniform(-0.3, 0.3, 2))
    return shape


def tentacles(rng: Rng) -> Shape:
    """A body with long tapering arms."""
    shape = Shape()
    count, body = int(rng.integers(4, 12)), rng.uniform(0.2, 0.45)
    for angle in np.linspace(0, rng.choice([2 * np.pi, np.pi]), count) + rng.normal(0, 0.2, count):
        start = (0.6 * body * np.cos(angle), 0.6 * body * np.sin(angle))
        line = curve(wander(rng, start, angle, rng.uniform(0.6, 1.5), 2.2), 30)
        shape.stroke(line, rng.uniform(0.07, 0.2), 0.008, tone=rng.uniform(-0.4, 0.4))
    shape.fill(outline(rng, 0.25, body))
    return shape


def hairy(rng: Rng) -> Shape:
    """A blob with hair or fur sticking out, all around or on one side."""
    shape = Shape()
    contour = outline(rng, rng.uniform(0.1, 0.35), 0.6, 256)
    count = int(log_uniform(rng, 30, 220))
    first, share = rng.integers(0, 256), rng.choice([1.0, rng.uniform(0.2, 0.7)])
    picks = (first + rng.integers(0, max(2, int(256 * share)), count)) % 256
    roots = contour[picks] * 0.95
    comb = rng.uniform(0, 0.9)
    angles = np.arctan2(roots[:, 1], roots[:, 0]) * (1 - 0.3 * comb) + comb
    hair(rng, shape, roots, angles, log_uniform(rng, 0.12, 0.7), log_uniform(rng, 0.006, 0.03))
    shape.fill(contour)
    return shape


def _leg(rng: Rng, shape: Shape, hip: tuple[float, float], length: float, width: float, tone: float) -> None:
    swing, knee = rng.normal(0, 0.2), rng.uniform(0.4, 0.6)
    joints = np.array([hip, (hip[0] + swing * length * 0.6 + 0.03, hip[1] + knee * length)], dtype=np.float64)
    foot = (hip[0] + (swing + rng.normal(0, 0.12)) * length, hip[1] + length)
    line = curve(np.concatenate([joints, [foot]]), 14)
    shape.stroke(line, width, width * 0.4, tone=tone)
    shape.stroke([foot, (foot[0] + width * 0.7, foot[1])], width * 0.45, tone=tone - 0.3)


def animal(rng: Rng) -> Shape:
    """A four-legged animal: trunk, legs, neck, head, ears, mane, tail, perhaps horns."""
    shape = Shape()
    length, thick = 1.0, rng.uniform(0.28, 0.46)
    leg, leg_width = rng.uniform(0.3, 0.95), thick * rng.uniform(0.2, 0.42)
    far, near = rng.uniform(-0.8, -0.2), rng.uniform(-0.2, 0.2)
    for x in (-0.40, 0.40):
        _leg(rng, shape, (x + 0.06, thick * 0.2), leg + thick * 0.3, leg_width, far)
    trunk = [(-0.45, 0.0), (-0.1, 0.05), (0.2, 0.04), (0.45, -0.02)]
    shape.stroke(curve(trunk, 16), thick * rng.uniform(0.85, 1.1), thick, tone=near)
    for x in (-0.46, 0.42):
        _leg(rng, shape, (x, thick * 0.15), leg + thick * 0.35, leg_width, near)
    rise = rng.uniform(0.15, 0.8)
    head = np.array([0.5 + rng.uniform(0.15, 0.4), -rise])
    neck = curve([(0.42, -0.05), (0.52, -0.4 * rise - 0.05), tuple(head)], 14)
    shape.stroke(neck, thick * 0.75, thick * 0.4, tone=near)
    size, droop = thick * rng.uniform(0.38, 0.55), rng.uniform(0.0, 0.9)
    nose = head + size * rng.uniform(0.8, 1.9) * np.array([np.cos(droop), np.sin(droop)])
    shape.stroke([head, nose], size, size * 0.55, tone=near)
    for side in (-0.3, 0.2):
        tip = head + size * rng.uniform(0.5, 1.3) * np.array([side, -1.0])
        shape.stroke([head + (side * size * 0.5, -size * 0.2), tip], size * 0.35, size * 0.05, tone=far)
        if rng.random() < 0.2:
            horn = wander(rng, tuple(head + (side * size * 0.5, -size * 0.3)), -1.6 + side, size * 2.5, 1.5, 10)
            shape.stroke(horn, size * 0.2, size * 0.03, tone=-0.9)
    if rng.random() < 0.5:
        roots = neck + np.array([-thick * 0.25, -0.02])
        hair(rng, shape, roots[::1], np.full(len(roots), 2.4), thick * 0.6, 0.02, tone=-0.7)
    tail_root = (-0.45 * length - thick * 0.35, -thick * 0.15)
    if rng.random() < 0.5:
        hair(rng, shape, np.tile(np.array(tail_root, np.float32), (14, 1)), np.full(14, 2.0), 0.6, 0.035, tone=-0.6)
    else:
        shape.stroke(wander(rng, tail_root, rng.uniform(2.0, 4.2), rng.uniform(0.2, 0.8), 1.2), 0.08, 0.015, tone=near)
    return shape


def figure(rng: Rng) -> Shape:
    """A standing or moving person: clothes in two tones, limbs, head, hair, at times something in the hand."""
    shape = Shape()
    hips, shoulders = np.array([0.0, 0.0]), np.array([rng.normal(0, 0.06), -0.62])
    legs_tone, top_tone, skin = rng.uniform(-1, 1, 3)
    thick = rng.uniform(0.1, 0.17)
    for side in (-1, 1):
        spread = rng.normal(0.12 * side, 0.18)
        knee, foot = hips + (spread, 0.48), hips + (spread + rng.normal(0.05 * side, 0.12), 0.98)
        shape.stroke(curve([hips + (0.08 * side, 0), knee, foot], 14), thick * 1.25, thick * 0.6, tone=legs_tone)
        shape.stroke([foot, foot + (0.12 * rng.choice([-1, 1]), 0.03)], thick * 0.6, thick * 0.4, tone=skin)
    arms = []
    for side in (-1, 1):
        reach = rng.uniform(0.3, 2.9)
        elbow = shoulders + (0.15 * side, 0.05) + 0.28 * np.array([side * np.sin(reach) * 0.7, np.cos(reach)])
        hand = elbow + 0.28 * np.array([np.sin(rng.uniform(-1.5, 1.5)), rng.uniform(-0.7, 1)])
        arm = curve([shoulders + (0.13 * side, 0.04), elbow, hand], 12)
        shape.stroke(arm, thick * 0.75, thick * 0.4, tone=top_tone)
        for finger in rng.uniform(0, 2 * np.pi, 1) + np.linspace(-0.5, 0.5, 4):
            shape.stroke([hand, hand + 0.09 * np.array([np.cos(finger), np.sin(finger)])], 0.028, 0.016, tone=skin)
        arms.append(hand)
    left, right = shoulders[0] - 0.19, shoulders[0] + 0.19
    torso = [(left, -0.6), (right, -0.6), (0.14, -0.2), (0.16, 0.08), (-0.16, 0.08), (-0.14, -0.2)]
    shape.fill(curve(torso, 40, closed=True), tone=top_tone)
    if rng.random() < 0.35:
        flare = rng.uniform(0.2, 0.5)
        shape.fill([(-0.15, -0.05), (0.15, -0.05), (flare, 0.6), (-flare, 0.6)], tone=legs_tone)
    head = shoulders + (rng.normal(0, 0.03), -0.25)
    shape.stroke([shoulders, head], 0.1, tone=skin)
    if rng.random() < 0.6:
        roots = arc(head, 0.1, 0.12, np.pi, 2 * np.pi, int(rng.integers(12, 50)))
        hair(rng, shape, roots, np.linspace(2.4, 0.7, len(roots)), log_uniform(rng, 0.1, 0.5), 0.02, tone=-0.9)
    shape.disc(head, 0.105, 0.135, tone=skin)
    shape.fill(arc(head - (0, 0.03), 0.115, 0.125, np.pi, 2 * np.pi, 16), tone=-0.9)
    if rng.random() < 0.3:
        tilt = rng.uniform(0, np.pi)
        stick = 0.5 * rng.uniform(0.5, 1.6) * np.array([np.cos(tilt), np.sin(tilt)])
        shape.stroke([arms[0] - stick, arms[0] + stick], rng.uniform(0.012, 0.04), tone=0.9)
    return shape


def bird(rng: Rng) -> Shape:
    """A bird: body, head, beak, feathered wings and tail, thin legs with toes."""
    shape = Shape()
    flying = rng.random() < 0.5
    shape.fill(curve([(-0.5, 0.05), (-0.1, -0.2), (0.35, -0.18), (0.45, 0.05), (0.1, 0.22)], 40, closed=True))
    head = (0.5, rng.uniform(-0.4, -0.1))
    shape.stroke([(0.33, -0.05), head], 0.2, 0.16, tone=0.3)
    shape.disc(head, 0.12, tone=0.3)
    shape.stroke([head, (head[0] + rng.uniform(0.2, 0.5), head[1] + 0.05)], 0.09, 0.01, tone=-0.9)
    for k in np.linspace(-0.25, 0.25, int(rng.integers(3, 8))):
        shape.stroke([(-0.4, 0.03), (-0.4 - rng.uniform(0.4, 0.6), 0.05 + k)], 0.07, 0.035, tone=-0.3)
    if flying:
        for side, tone in ((-1.0, -0.5), (rng.choice([-0.8, 0.7]), 0.0)):
            span = rng.uniform(0.7, 1.4)
            for k in np.linspace(0, 1, 12):
                root = (0.2 - 0.35 * k, -0.05 + 0.35 * side * (1 - k) * span)
                tip = (0.1 - 0.7 * k * span, side * (1.15 - 0.8 * k) * span)
                middle = ((root[0] + tip[0]) / 2 + 0.1, (root[1] + tip[1]) / 2)
                shape.stroke(curve([root, middle, tip], 8), 0.12, 0.03, tone=tone)
            shape.stroke([(0.15, 0.0), (0.2, 0.35 * side * span)], 0.25, 0.14, tone=tone)
    else:
        shape.fill(curve([(0.25, -0.1), (-0.2, -0.12), (-0.65, 0.08), (-0.1, 0.14)], 30, closed=True), tone=-0.5)
        for x in (-0.02, 0.1):
            foot = (x + rng.normal(0, 0.05), 0.2 + rng.uniform(0.15, 0.7))
            shape.stroke([(x, 0.15), foot], 0.035, 0.022, tone=-0.9)
            for toe in (-0.1, 0.08, 0.13):
                shape.stroke([foot, (foot[0] + toe, foot[1] + 0.04)], 0.02, 0.01, tone=-0.9)
    return shape


def insect(rng: Rng) -> Shape:
    """An insect or spider: body, bent thin legs, feelers, perhaps wings."""
    shape = Shape()
    pairs = int(rng.choice([3, 3, 4]))
    if rng.random() < 0.4:
        for side in (-1, 1):
            for k in (0.35, -0.35):
                tip = (0.1 + k * 2, side * rng.uniform(0.7, 1.0))
                wing = [(0, 0), (0.3 + k, side * 0.5), tip, (-0.2 + k, side * 0.6)]
                shape.fill(curve(wing, 32, closed=True), tone=rng.uniform(0, 0.9))
    width = log_uniform(rng, 0.02, 0.06)
    for x in np.linspace(-0.2, 0.3, pairs):
        for side in (-1, 1):
            knee = (x * 1.8 + rng.normal(0, 0.05), side * rng.uniform(0.3, 0.55))
            foot = (x * 3.0 + rng.normal(0, 0.1), side * rng.uniform(0.55, 1.0))
            shape.stroke([(x, side * 0.05), knee, foot], width, width * 0.4, tone=-0.6)
    for side in (-1, 1):
        feeler = wander(rng, (0.55, 0.0), side * 0.5, rng.uniform(0.3, 0.9), 0.8)
        shape.stroke(feeler, width * 0.5, width * 0.2, tone=-0.6)
    shape.disc((-0.42, 0), rng.uniform(0.25, 0.4), rng.uniform(0.13, 0.25), tone=0.2)
    shape.disc((0.08, 0), 0.2, 0.13, tone=-0.1)
    shape.disc((0.42, 0), 0.14, 0.12, tone=-0.4)
    return shape


def fish(rng: Rng) -> Shape:
    """A fish with rayed fins."""
    shape = Shape()
    height = rng.uniform(0.2, 0.45)
    shape.stroke([(-0.6, 0), (-0.9, 0)], 0.16, 0.1)
    fins = (
        ((-0.85, 0.0), np.pi, 0.9, 0.45),
        ((0.0, -height * 0.8), -2.0, 0.6, 0.4),
        ((-0.1, height * 0.8), 2.2, 0.4, 0.3),
    )
    for root, angle, fan, reach in fins:
        for ray in np.linspace(-fan, fan, int(rng.integers(5, 12))):
            tip = (root[0] + reach * np.cos(angle + ray), root[1] + reach * np.sin(angle + ray))
            shape.stroke([root, tip], 0.07, rng.uniform(0.015, 0.06), tone=-0.6)
    back, belly = [(-0.3, -height * 0.8), (0.3, -height)], [(0.3, height), (-0.3, height * 0.8)]
    shape.fill(curve([(-0.75, 0), *back, (0.85, -0.05), (0.8, 0.08), *belly], 60, closed=True))
    return shape


def _leaf(rng: Rng, shape: Shape, base: FloatArray, angle: float, length: float, width: float, *, tone: float) -> None:
    t = np.linspace(0, 1, 14)
    half = width * length * np.sin(np.pi * t**0.8) * (1 - 0.25 * t)
    along = np.concatenate([t, t[::-1]]) * length
    droop = 0.25 * rng.normal(0, 1) * width / length * along**2
    across = np.concatenate([half, -half[::-1]]) + droop
    x = base[0] + np.cos(angle) * along - np.sin(angle) * across
    y = base[1] + np.sin(angle) * along + np.cos(angle) * across
    shape.fill(np.stack([x, y], axis=1), tone=tone)


def leaf(rng: Rng) -> Shape:
    """A single leaf with a stalk and a toothed or lobed edge."""
    shape = Shape()
    t = np.linspace(0, 1, 90)
    teeth = 1 + rng.uniform(0, 0.35) * np.abs(np.sin(np.pi * t * int(rng.integers(3, 16))))
    half = rng.uniform(0.2, 0.5) * np.sin(np.pi * t ** rng.uniform(0.6, 1.4)) * teeth
    shape.fill(np.concatenate([np.stack([t, half], 1), np.stack([t, -half], 1)[::-1]]), tone=0.2)
    shape.stroke([(0.95, 0), (0.0, 0), (-rng.uniform(0.1, 0.5), rng.normal(0, 0.1))], 0.012, 0.035, tone=-0.8)
    return shape


def plant(rng: Rng) -> Shape:
    """A plant: stems with leaves, at times in a pot."""
    shape = Shape()
    length, width = log_uniform(rng, 0.12, 0.4), rng.uniform(0.08, 0.4)
    for _ in range(int(rng.integers(1, 8))):
        heading = -np.pi / 2 + rng.normal(0, 0.45)
        stem = curve(wander(rng, (rng.normal(0, 0.06), 0), heading, rng.uniform(0.5, 1.2), 0.8), 20)
        shape.stroke(stem, log_uniform(rng, 0.012, 0.035), 0.008, tone=-0.6)
        for k in range(int(rng.integers(2, 5)), 20, int(rng.integers(1, 5))):
            heading = np.arctan2(*(stem[min(k + 1, 19)] - stem[k - 1])[::-1])
            side = rng.choice([-1, 1]) * rng.uniform(0.4, 1.3)
            size, tone = length * rng.uniform(0.6, 1.2), rng.uniform(-0.2, 0.6)
            _leaf(rng, shape, stem[k], heading + side, size, width, tone=tone)
        _leaf(rng, shape, stem[-1], rng.uniform(-2.5, -0.6), length, width, tone=0.5)
    if rng.random() < 0.35:
        shape.fill([(-0.22, -0.02), (0.22, -0.02), (0.16, 0.4), (-0.16, 0.4)], tone=-1.0)
    return shape


def tree(rng: Rng) -> Shape:
    """A bare or leafy tree of forking branches."""
    shape = Shape()
    leafy, spread = rng.random() < 0.4, rng.uniform(0.25, 0.6)
    queue = [(np.array([0.0, 0.0]), -np.pi / 2, 0.5, rng.uniform(0.05, 0.12), 0)]
    depth = int(rng.integers(4, 6))
    while queue:
        start, angle, length, width, level = queue.pop()
        line = wander(rng, tuple(start), angle, length, 0.35, 6)
        shape.stroke(line, width, width * 0.65, tone=-0.3 + 0.1 * level)
        if level == depth:
            if leafy:
                for _ in range(3):
                    root, heading = line[int(rng.integers(2, 6))], rng.uniform(0, 2 * np.pi)
                    _leaf(rng, shape, root, heading, 0.09, 0.35, tone=rng.uniform(0.3, 1))
            continue
        forks = 2 if level else 3
        for k in range(forks):
            turn = spread * (2 * k / (forks - 1) - 1) + rng.normal(0, 0.2)
            queue.append((line[-1 - (k > 0)], angle + turn, length * rng.uniform(0.6, 0.85), width * 0.62, level + 1))
    return shape


def grass(rng: Rng) -> Shape:
    """A tuft of blades, reeds or a palm's leaves."""
    shape = Shape()
    count, wide = int(log_uniform(rng, 8, 70)), log_uniform(rng, 0.012, 0.06)
    for x in rng.normal(0, rng.uniform(0.02, 0.3), count):
        blade = wander(rng, (x, 0.0), -np.pi / 2 + rng.normal(0, 0.4), rng.uniform(0.4, 1.1), 1.0, 12)
        shape.stroke(blade, wide, wide * 0.1, tone=rng.uniform(-0.5, 0.5))
    shape.disc((0, 0.0), 0.12, 0.05, tone=-0.5)
    return shape


def feather(rng: Rng) -> Shape:
    """A feather, fern or fishbone: a midrib with many side strands."""
    shape = Shape()
    rib = curve(wander(rng, (0, 0), -np.pi / 2, 1.6, 0.7), 60)
    reach, open_angle, width = log_uniform(rng, 0.08, 0.5), rng.uniform(0.4, 1.3), log_uniform(rng, 0.008, 0.04)
    for k in range(10, 59, int(rng.integers(1, 4))):
        heading = np.arctan2(*(rib[k + 1] - rib[k])[::-1])
        size = reach * np.sin(np.pi * (k - 6) / 56) ** 0.6
        for side in (-1, 1):
            strand = wander(rng, tuple(rib[k]), heading + side * open_angle, size, 0.3, 6)
            shape.stroke(strand, width, width * 0.4, tone=rng.uniform(0, 0.4))
    shape.stroke(rib, 0.03, 0.01, tone=-0.7)
    return shape


def flower(rng: Rng) -> Shape:
    """A flower or star of petals on a stalk."""
    shape = Shape()
    if rng.random() < 0.7:
        shape.stroke(wander(rng, (0, 0), np.pi / 2, rng.uniform(0.8, 2.2), 0.5), 0.06, 0.05, tone=-0.9)
    count, width, reach = int(rng.integers(4, 22)), rng.uniform(0.1, 0.4), rng.uniform(0.6, 1.0)
    for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
        size, heading = reach * rng.uniform(0.8, 1.1), angle + rng.normal(0, 0.08)
        _leaf(rng, shape, np.zeros(2, np.float32), heading, size, width, tone=rng.uniform(0.2, 0.6))
    shape.disc((0, 0), rng.uniform(0.1, 0.3), tone=-0.5)
    return shape


FAMILIES: dict[str, tuple[float, Callable[[Rng], Shape]]] = {
    "blob": (1.5, blob),
    "tentacles": (1.0, tentacles),
    "hairy": (1.6, hairy),
    "animal": (2.5, animal),
    "figure": (2.2, figure),
    "bird": (1.2, bird),
    "insect": (1.0, insect),
    "fish": (0.7, fish),
    "leaf": (0.8, leaf),
    "plant": (1.6, plant),
    "tree": (1.0, tree),
    "grass": (0.9, grass),
    "feather": (0.7, feather),
    "flower": (0.8, flower),
}
