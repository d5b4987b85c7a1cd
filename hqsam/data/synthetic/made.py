"""Families of made things: furniture, vehicles, tools, frames, wires, letters. Each draws one object as a `Shape`."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from hqsam.data.synthetic.living import outline
from hqsam.data.synthetic.shapes import Shape, arc, curve, wander
from hqsam.data.synthetic.textures import Rng, log_uniform


def polygon(rng: Rng) -> Shape:
    """A random polygon, convex or not, at times with a hole."""
    shape = Shape()
    n = int(rng.integers(3, 10))
    angles = np.sort(rng.uniform(0, 2 * np.pi, n)) * 0.3 + np.linspace(0, 2 * np.pi, n, endpoint=False) * 0.7
    radius = rng.uniform(rng.uniform(0.3, 1.0), 1.0, n)
    shape.fill(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1))
    if rng.random() < 0.3:
        shape.cut(outline(rng, 0.1, 0.2))
    return shape


def star(rng: Rng) -> Shape:
    """A star, a gear or a sun with thin rays."""
    shape = Shape()
    n, inner = int(rng.integers(4, 18)), rng.uniform(0.2, 0.85)
    angles = np.linspace(0, 2 * np.pi, 2 * n, endpoint=False)
    radius = np.where(np.arange(2 * n) % 2 == 0, 1.0, inner)
    shape.fill(np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1))
    if rng.random() < 0.4:
        shape.cut(arc((0, 0), inner * rng.uniform(0.2, 0.8)))
    return shape


def chair(rng: Rng) -> Shape:
    """A chair or stool seen at an angle: legs, seat, back with slats, rungs."""
    shape = Shape()
    wide, slant, high = rng.uniform(0.7, 1.1), rng.uniform(0.1, 0.4), rng.uniform(0.7, 1.1)
    rail, back = log_uniform(rng, 0.025, 0.09), rng.choice([0.0, rng.uniform(0.6, 1.2)])
    corners = np.array([(0, 0), (wide, 0), (wide + slant, -slant * 0.7), (slant, -slant * 0.7)])
    for k, (x, y) in enumerate(corners):
        shape.stroke([(x, y), (x + rng.normal(0, 0.03), y + high)], rail, rail * 0.8, tone=-0.7 if k > 1 else 0.1)
    if rng.random() < 0.6:
        shape.stroke([(0, high * 0.6), (wide, high * 0.6)], rail * 0.6, tone=0.2)
    if back:
        lean = rng.normal(0, 0.1)
        posts = [corners[3], corners[2]]
        for x, y in posts:
            shape.stroke([(x, y), (x + lean, y - back)], rail, tone=-0.3)
        for share in np.linspace(0.3, 1.0, int(rng.integers(1, 6))):
            ends = [(x + lean * share, y - back * share) for x, y in posts]
            shape.stroke(ends, rail * rng.uniform(0.6, 1.8), tone=0.0)
        if rng.random() < 0.5:
            for share in np.linspace(0.1, 0.9, int(rng.integers(2, 8))):
                x = posts[0][0] * (1 - share) + posts[1][0] * share
                shape.stroke([(x, posts[0][1]), (x + lean, posts[0][1] - back)], rail * 0.5, tone=0.3)
    shape.fill(corners, tone=0.6)
    shape.stroke([corners[0], corners[1]], rail * 1.3, tone=0.2)
    return shape


def _wheel(rng: Rng, shape: Shape, center: tuple[float, float], radius: float, rim: float, spokes: int) -> None:
    ring = np.concatenate([arc(center, radius), arc(center, radius)[:1]])
    width, twist = max(0.006, rim * rng.uniform(0.12, 0.4)), rng.choice([0.0, 0.3])
    for k in range(spokes):
        angle = 2 * np.pi * k / spokes
        bore = angle + 5 * twist
        hub = (center[0] + 0.1 * radius * np.cos(bore), center[1] + 0.1 * radius * np.sin(bore))
        tip = (center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle))
        shape.stroke([hub, tip], width, tone=0.6)
    shape.stroke(ring, rim, tone=-0.8)
    shape.disc(center, radius * rng.uniform(0.08, 0.2), tone=-0.2)


def wheel(rng: Rng) -> Shape:
    """A spoked wheel."""
    shape = Shape()
    _wheel(rng, shape, (0, 0), 1.0, log_uniform(rng, 0.04, 0.25), int(rng.integers(3, 33)))
    return shape


def bicycle(rng: Rng) -> Shape:
    """A bicycle: two spoked wheels, frame, fork, handlebar, saddle."""
    shape = Shape()
    radius, base, tube = rng.uniform(0.45, 0.6), rng.uniform(1.35, 1.7), log_uniform(rng, 0.035, 0.08)
    spokes, tyre = int(rng.integers(8, 28)), rng.uniform(0.035, 0.09)
    rear, front = (0.0, 0.0), (base, 0.0)
    crank, seat, head = (base * 0.42, 0.05), (base * 0.3, -0.75), (base * 0.83, -0.75)
    for hub in (rear, front):
        _wheel(rng, shape, hub, radius, tyre, spokes)
    for line in ((rear, crank), (rear, seat), (crank, seat), (crank, (head[0], head[1] + 0.1)), (seat, head)):
        shape.stroke(line, tube * (0.6 if line[0] is rear else 1.0), tone=0.5)
    shape.stroke([(head[0] - 0.05, head[1] - 0.15), head, front], tube * 0.9, tube * 0.6, tone=0.5)
    bar = (head[0] - 0.05, head[1] - 0.18)
    grip = [(bar[0] - 0.15, bar[1] - 0.05), bar, (bar[0] + 0.2, bar[1]), (bar[0] + 0.2, bar[1] + 0.15)]
    shape.stroke(curve(grip, 12), tube * 0.8, tone=-0.5)
    shape.stroke([seat, (seat[0] - 0.02, seat[1] - 0.13)], tube * 0.6, tone=-0.5)
    shape.stroke([(seat[0] - 0.16, seat[1] - 0.15), (seat[0] + 0.16, seat[1] - 0.13)], 0.09, 0.05, tone=-0.9)
    shape.stroke(np.concatenate([arc(crank, 0.12), arc(crank, 0.12)[:1]]), 0.03, tone=-0.6)
    return shape


def ladder(rng: Rng) -> Shape:
    """A ladder, a rack or a comb-like grille."""
    shape = Shape()
    wide, rail, narrow = rng.uniform(0.2, 0.7), log_uniform(rng, 0.02, 0.09), rng.uniform(0.6, 1.0)
    count = int(rng.integers(4, 16))
    for share in (np.arange(count) + 0.5) / count:
        half = wide / 2 * (1 - (1 - narrow) * share)
        shape.stroke([(-half, -2 * share), (half, -2 * share)], rail * 0.7, tone=0.4)
    for side in (-1, 1):
        shape.stroke([(side * wide / 2, 0.05), (side * wide / 2 * narrow, -2.05)], rail, tone=-0.3)
    return shape


def fence(rng: Rng) -> Shape:
    """A fence, railing or grid gate: posts and cross-bars."""
    shape = Shape()
    count, width = int(rng.integers(5, 22)), log_uniform(rng, 0.012, 0.06)
    wide, high, pointed = 2.0, rng.uniform(0.6, 1.4), rng.random() < 0.4
    for share in rng.choice([np.array([0.1, 0.9]), np.array([0.25, 0.75]), np.array([0.05, 0.95])]):
        shape.stroke([(-wide / 2, high * share), (wide / 2, high * share)], width * rng.uniform(0.5, 1.5), tone=-0.4)
    for x in np.linspace(-wide / 2, wide / 2, count):
        top = -0.08 if pointed else 0.0
        shape.stroke([(x, high), (x, 0.0)], width, tone=rng.uniform(-0.1, 0.4))
        if pointed:
            shape.stroke([(x, 0.0), (x, top)], width, 0.004, tone=0.3)
    return shape


def net(rng: Rng) -> Shape:
    """A net or mesh, straight or diagonal, in a frame or hanging free; also a racket."""
    shape = Shape()
    count, width = int(rng.integers(6, 18)), log_uniform(rng, 0.008, 0.028)
    ticks = np.linspace(-1, 1, count)
    racket, diagonal = rng.random() < 0.35, rng.random() < 0.5
    for t in ticks:
        if racket:
            half = np.sqrt(max(0.0, 1 - t * t))
            lines = [((t, -half), (t, half)), ((-half, t), (half, t))]
        elif diagonal:
            low, high = max(-1.0, 2 * t - 1), min(1.0, 2 * t + 1)
            lines = [((low, low - 2 * t), (high, high - 2 * t)), ((low, 2 * t - low), (high, 2 * t - high))]
        else:
            lines = [((t, -1), (t, 1)), ((-1, t), (1, t))]
        for line in lines:
            shape.stroke(line, width, tone=0.4)
    if racket:
        shape.stroke(np.concatenate([arc((0, 0), 1.0), arc((0, 0), 1.0)[:1]]), rng.uniform(0.05, 0.12), tone=-0.6)
        shape.stroke([(0, 1.0), (0, rng.uniform(1.8, 2.6))], 0.08, 0.14, tone=-0.8)
    elif rng.random() < 0.5:
        shape.stroke([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)], rng.uniform(0.03, 0.1), tone=-0.6)
    return shape


def antenna(rng: Rng) -> Shape:
    """A mast with cross-bars, or a lattice tower."""
    shape = Shape()
    mast = log_uniform(rng, 0.02, 0.06)
    if rng.random() < 0.5:
        shape.stroke([(0, 0), (0, -2)], mast, mast * 0.7)
        for share in np.linspace(0.45, 1.0, int(rng.integers(3, 12))):
            half = rng.uniform(0.15, 0.6)
            shape.stroke([(-half, -2 * share), (half, -2 * share)], mast * 0.5, tone=0.4)
        return shape
    base, steps = rng.uniform(0.2, 0.5), int(rng.integers(5, 12))
    levels = np.linspace(0, 1, steps)
    widths = base * (1 - 0.8 * levels)
    for k in range(steps - 1):
        for a, b in ((-1, 1), (1, -1)):
            brace = [(a * widths[k], -2 * levels[k]), (b * widths[k + 1], -2 * levels[k + 1])]
            shape.stroke(brace, mast * 0.5, tone=0.4)
        shape.stroke([(-widths[k], -2 * levels[k]), (widths[k], -2 * levels[k])], mast * 0.5, tone=0.2)
    for side in (-1, 1):
        shape.stroke([(side * base, 0), (side * base * 0.2, -2)], mast, tone=-0.2)
    return shape


def wire(rng: Rng) -> Shape:
    """A long wire, cable or rope with a plug, lamp or hook on it."""
    shape = Shape()
    width = log_uniform(rng, 0.008, 0.045)
    line = curve(wander(rng, (0, 0), rng.uniform(0, 2 * np.pi), 2.5, 3.5, 14), 90)
    shape.stroke(line, width)
    end = line[-1]
    if rng.random() < 0.5:
        shape.disc(tuple(end), rng.uniform(0.06, 0.3), tone=-0.6)
    else:
        size = rng.uniform(0.08, 0.25)
        shape.fill(outline(rng, 0.2, size) + end, tone=-0.6)
        for side in (-1, 1):
            prong = np.array([np.cos(0.25 * side), np.sin(0.25 * side)])
            shape.stroke([end, end + 1.7 * size * prong], width, tone=0.7)
    return shape


def letters(rng: Rng) -> Shape:
    """One to five letters or digits, touching a bar, as one sign."""
    text = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUWXYZabdegkmnopqrs2345689&?#"), int(rng.integers(1, 5))))
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_SCRIPT_COMPLEX]))
    canvas = np.zeros((420, 260 * len(text) + 120), np.uint8)
    cv2.putText(canvas, text, (50, 300), font, 8.0, 255, int(rng.integers(10, 56)), cv2.LINE_AA)
    columns = np.nonzero(canvas.any(axis=0))[0]
    shape = Shape()
    if len(columns) == 0:
        return polygon(rng)
    contours, _ = cv2.findContours(
        (cv2.GaussianBlur(canvas, (0, 0), 2.0) > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    smooth = [cv2.blur(c[:, 0].astype(np.float32)[:, None], (1, 5))[::2, 0] for c in contours if len(c) > 12]
    shape.fill(*smooth)
    # Separate letters are one object only when something joins them.
    if len(text) > 1 or rng.random() < 0.3:
        y = 300 + rng.uniform(0, 25)
        shape.stroke([(columns[0] - 20, y), (columns[-1] + 20, y)], rng.uniform(12, 40), tone=-0.5)
    return shape


def ring(rng: Rng) -> Shape:
    """A ring, a chain of rings, a key or a pair of glasses."""
    shape = Shape()
    width, x = rng.uniform(0.06, 0.45), 0.0
    for _ in range(int(rng.choice([1, 1, 2, 3, 5]))):
        ry = rng.uniform(0.6, 1.1)
        circle = arc((x, 0), 1.0, ry)
        shape.stroke(np.concatenate([circle, circle[:1]]), width, tone=rng.uniform(-0.4, 0.4))
        x += 2.0
    if rng.random() < 0.4:
        reach = x - 1.0 + rng.uniform(0.8, 2.5)
        shape.stroke([(x - 1.0, 0), (reach, rng.normal(0, 0.3))], width * 0.8, tone=0.4)
        shape.stroke([(reach, 0), (reach, 0.5)], width * 0.6, tone=0.4)
    return shape


def comb(rng: Rng) -> Shape:
    """A comb, fork, rake or brush: a handle and many teeth."""
    shape = Shape()
    count = int(rng.integers(3, 26))
    pitch, spine = 1.0 / count, rng.uniform(0.06, 0.25)
    reach, fan = rng.uniform(0.3, 1.0), rng.choice([0.0, rng.uniform(0, 0.5)])
    for x in np.linspace(-0.5, 0.5, count):
        shape.stroke([(x, 0), (x * (1 + fan), reach)], pitch * rng.uniform(0.3, 0.6), pitch * 0.25, tone=0.3)
    shape.stroke([(-0.5, 0), (0.5, 0)], spine, tone=-0.2)
    if rng.random() < 0.6:
        shape.stroke([(0, 0), (rng.normal(0, 0.1), -rng.uniform(0.8, 2.0))], spine * rng.uniform(0.5, 1.0), tone=-0.6)
    return shape


def scissors(rng: Rng) -> Shape:
    """Scissors or pliers: two crossed blades with ring handles."""
    shape = Shape()
    spread = rng.uniform(0.08, 0.5)
    for side in (-1, 1):
        tip = (side * np.sin(spread), -np.cos(spread) * rng.uniform(0.9, 1.1))
        grip = (-side * np.sin(spread) * 1.0 - side * 0.12, 0.7)
        shape.stroke([(0, 0), tip], 0.16, 0.02, tone=0.6)
        shape.stroke([(0, 0), grip], 0.1, tone=-0.2)
        loop = arc((grip[0], grip[1] + 0.2), 0.17, 0.24)
        shape.stroke(np.concatenate([loop, loop[:1]]), 0.08, tone=-0.8)
    return shape


def lamp(rng: Rng) -> Shape:
    """A lamp, umbrella or mushroom: a thin stand with a shade and a foot."""
    shape = Shape()
    pole = curve([(0, 0), (rng.normal(0, 0.15), -0.8), (rng.normal(0, 0.3), -1.6)], 20)
    shape.stroke(pole, log_uniform(rng, 0.02, 0.07), tone=-0.4)
    top, wide, high = pole[-1], rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.6)
    if rng.random() < 0.5:
        shape.fill(top + np.array([(-wide * 0.4, -high), (wide * 0.4, -high), (wide, 0.1), (-wide, 0.1)]), tone=0.7)
    else:
        rim = arc((top[0], top[1]), wide, high, np.pi, 2 * np.pi, 30)
        shape.fill(rim, tone=0.6)
        for k in np.linspace(0, 29, int(rng.integers(4, 9))).astype(int):
            shape.stroke([rim[k], (top[0], top[1])], 0.018, tone=-0.2)
    shape.disc((0, 0), rng.uniform(0.15, 0.4), 0.06, tone=-0.6)
    return shape


def boat(rng: Rng) -> Shape:
    """A sailing boat with masts, sails and rigging."""
    shape = Shape()
    hull = [(-0.9, 0), (0.9, -0.06), (0.6, 0.3), (-0.7, 0.3)]
    thin = log_uniform(rng, 0.008, 0.02)
    for x in rng.uniform(-0.4, 0.4, int(rng.integers(1, 3))):
        top = (x, -rng.uniform(1.0, 1.8))
        for end in ((-0.9, 0.0), (0.9, -0.05)):
            shape.stroke([top, end], thin, tone=-0.4)
        if rng.random() < 0.7:
            shape.fill([(x + 0.04, top[1] + 0.05), (x + 0.04, -0.15), (x + rng.uniform(0.3, 0.7), -0.2)], tone=0.8)
        shape.stroke([(x, 0.1), top], 0.045, 0.02, tone=-0.2)
    shape.fill(hull, tone=-0.6)
    return shape


FAMILIES: dict[str, tuple[float, Callable[[Rng], Shape]]] = {
    "polygon": (0.8, polygon),
    "star": (0.6, star),
    "chair": (1.2, chair),
    "wheel": (0.6, wheel),
    "bicycle": (1.2, bicycle),
    "ladder": (0.7, ladder),
    "fence": (0.6, fence),
    "net": (0.6, net),
    "antenna": (0.8, antenna),
    "wire": (0.9, wire),
    "letters": (0.8, letters),
    "ring": (0.8, ring),
    "comb": (0.7, comb),
    "scissors": (0.5, scissors),
    "lamp": (0.9, lamp),
    "boat": (0.6, boat),
}
