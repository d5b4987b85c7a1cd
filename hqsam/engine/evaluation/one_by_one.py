"""Tasks whose items the model gets one at a time, and whose numbers come from one evaluator."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Protocol, runtime_checkable

from hqsam.engine.evaluation.masks import describe_model
from hqsam.engine.evaluation.report import EvalResult
from hqsam.engine.evaluation.task import Item, Loaded, Outcome, R, ScorePool
from hqsam.errors import DataError
from hqsam.metrics.evaluator import SetScores, mean_of_sets
from hqsam.models import Sam

logger = logging.getLogger(__name__)


class Keyed(Protocol):
    """An item that knows its name."""

    @property
    def key(self) -> str:
        """Unlike that of any other item."""


class Scores(Protocol[R]):
    """An evaluator (see `hqsam.metrics.Evaluator`) of sets and columns."""

    def fresh(self) -> Scores[R]:
        """The same without records."""

    def merge(self, states: list[list[R]]) -> None:
        """Add records."""

    def state(self) -> list[R]:
        """All records, sorted."""

    def compute(self) -> Mapping[str, SetScores]:
        """Set -> column -> metric."""


class SingleItems(Protocol[Item, Loaded, R]):
    """What is wrapped: `InstanceTask`, `ClickTask` and others."""

    @property
    def items(self) -> Sequence[Item]:
        """What there is to evaluate."""

    @property
    def evaluator(self) -> Scores[R]:
        """Empty."""

    def load(self, item: Item) -> Loaded:
        """Read what an item needs."""

    def run(self, item: Item, loaded: Loaded) -> Sequence[R]:
        """The records of an item."""

    def describe(self) -> Mapping[str, Any]:
        """The protocol."""


@runtime_checkable
class ScoresInPool(Protocol):
    """A task that scores what the model said while the model goes on."""

    def submit(self, item: Any, loaded: Any, pool: ScorePool) -> Sequence[Any]:
        """What `run` gives, as futures."""


@runtime_checkable
class LeavesOut(Protocol):
    """A task that cannot score everything that it is given."""

    def left_out(self, item: Any, loaded: Any) -> Sequence[str]:
        """Names of what has no record, an object without a pixel for instance."""


class OneByOne(Generic[Item, Loaded, R]):
    """A task (see `Task`) around one whose items are done one at a time.

    Args:
        inner: the task.
        model: that it runs, for the protocol.
        name: of the protocol, where the task does not say it.
        title: what is measured, for the heading of the report.
        make_record: a record from the keywords that its `as_dict` gave.
        counted: what the count "n" of its numbers counts.
    """

    batch_size = 1

    def __init__(
        self,
        inner: SingleItems[Item, Loaded, R],
        model: Sam,
        *,
        name: str,
        title: str,
        make_record: Callable[..., R],
        counted: str = "objects",
    ) -> None:
        self.inner = inner
        self.model = model
        self.name = name
        self.title = title
        self.counted = counted
        self._make_record = make_record

    @property
    def items(self) -> Sequence[Item]:
        """See `Task`."""
        return self.inner.items

    def key(self, item: Keyed) -> str:
        """See `Task`."""
        return item.key

    def load(self, item: Item) -> Loaded:
        """See `Task`."""
        return self.inner.load(item)

    def run(self, group: Sequence[tuple[Item, Loaded]], pool: ScorePool) -> list[Outcome[R]]:
        """See `Task`."""
        return [Outcome(self._records(item, loaded, pool), self._left_out(item, loaded)) for item, loaded in group]

    def _records(self, item: Item, loaded: Loaded, pool: ScorePool) -> Sequence[R | Future[R]]:
        if isinstance(self.inner, ScoresInPool):
            return self.inner.submit(item, loaded, pool)
        return self.inner.run(item, loaded)

    def _left_out(self, item: Item, loaded: Loaded) -> Sequence[str]:
        return self.inner.left_out(item, loaded) if isinstance(self.inner, LeavesOut) else ()

    def parse(self, entry: dict[str, Any]) -> R:
        """See `Task`."""
        return self._make_record(**entry)

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {"name": self.name, **self.inner.describe(), **describe_model(self.model)}

    def summarise(self, records: Sequence[R], left_out: Sequence[str]) -> EvalResult:
        """See `Task`."""
        if left_out:
            logger.warning("%d objects have no pixel and are left out, first %s", len(left_out), left_out[0])
        if not records:
            raise DataError(f"nothing to score: none of {len(self.items)} items has a record, {len(left_out)} left out")
        evaluator = self.inner.evaluator.fresh()  # the task can be run again
        evaluator.merge([list(records)])
        sets = dict(evaluator.compute())
        if not any(sets.values()):
            raise DataError("nothing to score: no set has a mask and a truth to compare")
        protocol = self.describe()
        if isinstance(self.inner, LeavesOut):
            protocol["objects_left_out"] = len(left_out)
        return EvalResult(
            sets, mean_of_sets(sets), protocol, records=evaluator.state(), title=self.title, counted=self.counted
        )
