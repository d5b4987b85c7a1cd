"""A real object, cut out by a soft mask, pasted on a real background."""

from __future__ import annotations

import cv2
import numpy as np

from hqsam.data.synthetic.compose import Layer, blend, blurred, cast_shadow, draw_light, local_color
from hqsam.data.synthetic.degrade import photograph, to_bytes
from hqsam.data.synthetic.scene import Scene, check_size
from hqsam.data.synthetic.textures import ByteArray, FloatArray, Rng, log_uniform


def paste_cutout(
    background: ByteArray,
    foreground: ByteArray,
    alpha: ByteArray,
    rng: Rng,
    size: int | tuple[int, int] = 1024,
    *,
    name: str = "cutout",
    degrade: bool = True,
) -> Scene:
    """Paste a real object on a real background: scaled, turned, flipped, matched in colour, with a shadow.

    Args:
        background: (H, W, 3) uint8 RGB photograph; a random crop of it fills the picture.
        foreground: (h, w, 3) uint8 RGB photograph of the object.
        alpha: (h, w) uint8 0..255, the object's opacity in it.
        rng: source of randomness; the same state gives the same scene.
        size: side of a square, or (height, width), of the result in pixels.
        name: name of the object.
        degrade: as for `generate_scene`.

    Returns:
        A scene with one mask: the pasted alpha, after all changes of form and blur.

    Raises:
        ValueError: an array has the wrong shape or type, the alpha is empty, or the size is too small.
    """
    hw = check_size(size)
    _check_arrays(background, foreground, alpha)
    canvas = _cover(rng, background, hw)
    light = draw_light(rng, max(hw))
    sigma = log_uniform(rng, 0.2, 0.8) * max(hw) / 1024
    cut, opacity = _crop(foreground, alpha)
    for _ in range(20):
        layer, premultiplied = _warp(rng, cut, opacity, hw, name, sigma)
        if float(layer.alpha.max()) > 0.5:
            break
    else:
        raise ValueError("alpha vanishes when scaled down to the picture; give a larger object or size.")
    plain = np.asarray(premultiplied / np.maximum(layer.alpha, 1e-3)[..., None], dtype=np.float32)
    color = _match(rng, plain, layer, local_color(canvas, layer))
    cast_shadow(rng, canvas, layer, light)
    blend(canvas, layer, color)
    mask = np.zeros(hw, np.uint8)
    mask[layer.window] = np.rint(layer.alpha * 255)
    return Scene(photograph(rng, canvas) if degrade else to_bytes(canvas), [mask], [name])


def _check_arrays(background: ByteArray, foreground: ByteArray, alpha: ByteArray) -> None:
    for label, array in (("background", background), ("foreground", foreground)):
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or array.size == 0:
            raise ValueError(f"{label} must be uint8 RGB of shape (H, W, 3), got {array.dtype} {array.shape}.")
    if alpha.dtype != np.uint8 or alpha.shape != foreground.shape[:2]:
        legal = f"uint8 of the foreground's shape {foreground.shape[:2]}"
        raise ValueError(f"alpha must be {legal}, got {alpha.dtype} {alpha.shape}.")
    if int(alpha.max()) < 128:
        raise ValueError(f"alpha must have a value of at least 128 somewhere, its maximum is {int(alpha.max())}.")


def _cover(rng: Rng, image: ByteArray, hw: tuple[int, int]) -> FloatArray:
    """A random crop of the picture with the aspect ratio of hw, scaled to it."""
    h, w = image.shape[:2]
    scale = min(h / hw[0], w / hw[1]) * rng.uniform(0.7, 1.0)
    ch, cw = max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))
    y, x = int(rng.integers(0, h - ch + 1)), int(rng.integers(0, w - cw + 1))
    crop = image[y : y + ch, x : x + cw]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    scaled = cv2.resize(np.ascontiguousarray(crop), (hw[1], hw[0]), interpolation=method)
    return np.asarray(scaled, dtype=np.float32)


