"""The model of the newest round: taken up when its file changes, without a restart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import NamedTuple

from hqsam.checkpoints.reading import read_strings
from hqsam.errors import HqsamError
from hqsam.models import Sam

logger = logging.getLogger(__name__)

_PAUSE = 2.0
"""Seconds between two looks at the file."""


class Followed(NamedTuple):
    """A model, and the round that it is of where its file says so."""

    model: Sam
    round: str | None


class ModelFile:
    """A file of weights that is replaced now and then, as a whole.

    Args:
        path: of the file, which need not be there yet.
        load: makes a model of it.
    """

    def __init__(self, path: Path, load: Callable[[Path], Sam]) -> None:
        self.path, self.load = path, load
        self._seen: tuple[int, int, int] | None = None

    def newest(self) -> Followed | None:
        """The model, if the file is there and was not looked at before.

        Raises:
            HqsamError: it cannot be used; the next call waits for another one.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        signature = status.st_mtime_ns, status.st_size, status.st_ino
        if signature == self._seen:
            return None
        self._seen = signature
        return Followed(self.load(self.path), read_strings(self.path).get("round"))


class Follower:
    """Looks at the file in a thread of its own.

    Args:
        file: what is followed.
        use: called with each new model; raises HqsamError for one that cannot be used.
    """

    def __init__(self, file: ModelFile, use: Callable[[Followed], None]) -> None:
        self.file, self.use = file, use
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hqsam-rounds", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once. What cannot be used is reported, and the model that is there stays."""
        try:
            found = self.file.newest()
            if found is not None:
                self.use(found)
        except CancelledError:  # the server ends
            return
        except (HqsamError, OSError) as error:
            logger.error("the new model is not used: %s", error)

    def _loop(self) -> None:
        while not self._closed.wait(_PAUSE):
            self.look()
