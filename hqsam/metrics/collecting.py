"""What evaluators that keep one record for each sample have in common."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar


class Record(Protocol):
    """One line of `records.jsonl`."""

    @property
    def set(self) -> str:
        """Name of the set that it counts in."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it unique; sortable."""

    @property
    def columns(self) -> frozenset[str]:
        """How its masks were made: of "sam", "hq", "sum"."""


R = TypeVar("R", bound=Record)
Self = TypeVar("Self", bound="Collected[Any]")


class Collected(Generic[R]):
    """Records by their key: the state of an evaluator, and its merging."""

    def __init__(self) -> None:
        self._records: dict[Hashable, R] = {}

    def fresh(self: Self) -> Self:
        """The same evaluator without records; what it compares with is shared, not copied."""
        twin = copy.copy(self)
        twin._records = {}
        return twin

    def state(self) -> list[R]:
        """The records, sorted by their key."""
        return sorted(self._records.values(), key=lambda record: record.key)

    def merge(self, states: Iterable[Iterable[R]]) -> None:
        """Add the records of other evaluators.

        Raises:
            ValueError: a record that is here already, or whose columns differ from the records here.
        """
        for record in (record for state in states for record in state):
            if record.key in self._records:
                raise ValueError(f"duplicate record: {record.key}")
            first = next(iter(self._records.values()), record)
            if record.columns != first.columns:
                raise ValueError(
                    f"every record needs the same columns: {record.key} has {sorted(record.columns)}, "
                    f"{first.key} has {sorted(first.columns)}"
                )
            self._records[record.key] = record

    def by_set(self) -> dict[str, list[R]]:
        """Set name -> its records, both sorted."""
        groups: dict[str, list[R]] = {}
        for record in self.state():
            groups.setdefault(record.set, []).append(record)
        return dict(sorted(groups.items()))


def common_columns(**parts: Mapping[str, Any]) -> frozenset[str]:
    """The columns of a record whose parts are each given by column.

    Raises:
        ValueError: the parts have different columns, or none.
    """
    names = {name: frozenset(part) for name, part in parts.items()}
    first = next(iter(names.values()))
    if not first or any(found != first for found in names.values()):
        listed = ", ".join(f"{name}: {sorted(found)}" for name, found in names.items())
        raise ValueError(f"a record needs at least one column, the same in all its parts; got {listed}")
    return first


def in_order(columns: Iterable[str]) -> list[str]:
    """Columns in the order of the tables: sam, hq, sum, then any others by name."""
    known = {"sam": 0, "hq": 1, "sum": 2}
    return sorted(columns, key=lambda name: (known.get(name, len(known)), name))
