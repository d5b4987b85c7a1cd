"""Runs a task: shards, reading ahead, results that are kept, one answer for all processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

from hqsam.engine.distributed import World, from_main, gather_objects, gather_on_main
from hqsam.engine.evaluation.kept import Entry, KeptResults
from hqsam.engine.evaluation.plan import shard
from hqsam.engine.evaluation.report import EvalResult
from hqsam.engine.evaluation.task import Item, Loaded, Outcome, R, ScorePool, Task
from hqsam.engine.terminal import progress_bar


class EvaluationStopped(Exception):
    """An evaluation was asked to stop on one of its processes; there is no result."""


@dataclass
class Timing:
    """How long an evaluation took on the first process.

    Attributes:
        items: how many items it did.
        seconds: from the first item to the last.
        waiting: of these, spent waiting for items to be read.
    """

    items: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Content of `timing.json`."""
        share = self.waiting / self.seconds if self.seconds else 0.0
        return {"items": self.items, "seconds": round(self.seconds, 3), "share_waiting_for_data": round(share, 4)}


@dataclass(frozen=True)
class RunOptions:
    """How a task is run; nothing here changes a number.

    Attributes:
        workers: threads that read ahead, and as many that score; 0 does both in the loop.
        progress: show a progress bar on the first process.
        stop: asked before every group of items; True ends it, on every process when each has ended its part.
        kept: folder for the results of items that are done, see `KeptResults`; None keeps nothing.
        identity: what tells this evaluation from others, beyond its protocol and items.
        title: what the progress bar says.
        write: called with the result and the time on the first process, before the kept results are removed.
    """

    workers: int = 0
    progress: bool = False
    stop: Callable[[], bool] = lambda: False
    kept: Path | None = None
    identity: Mapping[str, Any] | None = None
    title: str = "evaluation"
    write: Callable[[EvalResult, Timing], None] = lambda result, timing: None


def run_task(task: Task[Item, Loaded, R], world: World, options: RunOptions) -> tuple[EvalResult, Timing]:
    """Evaluate all items of a task, each in one process of the group; every process calls this.

    Returns:
        The numbers, the same everywhere; their `records` on the first process alone. And the time it took.

    Raises:
        DataError: an item is unusable, or nothing can be scored.
        OutputError: results cannot be kept; and what `write` raises.
        EvaluationStopped: `stop` said so, on any process.
    """
    keys = [task.key(item) for item in task.items]
    kept = KeptResults(options.kept, {"protocol": task.describe(), "items": keys, **(options.identity or {})}, world)
    done, entries = kept.open()
    groups = [task.items[k : k + task.batch_size] for k in range(0, len(task.items), task.batch_size)]
    left = [group for group in groups if any(task.key(item) not in done for item in group)]
    loop = _Loop(task, options, kept)
    try:
        stopped = not loop.over(shard(left, world.rank, world.size), world.is_main)
    finally:
        kept.close()
    if any(gather_objects(stopped, world)):
        raise EvaluationStopped
    parts = gather_on_main(loop.entries, world)
    entries.update({entry["item"]: entry for part in parts for entry in part})

    def summarise() -> EvalResult:
        ordered = [entries[key] for key in keys]
        records = [task.parse(record) for entry in ordered for record in entry["records"]]
        return task.summarise(records, [name for entry in ordered for name in entry["left_out"]])

    whole: list[EvalResult] = []

    def without_records() -> EvalResult:
        whole.append(summarise())
        return replace(whole[0], records=[])

    result = from_main(without_records, world)
    if world.is_main:
        options.write(whole[0], loop.timing)
        kept.remove()
    return (whole[0] if whole else result), loop.timing


class _Loop(Generic[Item, Loaded, R]):
    """One process's part."""

    def __init__(self, task: Task[Item, Loaded, R], options: RunOptions, kept: KeptResults) -> None:
        self.task = task
        self.options = options
        self.kept = kept
        self.entries: list[Entry] = []
        self.timing = Timing()

    def over(self, groups: Sequence[Sequence[Item]], visible: bool) -> bool:
        """Do these groups; False if asked to stop."""
        start = time.perf_counter()
        pending: deque[tuple[Sequence[Item], list[Outcome[R]]]] = deque()
        loaded = self._read_ahead(groups)
        total = sum(map(len, groups))
        bar = progress_bar(visible=visible and self.options.progress)
        with ScorePool(self.options.workers) as pool, bar:
            shown = bar.add_task(self.options.title, total=total)
            stopped = False
            for group in groups:
                if stopped := self.options.stop():
                    break
                before = time.perf_counter()
                things = next(loaded)
                self.timing.waiting += time.perf_counter() - before
                pending.append((group, self.task.run(list(zip(group, things, strict=True)), pool)))
                if len(pending) > 1:  # its scores are computed while the model has the next group
                    self._keep(*pending.popleft())
                bar.advance(shown, len(group))
            while pending:
                self._keep(*pending.popleft())
        loaded.close()
        self.timing.seconds = time.perf_counter() - start
        return not stopped

    def _keep(self, group: Sequence[Item], outcomes: Sequence[Outcome[R]]) -> None:
        for item, outcome in zip(group, outcomes, strict=True):
            records = [record.result() if isinstance(record, Future) else record for record in outcome.records]
            entry = {
                "item": self.task.key(item),
                "records": [record.as_dict() for record in records],
                "left_out": list(outcome.left_out),
            }
            self.kept.add(entry)
            self.entries.append(entry)
            self.timing.items += 1

    def _read_ahead(self, groups: Sequence[Sequence[Item]]) -> Generator[list[Loaded], None, None]:
        """What each group needs; with workers the next items are read while the model computes."""
        if self.options.workers == 0:
            for group in groups:
                yield [self.task.load(item) for item in group]
            return
        waiting: deque[list[Future[Loaded]]] = deque()
        ahead = max(2, -(-self.options.workers // self.task.batch_size))
        with ThreadPoolExecutor(self.options.workers) as pool:
            try:
                for group in groups:
                    waiting.append([pool.submit(self.task.load, item) for item in group])
                    if len(waiting) > ahead:
                        yield [future.result() for future in waiting.popleft()]
                while waiting:
                    yield [future.result() for future in waiting.popleft()]
            finally:
                pool.shutdown(cancel_futures=True)
