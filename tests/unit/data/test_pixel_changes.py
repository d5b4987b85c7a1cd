from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from hqsam.data.augment import LSJRule, warp_image
from hqsam.data.pixel_changes import PixelChange, PixelRule

SEEDS = range(40)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scene(side: int = 96) -> np.ndarray:
    """A bright disc on a dark slope."""
    y, x = np.mgrid[:side, :side] / side
    gray = 60 + 40 * x + 100 * ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09)
    return np.stack([gray, gray * 0.8, gray * 0.6], axis=2).astype(np.uint8)


def pixels(seed: int, *, photometric: bool = True, degradation: bool = True) -> np.ndarray:
    return PixelChange(photometric, degradation, seed)(scene())


def digest(seed: int) -> bytes:
    return pixels(seed).tobytes()


def test_the_same_numbers_give_the_same_pixels_in_any_order() -> None:
    first = [digest(seed) for seed in range(6)]
    np.random.seed(5)  # noqa: NPY002 - a global generator must have no influence
    assert [digest(seed) for seed in reversed(range(6))] == first[::-1]
    assert len(set(first)) > 4
    kinds = {pixels(7, photometric=a, degradation=b).tobytes() for a, b in ((True, False), (False, True), (True, True))}
    assert len(kinds) == 3


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_change_nothing(start: str) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {start}")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(start)) as pool:
        assert list(pool.map(digest, range(4))) == [digest(seed) for seed in range(4)]


def test_nothing_moves() -> None:
    """Edges stay where they are to a fraction of a pixel, also far from the corner: else image and mask would part."""
    image = np.full((211, 317, 3), 50, np.uint8)
    image[150:, 260:] = 200
    for seed in SEEDS:
        gray = PixelChange(False, True, seed)(image).astype(float).mean(2)
        gray -= gray[:100, :200].mean()
        gray /= gray[180:, 290:].mean()
        # means over the length of an edge, summed across it: 50 of 100 pixels are bright
        assert abs(gray[100:200, 270:310].mean(1).sum() - 50) < 0.5
        assert abs(gray[160:200, 210:310].mean(0).sum() - 50) < 0.5


def test_the_object_stays_recognisable() -> None:
    disc = scene()[..., 0] > 130
    for seed in SEEDS:
        changed = pixels(seed).astype(float).mean(2)
        assert changed[40:56, 40:56].mean() > changed[~disc].mean() + 25


def test_padding_stays_exactly_what_it_was() -> None:
    image, fill = scene(60)[:45], (124, 116, 104)
    params = LSJRule(jitter=None, flip_prob=0).draw(image.shape[:2], 128, rng())
    for seed in range(10):
        frame = warp_image(image, params, fill, change=PixelChange(True, True, seed))
        assert (frame[96:] == fill).all()
        assert frame.shape == (128, 128, 3)
        assert (frame[:96] != warp_image(image, params, fill)[:96]).any()


@pytest.mark.parametrize("hw", [(1, 1), (1, 40), (15, 200), (16, 16), (17, 300)])
def test_tiny_pictures(hw: tuple[int, int]) -> None:
    image = rng().integers(0, 256, (*hw, 3), dtype=np.uint8)
    for seed in range(12):
        changed = PixelChange(True, True, seed)(image)
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        if min(hw) < 16:
            assert (changed == image).all()


def test_chances() -> None:
    assert PixelRule().draw(rng()) is None
    generator = rng()
    drawn = [PixelRule(photometric=0.5, degradation=0.2).draw(generator) for _ in range(2000)]
    assert abs(np.mean([d is not None and d.photometric for d in drawn]) - 0.5) < 0.05
    assert abs(np.mean([d is not None and d.degradation for d in drawn]) - 0.2) < 0.05
    assert abs(np.mean([d is None for d in drawn]) - 0.4) < 0.05
    assert len({d.seed for d in drawn if d is not None}) > 1000


@pytest.mark.parametrize("arguments", [{"photometric": 1.1}, {"degradation": -0.1}])
def test_chances_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(arguments))} must be within 0\.\.1"):
        PixelRule(**arguments)
