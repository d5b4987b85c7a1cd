"""Which sample comes when: an order for every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hqsam.data.seeding import make_generator


def epoch_order(
    sources: Sequence[str],
    *,
    seed: int,
    epoch: int,
    weights: Mapping[str, float] | None = None,
    num_samples: int | None = None,
) -> NDArray[np.int64]:
    """The order of one epoch; depends on the arguments alone.

    Args:
        sources: source of every image of the data set, n of them.
        seed: of the run.
        epoch: from 0.
        weights: relative share of each source; all must be named. The source of each sample is drawn, its images are
            dealt in shuffled rounds. None: every image once, shuffled.
        num_samples: length of the epoch; None: n. Without weights, further rounds follow the first.

    Returns:
        (num_samples,) indices. Index i + k * n is the (k + 1)-th time that image i comes in this epoch: `TrainingSet`
        gives it other prompts, so that a small source with a large share is not repeated literally.

    Raises:
        ValueError: no images, or weights that do not fit.
    """
    total = len(sources)
    count = total if num_samples is None else num_samples
    if total == 0 or count < 1:
        raise ValueError(f"an epoch needs at least one image and one sample, got {total} and {count}")
    rng = make_generator(seed, "order", epoch)
    if weights is None:
        return _deal(np.arange(total), count, total, rng)
    names = sorted(set(sources))
    drawn = rng.choice(len(names), size=count, p=_source_chances(names, weights))
    labels = np.asarray(sources)
    order = np.empty(count, dtype=np.int64)
    for number, name in enumerate(names):
        places = np.flatnonzero(drawn == number)
        order[places] = _deal(np.flatnonzero(labels == name), len(places), total, rng)
    return order


def _deal(members: NDArray[np.int64], count: int, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rounds = [rng.permutation(members) + repeat * total for repeat in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else np.empty(0, dtype=np.int64)


def _source_chances(names: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    """Probabilities in the order of `names`."""
    if set(weights) != set(names):
        raise ValueError(
            f"weights must name every source of the data and no other: got {', '.join(sorted(weights)) or 'none'}; "
            f"the data has {', '.join(sorted(names))}. A weight of 0 leaves a source out."
        )
    total = sum(weights.values())
    if min(weights.values()) < 0 or not 0 < total < float("inf"):
        raise ValueError(f"weights must be >= 0, finite and not all 0, got {dict(weights)}")
    return [weights[name] / total for name in names]
