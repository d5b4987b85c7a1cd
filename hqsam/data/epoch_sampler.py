"""Which sample comes when: an order for every epoch, and each process's part of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from hqsam.data.mosaic import source_chances
from hqsam.data.seeding import make_generator

Item = tuple[int, int]
"""(epoch, index); an index beyond the data set's length means the same image again, see `epoch_order`."""


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
    drawn = rng.choice(len(names), size=count, p=source_chances(names, weights))
    labels = np.asarray(sources)
    order = np.empty(count, dtype=np.int64)
    for number, name in enumerate(names):
        places = np.flatnonzero(drawn == number)
        order[places] = _deal(np.flatnonzero(labels == name), len(places), total, rng)
    return order


def _deal(members: NDArray[np.int64], count: int, total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    rounds = [rng.permutation(members) + repeat * total for repeat in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else np.empty(0, dtype=np.int64)


class EpochSampler(Sampler[Item]):
    """One process's samples of one epoch, as (epoch, index).

    Step s takes positions [s * G, (s + 1) * G) of the epoch's order, G = `batch_size` * `world`; process r takes the
    r-th `batch_size` of them. So the samples of a step depend on G and not on how it is split. An incomplete last step
    is left out, nothing is repeated to fill it.

    Args:
        sources: source of every image, e.g. `TrainingSet.sources`.
        batch_size: samples of this process in a step.
        seed: of the run.
        epoch: see also `set_epoch`.
        rank: this process.
        world: number of processes.
        weights: see `epoch_order`.
        samples_per_epoch: see `epoch_order`.
        start_step: steps of the epoch that are done already.

    Raises:
        ValueError: an epoch has fewer samples than one step takes, or an argument is out of range.
    """

    def __init__(
        self,
        sources: Sequence[str],
        *,
        batch_size: int,
        seed: int,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        weights: Mapping[str, float] | None = None,
        samples_per_epoch: int | None = None,
        start_step: int = 0,
    ) -> None:
        if not (batch_size >= 1 and 0 <= rank < world):
            raise ValueError(f"batch_size >= 1 and 0 <= rank < world, got {batch_size}, {rank}, {world}")
        self.sources = list(sources)
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.seed, self.weights, self.samples_per_epoch = seed, weights, samples_per_epoch
        length = len(self.sources) if samples_per_epoch is None else samples_per_epoch
        self.steps_per_epoch = length // (batch_size * world)
        if self.steps_per_epoch == 0:
            raise ValueError(f"an epoch of {length} samples is shorter than one step of {batch_size * world}")
        self.set_epoch(epoch, start_step)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Go to an epoch, or into the middle of it."""
        if not (epoch >= 0 and 0 <= start_step <= self.steps_per_epoch):
            raise ValueError(f"epoch >= 0 and start_step in 0..{self.steps_per_epoch}, got {epoch} and {start_step}")
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.start_step) * self.batch_size

    def __iter__(self) -> Iterator[Item]:
        order = epoch_order(
            self.sources, seed=self.seed, epoch=self.epoch, weights=self.weights, num_samples=self.samples_per_epoch
        )
        for step in range(self.start_step, self.steps_per_epoch):
            start = (step * self.world + self.rank) * self.batch_size
            yield from ((self.epoch, int(index)) for index in order[start : start + self.batch_size])
