from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hqsam.data.augment import LSJParams, LSJRule, warp_image, warp_mask
from hqsam.geometry import ResizeLongestSide

FILL = (1, 2, 3)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def test_crop_at_its_own_scale_is_a_copy() -> None:
    image = noise((20, 30))
    params = LSJParams((20, 30), 16, False, (20, 30), (3, 5))
    np.testing.assert_array_equal(warp_image(image, params, FILL), image[3:19, 5:21])
    np.testing.assert_array_equal(warp_mask(image[..., 0], params), image[3:19, 5:21, 0])


def test_flip_comes_before_the_crop() -> None:
    image = noise((20, 30))
    params = LSJParams((20, 30), 16, True, (20, 30), (3, 5))
    np.testing.assert_array_equal(warp_image(image, params, FILL), image[:, ::-1][3:19, 5:21])


def test_small_image_is_padded_at_the_bottom_and_on_the_right() -> None:
    image = noise((4, 6))
    params = LSJParams((4, 6), 8, False, (4, 6))
    frame, mask = warp_image(image, params, FILL), warp_mask(image[..., 0], params)
    np.testing.assert_array_equal(frame[:4, :6], image)
    assert (frame[4:] == FILL).all()
    assert (frame[:, 6:] == FILL).all()
    assert not mask[4:].any()
    assert not mask[:, 6:].any()
    assert params.visible_hw == (4, 6)


def test_doubled_pixels_by_hand() -> None:
    mask = np.array([[0, 0, 0], [0, 255, 0], [0, 0, 0]], dtype=np.uint8)
    # bilinear at twice the size samples at -1/4 and +1/4: 3/4 and 1/4 of each neighbour
    line = np.array([0, 0.25, 0.75, 0.75, 0.25, 0])
    np.testing.assert_allclose(warp_mask(mask, LSJParams((3, 3), 6, False, (6, 6))), np.outer(line, line) * 255, atol=1)


def test_halved_pixels_are_antialiased() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:, ::2] = 255  # stripes of one pixel: without antialiasing they stay or vanish
    half = warp_mask(mask, LSJParams((8, 8), 4, False, (4, 4)))
    assert np.abs(half.astype(int) - 128)[:, 1:-1].max() <= 1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("offset", [(0, 0), (37, 11), (60, 100)])
def test_one_pass_equals_resize_then_crop(flip: bool, offset: tuple[int, int]) -> None:
    image = noise((70, 90))
    params = LSJParams((70, 90), 64, flip, (131, 168), offset)
    source = Image.fromarray(image[:, ::-1] if flip else image)
    whole = np.asarray(source.resize((168, 131), Image.Resampling.BILINEAR))
    expected = whole[offset[0] : offset[0] + 64, offset[1] : offset[1] + 64]
    assert np.abs(warp_image(image, params, FILL).astype(int) - expected).max() <= 1


def test_without_jitter_the_frame_is_what_the_predictor_computes() -> None:
    rule = LSJRule(jitter=None, flip_prob=0)
    for hw in ((50, 90), (200, 133), (64, 64)):
        params = rule.draw(hw, 64, rng())
        expected = ResizeLongestSide(64).apply_image(noise(hw))
        height, width = params.visible_hw
        assert (height, width) == expected.shape[:2]
        np.testing.assert_array_equal(warp_image(noise(hw), params, FILL)[:height, :width], expected)


@settings(max_examples=60, deadline=None)
@given(
    hw=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    seed=st.integers(0, 2**32),
    high=st.floats(0.1, 3),
)
def test_drawn_parameters_are_consistent(hw: tuple[int, int], seed: int, high: float) -> None:
    params = LSJRule(jitter=(0.1, high)).draw(hw, 48, rng(seed))
    assert max(params.resized_hw) <= max(int(high * 48 + 0.5), 1)
    x0, y0, x1, y1 = params.source_box
    assert 0 <= x0 < x1 <= hw[1]
    assert 0 <= y0 < y1 <= hw[0]
    for axis in (0, 1):
        assert 0 <= params.offset_yx[axis] <= params.resized_hw[axis] - params.visible_hw[axis]
    assert warp_mask(np.zeros(hw, np.uint8), params).shape == (48, 48)


