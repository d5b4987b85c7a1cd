"""Several training processes on torch.distributed as it is; one process needs no launcher.

``torchrun`` describes the group in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT). The head
has about a million parameters, so gradients travel as one flat buffer in one collective; no module is wrapped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hqsam.engine.terminal import terminal
from hqsam.errors import ConfigError, HqsamError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE = timedelta(hours=1)
"""How long a process waits for the others; the encoding of a large set differs by more than NCCL's ten minutes."""


@dataclass(frozen=True)
class World:
    """This process's place in the group.

    Attributes:
        rank: number of this process over all nodes, 0 is the one that writes files.
        size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; under a launcher each process takes its own GPU.

    Raises:
        ConfigError: not a device, or a GPU that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {name!r} was asked for, but torch finds no GPU; use device=cpu or device=auto")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"device cuda:{index} does not exist: this machine has {torch.cuda.device_count()} GPU(s)"
            )
        return torch.device("cuda", index)
    return device


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Enter the group that the environment describes, and leave it at the end.

    Args:
        device: see `choose_device`. NCCL joins GPUs, gloo joins CPUs.

    Yields:
        The place in the group; size 1 without a launcher.
    """
    if "RANK" not in os.environ:
        yield World(device=_use(choose_device(device)))
        return
    target = _use(choose_device(device, int(os.environ.get("LOCAL_RANK", "0"))))
    # Its functions have the world group as default argument. Imported later, as torch._dynamo does, it would keep the
    # group alive: native threads would outlive the interpreter, and now and then abort a process that is done.
    import torch.distributed.nn  # noqa: F401

    backend, failed = "nccl" if target.type == "cuda" else "gloo", True
    dist.init_process_group(backend, timeout=_PATIENCE, **_own_keys())
    try:
        yield World(dist.get_rank(), dist.get_world_size(), target)
        failed = False
    finally:
        # NCCL leaves a group together. One that failed would wait for the others, which wait for it in a collective;
        # its exit alone tells the launcher to end them.
        if not (failed and backend == "nccl"):
            dist.destroy_process_group()


def _own_keys() -> dict[str, Any]:
    """Where the workers of this start find each other: apart from those of a start before, whose addresses are dead.

    The agent of newer torchruns keeps one store over all restarts of its workers and leaves old addresses in it; a
    worker that is early reads them and fails to connect. On one machine the number of the restart tells them apart. The
    agents of several machines count differently: there torchrun itself has to be told (docs/distributed.md).
    """
    elastic = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if not elastic or restart is None or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, size = next(dist.rendezvous("env://", timeout=_PATIENCE))  # type: ignore[attr-defined]
    prefixed = dist.PrefixStore(f"start_{restart}", store)  # type: ignore[attr-defined]
    return {"store": prefixed, "rank": rank, "world_size": size}


def _use(device: torch.device) -> torch.device:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


class _OnlyRankZero(logging.Filter):
    """Drops messages below WARNING on every process but the first, and names the rank in the others."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def filter(self, record: logging.LogRecord) -> bool:
        if self.world.is_main:
            return True
        record.msg = f"[rank {self.world.rank}] {record.msg}"
        return record.levelno >= logging.WARNING


def configure_logging(world: World, level: int = logging.INFO) -> None:
    """Send log messages to the terminal, through Rich; other ranks report warnings and errors only."""
    from rich.logging import RichHandler

    handler = RichHandler(console=terminal(), show_path=False, log_time_format="%H:%M:%S")
    handler.addFilter(_OnlyRankZero(world))
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler], force=True)


def sum_over_processes(tensors: Sequence[Tensor], world: World) -> list[Tensor]:
    """Sums of tensors over all processes, in one collective over one flat buffer.

    Args:
        tensors: equally many, of equal shapes and of one dtype on every process.
        world: the group.

    Returns:
        New tensors of the same shapes; views into one buffer.
    """
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    if world.size > 1:
        dist.all_reduce(flat)
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def broadcast_parameters(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Give every process the values that rank 0 has."""
    if world.size > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)


def gather_objects(value: Any, world: World) -> list[Any]:
    """The (picklable) values of all processes, in rank order, on every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_on_main(value: Any, world: World) -> list[Any]:
    """The (picklable) values of all processes, in rank order, on the first one; nothing on the others."""
    if world.size == 1:
        return [value]
    values: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, values)
    return values or []


def from_main(compute: Callable[[], T], world: World) -> T:
    """What `compute` returns on rank 0, on every process; an error there ends the others too.

    Files are looked for this way: other nodes need not see the first one's disk, nor at the same moment.

    Raises:
        HqsamError: rank 0 raised it. Of any other error there the others hear as a RuntimeError with its words.
    """
    if world.size == 1:
        return compute()
    parcel: list[Any] = [None]
    if world.is_main:
        try:
            parcel = [compute()]
        except HqsamError as error:
            parcel = [error]
        except Exception as error:
            dist.broadcast_object_list([RuntimeError(f"the first process failed: {error!r}")], src=0)
            raise
    dist.broadcast_object_list(parcel, src=0)
    if isinstance(parcel[0], (HqsamError, RuntimeError)):
        raise parcel[0]
    return cast(T, parcel[0])


def wait_for_all(world: World) -> None:
    """Return when every process has come here."""
    if world.size > 1:
        dist.barrier()