def _crop(foreground: ByteArray, alpha: ByteArray) -> tuple[FloatArray, FloatArray]:
    """The object's window, its colours free of the old background, and its opacity 0..1."""
    rows, columns = np.nonzero(alpha.max(axis=1) > 8)[0], np.nonzero(alpha.max(axis=0) > 8)[0]
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    color, opacity = foreground[window].astype(np.float32), alpha[window].astype(np.float32) / np.float32(255)
    # Half-transparent pixels hold colour of the old background: take that of the solid pixels nearby instead.
    solid = np.clip((opacity - np.float32(0.9)) * 10, 0, 1)
    clean, total = np.zeros_like(color), np.full(opacity.shape, 1e-6, np.float32)
    for sigma, trust in ((1.5, 1.0), (6.0, 0.01), (24.0, 1e-4)):
        weight = cv2.GaussianBlur(solid, (0, 0), sigma) * np.float32(trust)
        clean += cv2.GaussianBlur(color * solid[..., None], (0, 0), sigma) * np.float32(trust)
        total += weight
    clean /= total[..., None]
    known = np.clip(total / np.float32(1e-4), 0, 1) * (1 - solid)
    return color + (clean - color) * known[..., None], opacity


def _warp(
    rng: Rng, color: FloatArray, alpha: FloatArray, hw: tuple[int, int], name: str, sigma: float
) -> tuple[Layer, FloatArray]:
    """Place the object in the picture; also its colours times its opacity."""
    h, w = alpha.shape
    room = min(hw[0] / h, hw[1] / w)
    scale = min(rng.uniform(0.4, 1.05) * room, max(2.5, 0.3 * room))
    if scale < 0.7:
        # Warping alone would skip pixels; average them first.
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        stacked = np.dstack([color * alpha[..., None], alpha])
        stacked = cv2.resize(stacked, size, interpolation=cv2.INTER_AREA)
        fx, fy = size[0] / w, size[1] / h
        scale_x, scale_y = 1.0, 1.0
    else:
        stacked, fx, fy, scale_x, scale_y = np.dstack([color * alpha[..., None], alpha]), 1.0, 1.0, scale, scale
    # Room around the object, so that blur and interpolation see it end.
    stacked = cv2.copyMakeBorder(stacked, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    angle = rng.normal(0, 0.12)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([mirror * scale_x, scale_y])
    spare = np.array([hw[1] - w * fx * scale_x, hw[0] - h * fy * scale_y])
    center = np.array([hw[1], hw[0]]) / 2 + rng.uniform(-0.6, 0.6, 2) * np.maximum(spare, 0)
    middle = (np.array([stacked.shape[1], stacked.shape[0]]) - 1) / 2
    affine = np.concatenate([matrix, (center - 0.5 - matrix @ middle)[:, None]], axis=1)
    warped = cv2.warpAffine(stacked, affine, (hw[1], hw[0]), flags=cv2.INTER_LINEAR)
    warped = blurred(warped, sigma)
    opacity = np.clip(warped[..., 3], 0, 1)
    return Layer(name, 0, 0, opacity), np.ascontiguousarray(warped[..., :3])


def _match(rng: Rng, color: FloatArray, layer: Layer, under: FloatArray) -> FloatArray:
    """Move the object's brightness and tint some way towards its surroundings."""
    weight = layer.alpha[::4, ::4].reshape(-1)
    own = (color[::4, ::4].reshape(-1, 3) * weight[:, None]).sum(axis=0) / max(float(weight.sum()), 1e-3)
    share = rng.uniform(0.0, 0.4)
    gain = np.clip(np.exp(share * np.log((under + 8) / (own + 8)) + rng.normal(0, 0.06, 3)), 0.5, 1.8)
    return np.asarray(np.clip(color * gain.astype(np.float32), 0, 255), dtype=np.float32)
