from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hqsam.rle import (
    compress_runs,
    decode_polygons,
    decode_rle,
    encode_masks,
    encode_rle,
    encode_window,
    read_runs,
    rle_area,
    rle_box,
)

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(deadline=None)  # the first example imports pycocotools
@given(MASKS, st.sampled_from([bool, np.uint8, np.int64]))
def test_round_trip(mask: np.ndarray, dtype: type) -> None:
    rle = encode_rle(mask.astype(dtype))
    assert rle["size"] == list(mask.shape)
    np.testing.assert_array_equal(decode_rle(rle), mask)
    np.testing.assert_array_equal(decode_rle({**rle, "counts": rle["counts"].encode()}), mask)
    assert rle_area(rle) == mask.sum()


def test_by_hand() -> None:
    mask = np.zeros((3, 4), dtype=np.uint8)
    mask[1:, 2] = 255
    rle = encode_rle(mask)
    assert rle_box(rle) == [2, 1, 1, 2]
    # columns from the left, each from the top: 7 outside, 2 inside, 3 outside
    np.testing.assert_array_equal(decode_rle({"size": [3, 4], "counts": [7, 2, 3]}), mask > 0)
    assert rle_box(encode_rle(np.zeros((2, 2), bool))) == [0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(4,), (0, 3), (1, 2, 3)])
def test_not_a_mask(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(H, W\)"):
        encode_rle(np.zeros(shape, bool))


@pytest.mark.parametrize("rle", [{}, {"size": [2], "counts": ""}, {"size": [2, 2], "counts": [1, 2]}])
def test_not_an_rle(rle: dict) -> None:
    with pytest.raises(ValueError, match=r"RLE has the keys|run lengths add up to 3"):
        decode_rle(rle)


@settings(deadline=None)
@given(MASKS)
def test_runs_out_of_compressed_text(mask: np.ndarray) -> None:
    counts = encode_rle(mask)["counts"]
    runs = read_runs(counts)
    inside = np.arange(len(runs)) % 2 == 1
    np.testing.assert_array_equal(np.repeat(inside, runs).reshape(mask.shape[::-1]).T, mask)
    assert compress_runs(runs.tolist(), *mask.shape) == counts


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1))
def test_long_runs(runs: list[int]) -> None:
    total = max(sum(runs), 1)
    runs[0] += total - sum(runs)
    np.testing.assert_array_equal(read_runs(compress_runs(runs, total, 1)), runs)


@pytest.mark.parametrize("counts", ["", "0114", "z!z", "P", "o" * 40, "o" * 40 + "0", "1N", 7, ["a"], [-1, 5]])
def test_damaged_runs(counts: object) -> None:
    """pycocotools reads past the end of the third, and fills the rest of the second with whatever was in memory."""
    with pytest.raises(ValueError, match=r"run length"):
        decode_rle({"size": [2, 2], "counts": counts})


def test_polygons_are_drawn_as_one() -> None:
    mask = decode_polygons([[0, 0, 2, 0, 2, 2, 0, 2], [3, 1, 5, 1, 5, 3, 3, 3]], 4, 6)
    np.testing.assert_array_equal(
        mask.astype(int), [[1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 1, 0], [0] * 6]
    )


@pytest.mark.parametrize("shape", [(7, 9), (1, 5), (6, 1), (1, 1), (40, 31)])
def test_masks_encoded_in_their_box_are_those_of_the_whole(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.random(shape) < share for share in (0.0, 0.1, 0.5, 0.9, 1.0) for _ in range(8)]
    for _ in range(20):  # rectangles, touching the border or not
        mask = np.zeros(shape, dtype=bool)
        (y0, y1), (x0, x1) = (np.sort(generator.integers(0, side + 1, 2)) for side in shape)
        mask[y0:y1, x0:x1] = True
        masks.append(mask)
    for mask, rle in zip(masks, encode_masks(np.stack(masks)), strict=True):
        assert rle == encode_rle(mask)


def test_a_window_outside_its_image() -> None:
    for x, y in ((-1, 0), (0, -1), (3, 0), (0, 4)):
        with pytest.raises(ValueError, match="not within 5 x 4"):
            encode_window(np.ones((2, 2), dtype=bool), x, y, (5, 4))
