"""One thread that does everything with the model, most urgent first, so that the server itself never waits."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Urgency(IntEnum):
    """Lower goes first."""

    PROMPT = 0  # a person waits for a mask
    CURRENT = 1  # a person waits for an image
    PROPOSALS = 2
    HINT = 3  # what may be looked at next
    IDLE = 4


class ClosedError(BaseException):
    """The server ends, and a job that runs is given up. No `Exception`: no job is to take it for its own problem."""


class Job(Generic[_T]):
    """Something to do with the model, and its result."""

    def __init__(self, work: Callable[[], _T], urgency: Urgency) -> None:
        self.work, self.urgency = work, urgency
        self.future: Future[_T] = Future()
        self.started = False

    def run(self) -> None:
        """Do it, unless it was called off or done by way of another entry in the queue."""
        if self.started or self.future.cancelled() or not self.future.set_running_or_notify_cancel():
            return
        self.started = True
        try:
            self.future.set_result(self.work())
        except BaseException as error:  # whoever waits for the result gets it
            self.future.set_exception(error)


class Worker:
    """The thread and its queue."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, int, Job[Any]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._running: list[Job[Any]] = []  # each within the one before
        self._thread = threading.Thread(target=self._loop, name="hqsam-model", daemon=True)

    def start(self) -> None:
        """Begin to work on the queue."""
        self._thread.start()

    def submit(self, work: Callable[[], _T], urgency: Urgency) -> Job[_T]:
        """Put something into the queue."""
        job = Job(work, urgency)
        self._put(job, urgency)
        return job

    def hurry(self, job: Job[Any], urgency: Urgency) -> None:
        """Move a job further to the front; one that runs is not interrupted by as much any more."""
        if urgency < job.urgency:
            job.urgency = urgency
            if not job.started:
                self._put(job, urgency)

    def run_more_urgent(self) -> None:
        """For long jobs, from within: do what came meanwhile and is more urgent than everything that has begun.

        Raises:
            ClosedError: the worker was closed.
        """
        if self._closed:
            raise ClosedError("the server ends")
        while (job := self._take()) is not None:
            self._run(job)

    def close(self) -> None:
        """Call off what has not begun; what has ends where it next looks for more urgent work."""
        with self._changed:
            self._closed = True
            for _, _, job in self._queue:
                job.future.cancel()
            self._queue.clear()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _put(self, job: Job[Any], urgency: Urgency) -> None:
        with self._changed:
            if self._closed:
                job.future.cancel()
                return
            heapq.heappush(self._queue, (urgency, next(self._numbers), job))
            self._changed.notify_all()

    def _take(self) -> Job[Any] | None:
        begun = min((job.urgency for job in self._running), default=Urgency.PROMPT)
        with self._changed:
            if self._queue and self._queue[0][0] < begun:
                return heapq.heappop(self._queue)[2]
            return None

    def _run(self, job: Job[Any]) -> None:
        self._running.append(job)
        try:
            job.run()
        finally:
            self._running.pop()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                job = heapq.heappop(self._queue)[2]
            self._run(job)
