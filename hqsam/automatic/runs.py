"""COCO run lengths of many masks at once, through pycocotools."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def encode_transposed(masks: Tensor) -> list[bytes]:
    """Compressed run lengths of N masks.

    Args:
        masks: (N, W, H) bool: COCO runs go down the columns, so the memory order is the one that it reads.
    """
    from pycocotools import mask as coco

    if not len(masks):
        return []
    columns = masks.contiguous().view(torch.uint8).cpu().numpy()
    return [rle["counts"] for rle in coco.encode(columns.transpose(2, 1, 0))]


def decode_runs(runs: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool."""
    from pycocotools import mask as coco

    decoded: NDArray[np.uint8] = coco.decode({"size": [height, width], "counts": runs})
    return decoded.view(np.bool_)


def run_boxes(runs: Sequence[bytes], height: int, width: int) -> Tensor:
    """(N, 4) int64 XYXY boxes, inclusive pixels; zeros for empty masks."""
    from pycocotools import mask as coco

    if not runs:
        return torch.zeros((0, 4), dtype=torch.int64)
    boxes = coco.toBbox([{"size": [height, width], "counts": run} for run in runs])
    x, y, w, h = torch.from_numpy(boxes).to(torch.int64).unbind(1)
    corners = torch.stack([x, y, x + w - 1, y + h - 1], dim=1)
    return torch.where((w > 0)[:, None], corners, 0)


def run_area(runs: bytes, height: int, width: int) -> int:
    """Number of pixels inside."""
    from pycocotools import mask as coco

    return int(coco.area({"size": [height, width], "counts": runs}))


def run_lengths(runs: bytes) -> list[int]:
    """The numbers in compressed runs: outside, inside, outside, ... in turn.

    Each number is written in groups of five bits, lowest first, as a character above "0"; bit 6 says that another
    group follows and the highest bit of the last group is the sign. From the fourth number on it is the difference to
    the number two places before (cocoapi, `rleToString`).
    """
    groups = np.frombuffer(runs, np.uint8).astype(np.int64) - 48
    if not len(groups):
        return []
    last = (groups & 0x20) == 0
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, ends - starts + 1))
    values = np.add.reduceat((groups & 0x1F) << shifts, starts)
    negative = (groups[ends] & 0x10) != 0
    values[negative] -= np.int64(1) << (shifts[ends[negative]] + 5)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])  # the first number stands alone
    return [int(value) for value in values]
