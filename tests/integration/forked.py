"""Processes for tests: forked from a server that has imported everything once, so that each starts in no time.

The server has run nothing before, so no thread and no lock of the testing process is copied into a child.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers import ROOT

os.environ["PYTHONPATH"] = str(ROOT)  # the server knows no path of its parent's
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["hqsam.engine.training", "torch.distributed.nn", "torch.utils.tensorboard", "albumentations"]
)


def run_forked(target: Callable[..., object], *arguments: object, output: Path | None = None) -> int:
    """Exit status of a function in a process of its own; minus the number of the signal that ended it.

    Args:
        target: importable; what it returns is ignored.
        arguments: for the target.
        output: takes what the process writes to the standard error.
    """
    process = CONTEXT.Process(target=_call, args=(target, arguments, output))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _call(target: Callable[..., object], arguments: tuple[object, ...], output: Path | None) -> None:
    import torch

    import hqsam

    assert Path(str(hqsam.__file__)).is_relative_to(ROOT)
    torch.set_num_threads(1)
    if output is not None:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, sys.stderr.fileno())
    target(*arguments)


def kill_self() -> None:
    """What `kill -9` does: nothing of this process runs any more."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(owner: Any, name: str, number: int) -> None:
    """Let this process die instead of the `number`-th call of a function."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def replacement(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            kill_self()
        return function(*arguments, **options)

    setattr(owner, name, replacement)


def start_group(target: Callable[..., object], size: int, *arguments: object) -> None:
    """Call target(rank, port, *arguments) in `size` processes that find each other at a free port of this machine.

    Another program may take the port between our looking and our using it: then once more.
    """
    import torch.multiprocessing as mp

    for attempt in range(3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        try:
            mp.start_processes(_join, (size, port, target, arguments), nprocs=size, start_method="forkserver")
            return
        except mp.ProcessRaisedException as error:
            if attempt == 2 or "EADDRINUSE" not in str(error):
                raise


def _join(rank: int, size: int, port: int, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """The environment that torchrun would make."""
    import torch

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    target(rank, *arguments)
