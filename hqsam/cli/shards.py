"""A part of the work for each of several processes, from what `torchrun` tells them; they need not meet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """This process's place.

    Attributes:
        rank: number of this process over all machines.
        size: number of processes.
        local_rank: number on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """The place that RANK, WORLD_SIZE and LOCAL_RANK name; without them this process is alone.

        Raises:
            ValueError: one of the first two is missing, or they name no place.
        """
        named = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if environment.get(name)}
        if not named:
            return cls()
        try:
            rank, size = int(named["RANK"]), int(named["WORLD_SIZE"])
            local = int(environment.get("LOCAL_RANK") or 0)
        except (KeyError, ValueError) as error:
            raise ValueError(f"RANK and WORLD_SIZE must both be whole numbers, got {named}") from error
        if not 0 <= rank < size:
            raise ValueError(f"RANK must be at least 0 and below WORLD_SIZE, got {rank} and {size}")
        return cls(rank, size, local)

    def part(self, items: Sequence[T]) -> list[T]:
        """Every `size`-th item: each is in the part of exactly one process, neighbours in those of different ones."""
        return list(items[self.rank :: self.size])

    def device(self, name: str) -> str:
        """The device of this process: with "auto" each process of a machine takes a GPU of its own, while there are."""
        import torch

        count = torch.cuda.device_count() if name == "auto" and self.size > 1 else 0
        return f"cuda:{self.local_rank % count}" if count else name
