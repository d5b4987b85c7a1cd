"""Rings in windows are the rings of the whole image."""

from __future__ import annotations

import numpy as np
import pytest

from hqsam.metrics.boundary import boundary_region
from hqsam.metrics.rings import RingMask, decode_window
from hqsam.rle import compress_runs, encode_rle
from tests.unit.metrics.instance_cases import SIZES, disturb, random_mask


def unfold(window_x: int, window_y: int, pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    full = np.zeros(shape, dtype=bool)
    full[window_y : window_y + pixels.shape[1], window_x : window_x + pixels.shape[0]] = pixels.T
    return full


@pytest.mark.parametrize("size", [*SIZES, (1, 40), (40, 1), (1, 1)])
def test_windows_and_rings_are_those_of_the_image(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        mask = random_mask(generator, size) if min(size) > 3 else generator.random(size) < 0.5
        window = decode_window(encode_rle(mask))
        assert (unfold(*window, size) == mask).all()
        if mask.any():
            assert window.pixels[[0, -1]].any(axis=1).all() and window.pixels[:, [0, -1]].any(axis=0).all()
        rings = RingMask(encode_rle(mask), [max(1, round(r * np.hypot(*size))) for r in (0.02, 0.1, 0.01)])
        for ring, ratio in zip(rings.rings, (0.02, 0.1, 0.01), strict=True):
            assert (unfold(rings.x, rings.y, ring, size) == boundary_region(mask, ratio)).all()


def test_overlaps_are_those_of_the_image() -> None:
    generator = np.random.default_rng(1)
    for _ in range(100):
        size = SIZES[generator.integers(3)]
        one = random_mask(generator, size)
        two = disturb(generator, one) if generator.random() < 0.7 else random_mask(generator, size)
        widths = [max(1, round(r * np.hypot(*size))) for r in (0.02, 0.01)]
        found = RingMask(encode_rle(one), widths).overlaps(RingMask(encode_rle(two), widths))
        for value, ratio in zip(found, (0.02, 0.01), strict=True):
            a, b = boundary_region(one, ratio), boundary_region(two, ratio)
            assert value == ((a & b).sum() / (a | b).sum() if (a & b).any() else 0.0)


def test_runs_without_pixels_and_damaged_runs() -> None:
    rle = {"size": [4, 3], "counts": compress_runs([2, 0, 3, 2, 0, 1, 4], 4, 3)}
    window = decode_window(rle)  # type: ignore[arg-type]
    expected = np.zeros(12, dtype=bool)
    expected[5:8] = True
    assert (unfold(*window, (4, 3)) == expected.reshape(3, 4).T).all()
    for size in ([4, 4], [3, 3]):
        with pytest.raises(ValueError, match="add up"):
            decode_window({"size": size, "counts": rle["counts"]})  # type: ignore[typeddict-item]
