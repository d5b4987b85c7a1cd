"""Where randomness comes from: one generator per named stream and position, the same on every rank and worker."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(seed: int, stream: str, *position: int | str) -> int:
    """A 63-bit number that depends on every argument and on nothing else."""
    digest = hashlib.sha256(repr((seed, stream, *position)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_generator(seed: int, stream: str, *position: int | str) -> np.random.Generator:
    """A generator for one stream at one position, e.g. `make_generator(0, "prompt", epoch, key)`."""
    return np.random.default_rng(derive_seed(seed, stream, *position))
