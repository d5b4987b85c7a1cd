from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from hqsam.automatic.runs import decode_runs, encode_transposed, run_area, run_boxes, run_lengths
from hqsam.boxes import masks_to_boxes

masks_of_any_size = st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays.arrays(np.bool_, shape)
)


def encode(masks: np.ndarray) -> list[bytes]:
    return encode_transposed(torch.from_numpy(masks).transpose(1, 2))


@given(masks_of_any_size)
@settings(deadline=None)
def test_round_trip_area_and_boxes(masks: np.ndarray) -> None:
    size = masks.shape[1:]
    runs = encode(masks)
    assert len(runs) == len(masks)
    for mask, run in zip(masks, runs, strict=True):
        decoded = decode_runs(run, *size)
        assert decoded.dtype == np.bool_
        np.testing.assert_array_equal(decoded, mask)
        assert run_area(run, *size) == mask.sum()
    boxes = run_boxes(runs, *size)
    assert boxes.dtype == torch.int64 and boxes.shape == (len(masks), 4)
    assert torch.equal(boxes, masks_to_boxes(torch.from_numpy(masks)).to(torch.int64))


@given(masks_of_any_size)
@settings(deadline=None)
def test_run_lengths_are_those_of_the_mask(masks: np.ndarray) -> None:
    for mask, run in zip(masks, encode(masks), strict=True):
        lengths = run_lengths(run)
        assert all(type(length) is int for length in lengths)
        flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        np.testing.assert_array_equal(flat.reshape(mask.shape[::-1]).T, mask)
        assert min(lengths[1:], default=1) > 0


@pytest.mark.parametrize("lengths", [[10**6], [0, 10**6], [5, 1, 10**6, 70000, 3, 2, 10**5, 1], [0, 1, 40, 33, 31, 32]])
def test_long_runs(lengths: list[int]) -> None:
    height, width = sum(lengths), 1
    runs = coco.frPyObjects({"size": [height, width], "counts": lengths}, height, width)["counts"]
    assert run_lengths(runs) == lengths


def test_nothing() -> None:
    assert run_lengths(b"") == []
    assert encode_transposed(torch.zeros((0, 3, 4), dtype=torch.bool)) == []
    assert run_boxes([], 4, 3).shape == (0, 4)
