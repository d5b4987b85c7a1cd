"""Finding the same photograph again: resized, recompressed, slightly recoloured, or mirrored.

The hash says which of the lowest 8 x 8 cosine frequencies of the picture, at 32 x 32 grey pixels, exceed their median.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAME_PHOTO = 8
"""Most differing bits, of 64, between two copies of a photograph; docs/data_check.md has what was measured."""
_SIDE, _KEPT = 32, 8
_LEAST_CONTRAST = 2.0
_BLOCK = 1 << 16
"""Pairs compared at once: few enough for a processor's cache."""

Hashes = tuple[int, int]
"""Of a picture and of its mirror image."""


class Pair(NamedTuple):
    """Two pictures that look the same: their positions, and how many bits of the hashes differ."""

    first: int
    second: int
    distance: int
    mirrored: bool


def photo_hashes(image: NDArray[np.uint8]) -> Hashes | None:
    """Hashes of an (H, W, 3) uint8 RGB picture and of its mirror image; None for a picture without contrast."""
    from PIL import Image

    small = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("L")
    grey = np.asarray(small, dtype=np.float64)
    if grey.std() < _LEAST_CONTRAST:
        return None
    return _hash(grey), _hash(grey[:, ::-1])


def _hash(grey: NDArray[np.float64]) -> int:
    basis = _cosines()
    frequencies = (basis @ grey @ basis.T).ravel()
    bits = frequencies > np.median(frequencies[1:])
    bits[0] = False  # the mean brightness says nothing about the picture
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> NDArray[np.float64]:
    frequency, place = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    cosines: NDArray[np.float64] = np.cos(np.pi * (2 * place + 1) * frequency / (2 * _SIDE))
    return cosines


def same_photos(
    first: Sequence[Hashes | None], second: Sequence[Hashes | None] | None = None, limit: int = SAME_PHOTO
) -> Iterator[Pair]:
    """Pairs of pictures whose hashes differ in at most `limit` bits, mirrored or not, in order.

    Args:
        first: hashes of N pictures; None matches nothing.
        second: of M other pictures; None looks for pairs within the first.
        limit: largest distance in bits, 0..64.
    """
    within, second = second is None, first if second is None else second
    rows = [k for k, hashes in enumerate(first) if hashes is not None]
    columns = np.array([k for k, hashes in enumerate(second) if hashes is not None], dtype=np.int64)
    plain = np.array([hashes[0] for hashes in first if hashes is not None], dtype=np.uint64)
    others = np.array([hashes[0] for hashes in second if hashes is not None], dtype=np.uint64)
    mirror_images = np.array([hashes[1] for hashes in second if hashes is not None], dtype=np.uint64)
    height = max(1, _BLOCK // max(1, len(others)))
    for start in range(0, len(rows), height):
        # within a set a pair is looked at once: later columns alone
        skipped = start if within else 0
        block = plain[start : start + height, None]
        distances = [_count_bits(block ^ other[None, skipped:]) for other in (others, mirror_images)]
        best = np.minimum(*distances)
        if best.size == 0 or best.min() > limit:
            continue
        for row, column in np.argwhere(best <= limit).tolist():
            one, other = rows[start + row], int(columns[skipped + column])
            if not within or one < other:
                mirrored = bool(distances[1][row, column] < distances[0][row, column])
                yield Pair(one, other, int(best[row, column]), mirrored)


def _count_bits(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    if hasattr(np, "bitwise_count"):  # NumPy 2
        counts: NDArray[np.uint8] = np.bitwise_count(values)
        return counts
    parts: NDArray[np.uint8] = _bits_of_16()[np.ascontiguousarray(values).view(np.uint16)]
    summed: NDArray[np.uint8] = parts.reshape(*values.shape, 4).sum(axis=-1, dtype=np.uint8)
    return summed


@cache
def _bits_of_16() -> NDArray[np.uint8]:
    numbers = np.arange(1 << 16, dtype=np.uint16)
    counts: NDArray[np.uint8] = np.unpackbits(numbers.view(np.uint8).reshape(-1, 2), axis=1).sum(axis=1, dtype=np.uint8)
    return counts
