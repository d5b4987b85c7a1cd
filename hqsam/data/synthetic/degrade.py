"""What a camera does to a finished scene. Nothing here moves an edge, so masks stay as they are."""

from __future__ import annotations

import cv2
import numpy as np

from hqsam.data.synthetic.textures import ByteArray, FloatArray, Rng, log_uniform, normal, resize


def light_field(rng: Rng, hw: tuple[int, int]) -> FloatArray:
    """Smooth RGB gain (H, W, 3) near 1: slanted light, vignetting, colour temperature, exposure."""
    y, x = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32), indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    gain = 1 + rng.normal(0, 0.13) * (x * np.cos(angle) + y * np.sin(angle))
    if rng.random() < 0.4:
        gain = gain * (1 - rng.uniform(0.05, 0.3) * (x**2 + y**2) / 2)
    if rng.random() < 0.25:
        spot = rng.uniform(-1, 1, 2)
        distance = ((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / rng.uniform(0.1, 1)
        gain = gain * (1 + rng.uniform(-0.35, 0.5) * np.exp(-distance))
    warmth = rng.normal(0, 0.06)
    tint = np.array([1 + warmth, 1 + rng.normal(0, 0.015), 1 - warmth])
    field = np.clip(gain[..., None] * tint * np.exp(rng.normal(0, 0.12)), 0.3, 1.8).astype(np.float32)
    return resize(field, hw)


def _noise(rng: Rng, image: FloatArray) -> None:
    """Add sensor noise in place: brightness noise per pixel, coarser colour noise."""
    hw = image.shape[:2]
    sigma = log_uniform(rng, 0.4, 7.0)
    grain = normal(rng, (hw[0], hw[1])) * np.float32(sigma)
    if rng.random() < 0.6:
        # Demosaicing and noise reduction leave noise that is correlated between neighbours.
        grain = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.4, 1.0)) * np.float32(1.3)
    half = ((hw[0] + 1) // 2, (hw[1] + 1) // 2)
    color = rng.standard_normal((*half, 3), dtype=np.float32) * np.float32(sigma * rng.uniform(0.1, 0.7))
    image += resize(color, (hw[0], hw[1]))
    image += grain[..., None]


def _saturate(rng: Rng, image: FloatArray) -> None:
    """Mute or strengthen the colours in place; some pictures have none."""
    share = 0.0 if rng.random() < 0.06 else rng.uniform(0.35, 1.1)
    gray = image @ np.array([0.299, 0.587, 0.114], np.float32)
    image -= gray[..., None]
    image *= np.float32(share)
    image += gray[..., None]


def _resample(rng: Rng, image: ByteArray) -> ByteArray:
    """Lose fine detail, as a picture that was small and has been enlarged."""
    h, w = image.shape[:2]
    scale = rng.uniform(0.45, 0.9)
    small = cv2.resize(image, (max(1, int(w * scale)), max(1, int(h * scale))), interpolation=cv2.INTER_AREA)
    method = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(small, (w, h), interpolation=method), dtype=np.uint8)


def photograph(rng: Rng, image: FloatArray) -> ByteArray:
    """Turn a clean scene into a photograph: colour, light, noise, lost resolution, sharpening, JPEG.

    Args:
        rng: source of randomness.
        image: (H, W, 3) float32 RGB 0..255; overwritten.

    Returns:
        (H, W, 3) uint8 RGB, edges at the same places.
    """
    hw = (image.shape[0], image.shape[1])
    _saturate(rng, image)
    image *= light_field(rng, hw)
    if rng.random() < 0.85:
        _noise(rng, image)
    result = to_bytes(image)
    if rng.random() < 0.35:
        result = _resample(rng, result)
    if rng.random() < 0.4:
        soft = cv2.GaussianBlur(result, (0, 0), rng.uniform(0.7, 1.6))
        amount = rng.uniform(0.2, 0.9)
        result = np.asarray(cv2.addWeighted(result, 1 + amount, soft, -amount, 0), dtype=np.uint8)
    if rng.random() < 0.6:
        result = jpeg(result, int(rng.integers(35, 96)))
    return result


def jpeg(image: ByteArray, quality: int) -> ByteArray:
    """Encode (H, W, 3) RGB as JPEG at a quality of 1..100 and decode it again."""
    # The codec takes blue first.
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


def to_bytes(image: FloatArray) -> ByteArray:
    """Round and clip RGB (H, W, 3) float32 to uint8."""
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)
