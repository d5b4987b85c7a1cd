"""What happens at which step: the samples of each step and the learning rate, as pure functions of the step.

Nothing here has state, so a resumed run continues exactly where the step number says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from hqsam.engine.train_config import OptimConfig

Item = tuple[int, int]
"""(epoch, index into the training records)."""


@dataclass(frozen=True)
class StepPlan:
    """Samples of every optimizer step of a run.

    A step takes the next `global_batch` samples of its epoch's order, whatever the number of processes and
    micro-batches: the same samples meet in a step for 1 process with batch 8 and for 4 with batch 2.

    Attributes:
        epoch_order: epoch -> indices into the training records, equally many in every epoch.
        epoch_images: how many; at least one step's worth.
        batch_size: images of one process in one micro-batch.
        accumulate: micro-batches for each step.
        world_size: processes.
        epochs: length of the run in epochs, unless `max_steps` is given.
        max_steps: length of the run in steps.
        data: digest of the names of the training images; a run can only go on with the same ones.
    """

    epoch_order: Callable[[int], Sequence[int]]
    epoch_images: int
    batch_size: int
    accumulate: int
    world_size: int
    epochs: int
    max_steps: int | None = None
    data: str = ""

    @property
    def global_batch(self) -> int:
        """Images of one step over all processes and micro-batches."""
        return self.batch_size * self.accumulate * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps of an epoch; images left over are not seen in it, as published."""
        return self.epoch_images // self.global_batch

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch if self.max_steps is None else self.max_steps

    def epoch_of(self, step: int) -> int:
        """Epoch that the step belongs to, from 0."""
        return step // self.steps_per_epoch

    def items(self, step: int) -> list[Item]:
        """The samples of a step over all processes."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self.epoch_order(epoch)
        start = position * self.global_batch
        return [(epoch, int(index)) for index in order[start : start + self.global_batch]]

    def micro_batches(self, step: int, rank: int) -> list[list[Item]]:
        """The samples of a step that one process works on, by micro-batch."""
        items, size = self.items(step), self.batch_size
        starts = ((micro * self.world_size + rank) * size for micro in range(self.accumulate))
        return [items[start : start + size] for start in starts]


class PlannedBatches(Sampler[list[Item]]):
    """Micro-batches of one process from a step to the end of the run, across epochs: a loader's `batch_sampler`."""

    def __init__(self, plan: StepPlan, rank: int, first_step: int) -> None:
        self.plan = plan
        self.rank = rank
        self.first_step = first_step

    def __len__(self) -> int:
        return max(0, self.plan.total_steps - self.first_step) * self.plan.accumulate

    def __iter__(self) -> Iterator[list[Item]]:
        for step in range(self.first_step, self.plan.total_steps):
            yield from self.plan.micro_batches(step, self.rank)


def learning_rate(step: int, plan: StepPlan, config: OptimConfig) -> float:
    """Learning rate of a step.

    ``step`` drops by `drop_factor` once `drop_epoch` epochs are over (published: x0.1 after 10 of 12), or after each of
    `drop_steps` where they are given; ``cosine`` falls from `lr` to zero over the run. Both rise linearly over the
    first `warmup_steps` steps.
    """
    rate = config.lr
    if config.schedule == "cosine":
        length = max(1, plan.total_steps - config.warmup_steps)
        done = min(1.0, max(0, step - config.warmup_steps) / length)
        rate *= 0.5 * (1 + math.cos(math.pi * done))
    elif config.drop_steps:
        rate *= config.drop_factor ** sum(step >= drop for drop in config.drop_steps)
    elif plan.epoch_of(step) >= config.drop_epoch:
        rate *= config.drop_factor
    return rate * min(1.0, (step + 1) / (config.warmup_steps + 1))


def planned_views(plan: StepPlan, first_step: int, view_key: Callable[[int, int], str]) -> list[Item]:
    """One (epoch, index) for each different view that the steps from `first_step` on use, in the order of first use.

    Args:
        plan: the samples of every step.
        first_step: steps done before.
        view_key: name of the view that (epoch, index) shows; equal names are one view.
    """
    needed: dict[str, Item] = {}
    for step in range(first_step, plan.total_steps):
        for item in plan.items(step):
            needed.setdefault(view_key(*item), item)
    return list(needed.values())


def is_due(step: int, every: int, plan: StepPlan) -> bool:
    """Whether something is done after `step` steps: every so many, or with 0 at the end of each epoch."""
    return step % (every or plan.steps_per_epoch) == 0
