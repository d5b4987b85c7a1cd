"""The contract of every evaluator: one loop runs them all, in any number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

SetScores = dict[str, dict[str, float]]
"""Column ("sam", "hq", "sum") -> metric -> number: in percent where it is a share; counts: "n", "n_..."."""
COLUMNS = ("sam", "hq", "sum")

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


def is_count(metric: str) -> bool:
    """Whether a metric counts what was scored: over sets it is added up, and tables show "n" alone."""
    return metric == "n" or metric.startswith("n_")


def is_total(metric: str) -> bool:
    """Whether a metric is added up over sets: counts, and the number of objects that failed ("nof85")."""
    return is_count(metric) or metric.startswith("nof")


def decimals(metric: str) -> int:
    """With how many decimals tables show a metric: one where it is in percent, two for correlations."""
    if is_total(metric):
        return 0
    if metric.startswith(("noc", "pearson", "spearman")):
        return 2
    return {"mse": 4, "ods_threshold": 2}.get(metric, 1)


def mean_of_sets(sets: Mapping[str, SetScores]) -> SetScores:
    """Mean over sets, each with the same weight however many objects it has; of a metric over those that define it.

    Counts are added up.
    """
    means: SetScores = {}
    for column in COLUMNS:
        rows = [scores[column] for scores in sets.values() if column in scores]
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row[name] for row in rows if name in row]
            mean = sum(values) if is_total(name) else math.fsum(values) / len(values)
            means.setdefault(column, {})[name] = mean
    return means
