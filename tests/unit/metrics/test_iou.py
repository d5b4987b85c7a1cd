from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hqsam.metrics import mask_iou

masks = hnp.arrays(np.bool_, (5, 7))


@given(masks, masks)
def test_equals_counting(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> None:
    both = sum(bool(p and q) for p, q in zip(a.flat, b.flat, strict=True))
    either = sum(bool(p or q) for p, q in zip(a.flat, b.flat, strict=True))
    assert mask_iou(a, b) == (both / either if either else 1.0)


@pytest.mark.parametrize(("a", "b", "expected"), [(0, 0, 1.0), (0, 1, 0.0), (1, 0, 0.0), (1, 1, 1.0)])
def test_degenerate(a: int, b: int, expected: float) -> None:
    assert mask_iou(np.full((4, 3), a, dtype=bool), np.full((4, 3), b, dtype=bool)) == expected


@given(st.sampled_from([np.uint8, np.float32, np.int64]))
def test_only_bool(dtype: type) -> None:
    good = np.ones((2, 2), dtype=bool)
    with pytest.raises(ValueError, match=r"target must be an .* bool array, got .* threshold it first"):
        mask_iou(good, good.astype(dtype))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3, 2\)"):
        mask_iou(np.ones((2, 3), dtype=bool), np.ones((3, 2), dtype=bool))
