"""Being asked to stop by the system: a scheduler's SIGTERM, a user's Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

STOPPED = 128 + signal.SIGTERM
"""Exit status of a program that a signal stopped, whichever it was, after it saved what it had."""


class StopSignals:
    """While entered, SIGTERM and SIGINT ask for a stop after the current step; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.received = False
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """Name of the signal that came."""
        return "a signal to another process" if self.number is None else signal.Signals(self.number).name

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received, self.number = True, number


def ignore_stop_signals(worker: int) -> None:
    """For loading processes: a signal to the whole group must not take them from a step that is being finished."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
