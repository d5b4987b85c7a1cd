"""Thin boundary maps and match their pixels one to one: the rules of the BSDS500 boundary benchmark.

Two pixels may be matched if they are within a tolerance of each other. Among all one-to-one matchings the benchmark
takes one of least cost: a matched pair costs its distance, two unmatched pixels a hundred times the tolerance (Martin,
Fowlkes, Malik, PAMI 2004). Its program looks for it in a graph whose edges for unmatched pixels are drawn at random,
and so misses a few pairs; here the least cost is found exactly. docs/evaluation/edges.md says how much that is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.metrics.iou import check_mask

TOLERANCE = 0.0075
"""Largest distance of a matched pair as a share of the image diagonal: the benchmark's for BSDS500."""
_UNMATCHED = 100
"""What a missed pair costs, in tolerances."""
_UNITS = 100
"""Distances are rounded to a hundredth of a pixel, as in the benchmark."""
_PART = 300
"""Pixels solved together at least, if they are not connected: the solver's time grows faster than their number."""

Index = NDArray[Any]
"""Integers that count pixels, of whichever width NumPy returns."""


def thin_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin until nothing changes, without breaking or shortening lines (Lam, Lee, Suen, PAMI 1992, page 879).

    Args:
        mask: (H, W) bool. Outside it is nothing.

    Returns:
        (H, W) bool, a subset of `mask`.

    Raises:
        ValueError: the mask is no (H, W) bool array.
    """
    check_mask("mask", mask)
    padded = np.pad(mask, 1).astype(np.uint8)
    width = padded.shape[1]
    flat = padded.reshape(-1)
    around = (1, 1 - width, -width, -width - 1, -1, width - 1, width, width + 1)
    inside = np.flatnonzero(flat)
    count = -1
    while count != len(inside):
        count = len(inside)
        for removable in _removable():
            code = np.zeros(len(inside), dtype=np.uint8)
            for bit, offset in enumerate(around):
                code |= flat[inside + offset] << bit
            gone = removable[code]
            flat[inside[gone]] = 0
            inside = inside[~gone]
    return padded[1:-1, 1:-1].astype(np.bool_)


@lru_cache(maxsize=1)
def _removable() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each neighbourhood, whether its centre goes in the first and in the second half of a round.

    Bit k is the neighbour at k times 45 degrees counter-clockwise from the east.
    """
    codes = np.arange(256)
    x = [(codes >> bit) & 1 for bit in range(8)]
    crossings = sum((1 - x[k]) & (x[k + 1] | x[(k + 2) % 8]) for k in (0, 2, 4, 6))
    ahead, behind = (np.sum([x[k] | x[(k + step) % 8] for k in (0, 2, 4, 6)], axis=0) for step in (1, -1))
    fewest = np.minimum(ahead, behind)
    base = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    south_east = ((x[1] | x[2] | (1 - x[7])) & x[0]) == 0
    north_west = ((x[5] | x[6] | (1 - x[3])) & x[4]) == 0
    return base & south_east, base & north_west


class TrueEdges:
    """One annotator's boundary pixels, ready to be matched with any number of maps.

    Args:
        truth: (H, W) bool.
        tolerance: largest distance of a matched pair as a share of the image diagonal.

    Raises:
        ValueError: the truth is no (H, W) bool array, or the tolerance is not positive.
    """

    def __init__(self, truth: NDArray[np.bool_], tolerance: float = TOLERANCE) -> None:
        check_mask("truth", truth)
        if not (tolerance > 0 and math.isfinite(tolerance)):
            raise ValueError(f"tolerance must be a positive number, got {tolerance}; the benchmark uses {TOLERANCE}")
        self.shape = truth.shape
        self.count = int(np.count_nonzero(truth))
        limit = tolerance * math.hypot(*truth.shape)
        self._radius = radius = math.ceil(limit)
        numbers = np.where(truth, np.cumsum(truth).reshape(truth.shape) - 1, -1)
        padded = np.pad(numbers, radius, constant_values=-1)
        self._numbers = padded.reshape(-1)
        y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        near = x * x + y * y <= limit * limit
        self._offsets = (y * padded.shape[1] + x)[near]
        distances: NDArray[np.float64] = np.rint(np.hypot(y, x)[near] * _UNITS)
        # One more for all of them: a cost of 0 would be no edge in a sparse matrix.
        self._costs = distances + 1.0
        self._unmatched = math.ceil(_UNMATCHED * limit * _UNITS) + 1.0

    def match(self, pixels: NDArray[np.int64]) -> tuple[NDArray[np.bool_], int]:
        """Match the pixels of a map.

        Args:
            pixels: (N,) positions in the flattened (H, W) map.

        Returns:
            (N,) bool, which of them are matched, and the number of matched pairs.
        """
        matched = np.zeros(len(pixels), dtype=np.bool_)
        y, x = np.divmod(pixels, self.shape[1])
        place = (y + self._radius) * (self.shape[1] + 2 * self._radius) + x + self._radius
        partners = self._numbers[place[:, None] + self._offsets]  # (N, offsets): number of the true pixel, or -1
        near = np.flatnonzero((partners >= 0).any(axis=1))
        if not len(near):
            return matched, 0
        row, kind = np.nonzero(partners[near] >= 0)
        found, column = np.unique(partners[near[row], kind], return_inverse=True)
        hits = np.zeros(len(near), dtype=np.bool_)
        for rows, columns, pairs in _independent(row, column, len(near), len(found)):
            ends = np.searchsorted(rows, row[pairs]), np.searchsorted(columns, column[pairs])
            hits[rows] = _assign(*ends, self._costs[kind[pairs]], self._unmatched, len(rows), len(columns))
        matched[near[hits]] = True
        return matched, int(np.count_nonzero(hits))


def _independent(row: Index, column: Index, rows: int, columns: int) -> Iterator[tuple[Index, Index, Index]]:
    """Split a bipartite graph where no edge is cut: rows, columns and edges of each part, sorted.

    Small pieces stay together: each part costs the same overhead.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = rows + columns
    graph = coo_array((np.ones(len(row)), (row, rows + column)), shape=(size, size))
    piece = connected_components(graph, directed=False)[1]
    part = (np.cumsum(np.bincount(piece[:rows])) // _PART)[piece]
    of_edge = part[row]
    for number in np.unique(of_edge):
        yield (
            np.flatnonzero(part[:rows] == number),
            np.flatnonzero(part[rows:] == number),
            np.flatnonzero(of_edge == number),
        )


def _assign(
    row: Index, column: Index, costs: NDArray[np.float64], unmatched: float, rows: int, columns: int
) -> NDArray[np.bool_]:
    """(rows,) bool: which rows of a bipartite graph have a partner in the matching of least cost."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    # The solver goes from row to row, so the smaller side gives the rows: twice as fast on maps with many pixels.
    swapped = columns < rows
    if swapped:
        row, column = column, row
    count, others = min(rows, columns), max(rows, columns)
    # A column of its own for each row is what it takes to stay unmatched: then every row has a partner.
    each = np.arange(count)
    weights = np.concatenate([costs, np.full(count, unmatched)])
    ends = np.concatenate([row, each]), np.concatenate([column, others + each])
    graph = coo_array((weights, ends), shape=(count, others + count)).tocsr()
    _, partner = min_weight_full_bipartite_matching(graph)
    real: NDArray[np.bool_] = partner < others
    if not swapped:
        return real
    matched = np.zeros(rows, dtype=np.bool_)
    matched[partner[real]] = True
    return matched
