"""The contract of every evaluator: one loop runs them all, in any number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

Sample = TypeVar("Sample", contravariant=True)
State = TypeVar("State")


class Evaluator(Protocol[Sample, State]):
    """Collects samples and turns them into numbers.

    Merging the states of any split of the samples, in any order, gives exactly what one pass over all of them gives.
    """

    def update(self, sample: Sample) -> Any:
        """Add one sample; a sample that was added before is an error."""

    def state(self) -> State:
        """Everything collected so far, as plain picklable data."""

    def merge(self, states: Iterable[State]) -> None:
        """Add what other evaluators collected; a sample that is in two of them is an error."""

    def compute(self) -> Any:
        """The numbers; calling it does not change the evaluator."""
