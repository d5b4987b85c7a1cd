"""Whether scores go with what they predict: Pearson's correlation, and Spearman's, which looks at ranks alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Correlation of two lists of numbers.

    Returns:
        A number in -1..1; None where it is not defined: fewer than two pairs, or all numbers of a list equal.

    Raises:
        ValueError: lists of different lengths, or numbers that are not finite.
    """
    return _correlation(*_checked(a, b))


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """`pearson` of the ranks; equal numbers share the mean of their ranks."""
    x, y = _checked(a, b)
    return _correlation(_ranks(x), _ranks(y))


def _checked(a: Sequence[float], b: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"a correlation needs two lists of equal length, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a correlation needs finite numbers, got NaN or infinite ones")
    return x, y


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # squares of tiny numbers would vanish
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return mean
