"""Mosaics: four images in one frame; not part of the published recipe.

Small images are shown at their own resolution, and one encoder pass serves objects of four images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def mosaic_corners(size: int) -> list[tuple[int, int]]:
    """(y, x) of the four quarters of a frame, row by row."""
    half = size // 2
    return [(0, 0), (0, half), (half, 0), (half, half)]


class CompanionDraw:
    """Draws the images that fill the other quarters: first a source, then one of its images.

    Args:
        sources: source of every image.
        weights: relative chance of each source; None: the same for all, so that a large source does not fill
            every mosaic.

    Raises:
        ValueError: weights do not fit the sources.
    """

    def __init__(self, sources: Sequence[str], weights: Mapping[str, float] | None) -> None:
        self.members: dict[str, list[int]] = {}
        for index, source in enumerate(sources):
            self.members.setdefault(source, []).append(index)
        self.names = sorted(self.members)
        self.chances = source_chances(self.names, weights)

    def draw(self, count: int, rng: np.random.Generator) -> list[int]:
        """Indices of `count` images."""
        names = [self.names[k] for k in rng.choice(len(self.names), size=count, p=self.chances)]
        return [self.members[name][int(rng.integers(len(self.members[name])))] for name in names]


def source_chances(names: Sequence[str], weights: Mapping[str, float] | None) -> list[float]:
    """Probabilities in the order of `names` from relative weights; None: equal.

    Raises:
        ValueError: a source has no weight, a weight has no source, or weights are negative or all zero.
    """
    if weights is None:
        return [1 / len(names)] * len(names)
    if set(weights) != set(names):
        raise ValueError(
            f"weights must name every source of the data and no other: got {', '.join(sorted(weights)) or 'none'}; "
            f"the data has {', '.join(sorted(names))}. A weight of 0 leaves a source out."
        )
    total = sum(weights.values())
    if min(weights.values()) < 0 or not 0 < total < float("inf"):
        raise ValueError(f"weights must be >= 0, finite and not all 0, got {dict(weights)}")
    return [weights[name] / total for name in names]
