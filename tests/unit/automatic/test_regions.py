from __future__ import annotations

import numpy as np
import torch

from hqsam.automatic.regions import clean_regions, without_small_regions
from hqsam.automatic.runs import decode_runs, encode_transposed, run_boxes
from hqsam.automatic.table import MaskTable


def test_small_holes_are_filled_and_small_islands_dropped() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[5:20, 5:20] = True
    expected = mask.copy()
    mask[8:10, 8:10] = False  # 4 pixels
    mask[25:27, 25:27] = True
    cleaned = without_small_regions(mask, 5)
    np.testing.assert_array_equal(cleaned, expected)
    assert without_small_regions(mask, 4) is mask
    assert without_small_regions(expected, 5) is expected


def test_diagonal_neighbours_are_one_island() -> None:
    mask = np.eye(6, dtype=bool)
    assert without_small_regions(mask, 6) is mask


def test_if_every_island_is_small_the_first_largest_stays() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[0, 0] = mask[5, 5:8] = mask[10, 5:8] = True
    expected = np.zeros_like(mask)
    expected[5, 5:8] = True
    np.testing.assert_array_equal(without_small_regions(mask, 50), expected)


def test_empty_and_full_masks_stay() -> None:
    empty, full = np.zeros((20, 20), dtype=bool), np.ones((20, 20), dtype=bool)
    assert without_small_regions(empty, 50) is empty
    assert without_small_regions(full, 50) is full


def table(masks: np.ndarray) -> MaskTable:
    runs = encode_transposed(torch.from_numpy(masks).transpose(1, 2))
    count = len(masks)
    points, crops = np.arange(2.0 * count).reshape(-1, 2), np.tile(np.array([0, 0, 30, 30]), (count, 1))
    return MaskTable(runs, run_boxes(runs, 30, 30), torch.linspace(1, 0.5, count), torch.ones(count), points, crops)


def test_of_duplicates_the_one_that_did_not_change_stays() -> None:
    masks = np.zeros((3, 30, 30), dtype=bool)
    masks[:2, 5:20, 5:20] = True
    masks[0, 25, 25] = True  # the better-scored, but with an island that makes its box larger
    masks[2, 22:29, 0:3] = True
    found = clean_regions(table(masks), (30, 30), 4, 0.7)
    assert found.points.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    masks[1] = False
    found = clean_regions(table(masks), (30, 30), 4, 0.7)
    # unchanged masks come first, as in the original; the empty one is unchanged too
    assert found.points.tolist() == [[2.0, 3.0], [4.0, 5.0], [0.0, 1.0]]
    assert found.boxes.tolist()[2] == [5, 5, 19, 19]
    assert decode_runs(found.runs[2], 30, 30).sum() == 225
