from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hqsam.rle import decode_rle, encode_rle, rle_area, rle_box

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12))


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
