"""Whole scenes: generated from a seed, or a real cut-out on a real background."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np

from hqsam.data.synthetic import held_out, living, made
from hqsam.data.synthetic.background import background
from hqsam.data.synthetic.compose import (
    Layer,
    Light,
    blend,
    blurred,
    cast_shadow,
    draw_light,
    local_color,
    paint,
    visible_alphas,
)
from hqsam.data.synthetic.degrade import photograph, to_bytes
from hqsam.data.synthetic.shapes import bend, place, rasterize
from hqsam.data.synthetic.textures import ByteArray, FloatArray, Rng, log_uniform

MIN_SIZE = 32
MAX_OBJECTS = 16
MIN_AREA = 0.001
"""Smallest visible share of the image of a listed object."""
MIN_VISIBLE = 0.35
"""Smallest share of an object's own area that others must leave visible: what is left of less is not its shape."""

# Smallest and largest long side as a share of the image's, and how far inside the image the centre lies.
_SIZES = {
    "behind": (0.15, 0.7, 0.0),
    "listed": (0.14, 0.6, 0.1),
    "subject": (0.5, 1.15, 0.3),
    "front": (0.1, 0.4, 0.0),
}
OBJECT_KINDS: tuple[str, ...] = tuple(living.FAMILIES | made.FAMILIES)
"""Names of the kinds of objects."""
HELD_OUT_KINDS: tuple[str, ...] = tuple(held_out.FAMILIES)
"""Names of further kinds, drawn where they are named alone; no training configuration takes them."""
_FAMILIES = living.FAMILIES | made.FAMILIES | held_out.FAMILIES


@dataclass(frozen=True)
class Scene:
    """A picture with the exact masks of its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: one (H, W) uint8 per object, 0..255 = the share of the pixel's colour that comes from the object
            (its opacity times what objects in front let through). The shares of a pixel add up to at most 255,
            apart from rounding.
        names: the kind of each object.
    """

    image: ByteArray
    masks: list[ByteArray]
    names: list[str]