@pytest.mark.parametrize("seed", range(12))
def test_image_and_mask_stay_aligned(seed: int) -> None:
    """An image that holds its own coordinates, drawn as mask too: both must say the same after any jitter."""
    ys, xs = np.mgrid[:90, :120]
    image = np.stack([xs * 2, ys * 2, xs * 0], axis=2).astype(np.uint8)
    params = LSJRule(jitter=(0.3, 2.0)).draw((90, 120), 100, rng(seed))
    frame = warp_image(image, params, FILL)
    height, width = params.visible_hw
    for channel in (0, 1):
        mask = warp_mask(image[..., channel].copy(), params)
        np.testing.assert_array_equal(frame[:height, :width, channel], mask[:height, :width])
    # ... and what the frame shows is where the parameters say, to the resampling at the border
    x0, _, x1, _ = params.source_box
    columns = x0 + (np.arange(width) + 0.5) * (x1 - x0) / width - 0.5
    if params.flip:
        columns = (x0 + x1 - 1) - columns
    inner = slice(width // 8, -(width // 8) or None)
    assert np.abs(frame[height // 2, :width, 0].astype(float) - 2 * columns)[inner].max() <= 1.5


def test_scales_cover_their_range_and_the_long_side_rules() -> None:
    rule = LSJRule(jitter=(0.1, 2.0), flip_prob=0.5)
    generator = rng()
    drawn = [rule.draw((40, 80), 100, generator) for _ in range(400)]
    scales = np.array([max(p.resized_hw) / 100 for p in drawn])
    assert scales.min() < 0.15
    assert scales.max() > 1.95
    assert abs(scales.mean() - 1.05) < 0.08
    assert 0.4 < np.mean([p.flip for p in drawn]) < 0.6
    assert all(abs(p.resized_hw[0] * 2 - p.resized_hw[1]) <= 1 for p in drawn)


def test_enlargement_has_a_limit() -> None:
    rule = LSJRule(jitter=(1.5, 2.0), max_enlargement=1.0, flip_prob=0)
    assert rule.draw((40, 30), 100, rng()).resized_hw == (40, 30)
    assert rule.draw((400, 300), 100, rng()).resized_hw[0] >= 150
    np.testing.assert_array_equal(rule.draw((40, 30), 100, rng()).area_factor, 1.0)


def corner_object() -> np.ndarray:
    mask = np.zeros((100, 100), np.uint8)
    mask[2:12, 2:12] = 255
    return mask


def test_crops_that_lose_the_object_are_drawn_again() -> None:
    mask, rule = corner_object(), LSJRule(jitter=(2.0, 2.0), max_tries=200, min_share=0.5)
    lost = 0
    for seed in range(20):
        lost += not (warp_mask(mask, rule.draw((100, 100), 100, rng(seed))) > 128).any()
        kept, warped = rule.draw_keeping(mask, 100, 100, rng(seed))
        np.testing.assert_array_equal(warped, warp_mask(mask, kept))
        assert np.count_nonzero(warped > 128) >= 0.5 * 100 * 4
    assert lost > 5  # else this test shows nothing


def test_after_the_last_try_the_whole_image_is_shown() -> None:
    rule = LSJRule(jitter=(2.0, 2.0), min_pixels=10**6, max_tries=3)
    params, warped = rule.draw_keeping(corner_object(), 100, 100, rng())
    np.testing.assert_array_equal(warped, warp_mask(corner_object(), params))
    assert params.resized_hw == (100, 100)
    assert params.offset_yx == (0, 0)


def test_keeps_counts_pixels_and_share() -> None:
    mask, whole = corner_object(), LSJParams((100, 100), 100, False, (100, 100))
    assert LSJRule(min_pixels=100).keeps(mask, 100, whole)
    assert not LSJRule(min_pixels=101).keeps(mask, 100, whole)
    cut = LSJParams((100, 100), 50, False, (100, 100), (7, 0))  # leaves 5 of the object's 10 rows
    assert LSJRule(min_share=0.5).keeps(mask, 100, cut)
    assert not LSJRule(min_share=0.51).keeps(mask, 100, cut)


@pytest.mark.parametrize(
    "arguments",
    [{"jitter": (0.0, 1.0)}, {"jitter": (2.0, 1.0)}, {"max_enlargement": 0}, {"flip_prob": 1.5}, {"min_share": -1}],
)
def test_rules_out_of_range(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must"):
        LSJRule(**arguments)  # type: ignore[arg-type]


def test_parameters_belong_to_one_size() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3\) do not fit pixels of size \(4, 4\)"):
        warp_mask(np.zeros((4, 4), np.uint8), LSJParams((3, 3), 8, False, (8, 8)))
