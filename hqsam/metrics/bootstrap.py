"""Confidence intervals of a difference: the paired bootstrap over images (Efron & Tibshirani 1993, chapters 13, 16).

Images are drawn with replacement within each set, all objects of an image together, since they are not independent.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 22
"""Numbers of one block of draws."""


class Place(NamedTuple):
    """Where a scored object belongs."""

    set: str
    image: Hashable


@dataclass(frozen=True)
class Difference:
    """B minus A in the mean over the same objects.

    Attributes:
        a: mean of A.
        b: mean of B.
        low: lower end of the interval of b - a; None where there is no interval.
        high: upper end.
        objects: how many objects both have.
        images: how many images they are on.
    """

    a: float
    b: float
    low: float | None
    high: float | None
    objects: int
    images: int

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_bootstrap(
    values: Mapping[Hashable, tuple[Place, float, float]],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Compare two ways of doing the same objects, set by set and in the mean over sets.

    Args:
        values: object -> where it is, its value under A, its value under B.
        resamples: how often images are drawn.
        confidence: share of the resampled differences inside the interval, which leaves out equal shares on both sides.
        seed: of the draws.

    Returns:
        Set -> difference, sets sorted by name, and "mean": each set with the same weight, as in the results. A set of
        one image has no interval; it takes part in the mean with its value alone.

    Raises:
        ValueError: nothing to compare, a value that is not finite, fewer than 100 resamples, or a confidence outside
            (0, 1).
    """
    if not values:
        raise ValueError("nothing to compare: no object is in both")
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    if not all(math.isfinite(a) and math.isfinite(b) for _, a, b in values.values()):
        raise ValueError("values must be finite numbers")
    rows: dict[str, dict[Hashable, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for place, a, b in values.values():
        rows[place.set][place.image].append((a, b))
    generator = np.random.Generator(np.random.PCG64(seed))
    tail = 100 * (1 - confidence) / 2
    found, draws = {}, []
    for name in sorted(rows):
        images = rows[name]
        pairs = [pair for image in images.values() for pair in image]
        a, b = (math.fsum(pair[k] for pair in pairs) / len(pairs) for k in (0, 1))
        drawn = _draw(list(images.values()), resamples, generator)
        draws.append(drawn)
        found[name] = Difference(a, b, *_interval(drawn, tail, len(images)), len(pairs), len(images))
    parts = list(found.values())
    several = max(part.images for part in parts)
    means = (math.fsum(part.a for part in parts) / len(parts), math.fsum(part.b for part in parts) / len(parts))
    totals = sum(part.objects for part in parts), sum(part.images for part in parts)
    found["mean"] = Difference(*means, *_interval(np.mean(draws, axis=0), tail, several), *totals)
    return found


def _draw(
    images: list[list[tuple[float, float]]], resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(resamples,) mean differences over the objects of the images that were drawn."""
    sums = np.array([math.fsum(b - a for a, b in image) for image in images])
    counts = np.array([len(image) for image in images], dtype=np.float64)
    means = np.empty(resamples)
    block = max(1, _AT_ONCE // len(images))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        # how often each image comes, for each of the draws
        times = generator.multinomial(len(images), np.full(len(images), 1 / len(images)), size=size)
        means[start : start + size] = (times @ sums) / (times @ counts)
    return means


def _interval(draws: NDArray[np.float64], tail: float, images: int) -> tuple[float | None, float | None]:
    if images < 2:
        return None, None
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