def generate_scene(
    seed: int,
    size: int | tuple[int, int] = 1024,
    *,
    num_objects: int | None = None,
    degrade: bool = True,
    kinds: Collection[str] | None = None,
) -> Scene:
    """Generate a scene; the same arguments give the same scene.

    Args:
        seed: whole number >= 0.
        size: side of a square, or (height, width), in pixels; each at least 32.
        num_objects: how many objects to place that may be listed, 1..16; 2 to 6 are drawn when None. The scene may
            list fewer, never none: objects with less than 0.1 % of the image or 35 % of themselves visible are
            left out.
        degrade: add light fall-off, sensor noise, lost resolution, sharpening and JPEG artefacts. None of them moves
            an edge.
        kinds: kinds of objects that are drawn, of `OBJECT_KINDS` and `HELD_OUT_KINDS`; all of the former when None.
            Their order does not matter.

    Raises:
        ValueError: an argument is of the wrong type or out of range, or there is no such kind.
    """
    hw = check_size(size)
    kinds = check_kinds(OBJECT_KINDS if kinds is None else kinds)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}.")
    count_ok = num_objects is None or (isinstance(num_objects, (int, np.integer)) and 1 <= num_objects <= MAX_OBJECTS)
    if isinstance(num_objects, bool) or not count_ok:
        raise ValueError(f"num_objects must be a whole number in 1..{MAX_OBJECTS} or None, got {num_objects!r}.")
    for attempt in range(100):
        scene = _attempt(np.random.default_rng([int(seed), attempt]), hw, num_objects, degrade, kinds)
        if scene.masks:
            return scene
    raise AssertionError("a hundred scenes in a row without a visible object")


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size argument; ValueError when it is malformed or below `MIN_SIZE`."""
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    valid = len(sides) == 2 and all(isinstance(s, (int, np.integer)) and not isinstance(s, bool) for s in sides)
    if not valid or min(sides) < MIN_SIZE:
        raise ValueError(f"size must be a side or (height, width) of at least {MIN_SIZE} pixels, got {size!r}.")
    return int(sides[0]), int(sides[1])


def check_kinds(kinds: Collection[str]) -> tuple[str, ...]:
    """The kinds in one order, each once; ValueError when there are none or one is unknown."""
    wanted = set(kinds)
    if not wanted or isinstance(kinds, str) or not wanted <= set(_FAMILIES):
        raise ValueError(f"kinds must be some of {', '.join(_FAMILIES)}, got {kinds!r}.")
    return tuple(kind for kind in _FAMILIES if kind in wanted)


def _attempt(rng: Rng, hw: tuple[int, int], num_objects: int | None, degrade: bool, kinds: tuple[str, ...]) -> Scene:
    long_side = max(hw)
    light = draw_light(rng, long_side)
    canvas = background(rng, hw).astype(np.float32)
    # A shallow depth of field blurs the background and whatever is far from the objects that matter.
    shallow = rng.random() < 0.4
    focus = log_uniform(rng, 0.35, 1.1) * long_side / 1024
    if shallow:
        canvas = _defocus(canvas, log_uniform(rng, 0.001, 0.012) * long_side)
    wanted = int(rng.integers(2, 7)) if num_objects is None else num_objects
    roles = ["behind"] * int(rng.integers(0, 3)) + ["listed"] * wanted + ["front"] * int(rng.choice([0, 0, 1, 2]))
    if rng.random() < 0.6:
        # Photographs mostly have one main subject.
        roles[roles.index("listed") + int(rng.integers(wanted))] = "subject"
    layers: list[Layer] = []
    for role in roles:
        sigma = focus
        if role in ("behind", "front") and shallow:
            sigma += log_uniform(rng, 0.5, 6.0) * long_side / 1024
        elif rng.random() < 0.15:
            sigma += rng.uniform(0.2, 1.5) * long_side / 1024
        layer = _add_object(rng, canvas, role, sigma, light, kinds)
        if layer is not None:
            layers.append(layer)
    masks, names = _listed(layers, hw)
    return Scene(photograph(rng, canvas) if degrade else to_bytes(canvas), masks, names)


def _defocus(image: FloatArray, sigma: float) -> FloatArray:
    if sigma < 3:
        return blurred(image, sigma)
    # A wide blur has no detail to lose at half the resolution.
    h, w = image.shape[:2]
    small = cv2.resize(image, (max(1, w // 2), max(1, h // 2)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(blurred(small, sigma / 2), (w, h), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _add_object(
    rng: Rng, canvas: FloatArray, role: str, sigma: float, light: Light, kinds: tuple[str, ...]
) -> Layer | None:
    """Draw an object onto the canvas; None when it came to lie outside the picture."""
    hw = (canvas.shape[0], canvas.shape[1])
    weights = np.array([_FAMILIES[kind][0] for kind in kinds])
    name = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
    shape = _FAMILIES[name][1](rng)
    if rng.random() < 0.5:
        shape = bend(rng, shape, log_uniform(rng, 0.01, 0.12))
    low, high, inset = _SIZES[role]
    long_side = log_uniform(rng, low, high) * max(hw)
    center = rng.uniform(inset, 1 - inset, 2) * (hw[1], hw[0])
    angle = rng.normal(0, 0.12) if rng.random() < 0.7 else rng.uniform(0, 2 * np.pi)
    placed = place(shape, tuple(center), long_side, angle, rng.uniform(0.7, 1.2), bool(rng.random() < 0.5))
    thinnest = max(rng.uniform(0.9, 1.8), 1.2 * sigma)
    raster = rasterize(placed, hw, margin=int(3 * sigma) + 1, min_width=thinnest)
    if raster is None:
        return None
    alpha = blurred(raster.alpha.astype(np.float32) / np.float32(255), sigma)
    layer = Layer(name, raster.y0, raster.x0, alpha, role in ("listed", "subject"))
    color = paint(rng, raster, local_color(canvas, layer), light)
    cast_shadow(rng, canvas, layer, light)
    blend(canvas, layer, blurred(color, sigma) if sigma > 1 else color)
    return layer


def _listed(layers: list[Layer], hw: tuple[int, int]) -> tuple[list[ByteArray], list[str]]:
    """Masks and names of the listed layers of which enough can be seen."""
    masks, names = [], []
    for layer, visible in zip(layers, visible_alphas(layers, hw), strict=True):
        area, whole = float(visible.sum()), float(layer.alpha.sum())
        if not layer.listed or area < MIN_AREA * hw[0] * hw[1] or area < MIN_VISIBLE * whole or visible.max() < 0.75:
            continue
        mask = np.zeros(hw, np.uint8)
        mask[layer.window] = np.rint(visible * 255)
        masks.append(mask)
        names.append(layer.name)
    return masks, names
