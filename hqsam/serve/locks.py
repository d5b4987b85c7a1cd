"""A lock between threads and processes, on a file: it is released when its holder ends, however that happens."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hqsam.errors import OutputError


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is created and stays.

    Args:
        path: of the file.
        wait: for whoever has it.

    Raises:
        BlockingIOError: somebody has it, without `wait`.
        OutputError: the file cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        _lock(descriptor, wait)
        yield
    finally:
        os.close(descriptor)  # releases it


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, wait: bool) -> None:
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:
                if not wait:  # with it, it gives up after ten seconds
                    raise BlockingIOError from error

else:
    import fcntl

    def _lock(descriptor: int, wait: bool) -> None:
        # each opening is a holder of its own, also between threads
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
