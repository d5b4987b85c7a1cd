"""What a kind of evaluation gives the runner: its items, how one is read, the model's answers, and the numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from hqsam.engine.evaluation.report import EvalResult, Record

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
R = TypeVar("R", bound=Record)
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What one item came to.

    Attributes:
        records: its records, or futures of them.
        left_out: names of what could not be scored, an object without a pixel for instance.
    """

    records: Sequence[R | Future[R]]
    left_out: Sequence[str] = ()


class ScorePool:
    """Threads that score masks while the model computes the next ones; a submission waits while many are pending.

    Args:
        workers: threads; with 0 each call is done at once, by the caller.
    """

    def __init__(self, workers: int) -> None:
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._free = threading.BoundedSemaphore(max(1, 4 * workers))

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """The future of a call."""
        if self._pool is None:
            done: Future[T] = Future()
            done.set_result(function(*args, **kwargs))
            return done
        self._free.acquire()
        future = self._pool.submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: self._free.release())
        return future

    def __enter__(self) -> ScorePool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error[0] is not None)


class Task(Protocol[Item, Loaded, R]):
    """One kind of evaluation; `hqsam.engine.evaluation.runner.run_task` runs it in any number of processes.

    Every process makes the same task. Groups of `batch_size` items are cut from the whole list before the processes
    share them, so that no number depends on how many there are.

    Attributes:
        batch_size: items that the model gets together.
    """

    batch_size: int

    @property
    def items(self) -> Sequence[Item]:
        """What there is to evaluate, in an order that is always the same."""

    def key(self, item: Item) -> str:
        """Name of an item, unlike that of any other."""

    def load(self, item: Item) -> Loaded:
        """Read what the item needs; called in threads, ahead of time."""

    def run(self, group: Sequence[tuple[Item, Loaded]], pool: ScorePool) -> list[Outcome[R]]:
        """Let the model answer for a group of items; scoring may go on in the pool."""

    def parse(self, entry: dict[str, Any]) -> R:
        """A record from what its `as_dict` gave."""

    def describe(self) -> dict[str, Any]:
        """How the numbers come about: the protocol of the result."""

    def summarise(self, records: Sequence[R], left_out: Sequence[str]) -> EvalResult:
        """The numbers.

        Raises:
            DataError: there is nothing to score.
        """
