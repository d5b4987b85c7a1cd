"""Checking many images, in several processes, and only those that are not known."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from hqsam.data.check.cache import VerdictCache
from hqsam.data.check.findings import Verdict
from hqsam.data.check.inspection import inspect_record
from hqsam.data.records import ImageRecord

_AT_ONCE = 8
_WORTH_A_PROCESS = 32


class _Inspections(Dataset[tuple[int, Verdict]]):
    def __init__(self, records: Sequence[ImageRecord], numbers: Sequence[int], use_alpha: bool) -> None:
        self.records = records
        self.numbers = numbers
        self.use_alpha = use_alpha

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[int, Verdict]:
        number = self.numbers[index]
        return number, inspect_record(self.records[number], use_alpha=self.use_alpha)


def check_records(
    records: Sequence[ImageRecord],
    *,
    use_alpha: bool = False,
    workers: int = 0,
    cache: VerdictCache | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Verdict]:
    """Inspect images and their masks; see `inspect_record`.

    Args:
        records: from `open_dataset`.
        use_alpha: mattes are the targets where there are some, as in training.
        workers: processes; 0 works in this one, as few images are in any case.
        cache: verdicts of earlier checks; new ones are added and written, also when the check is interrupted.
        advance: called with the number of images that are done since the last call.

    Returns:
        One verdict for each record, in their order.
    """
    cache = cache or VerdictCache(None)
    known = [cache.get(record, use_alpha=use_alpha) for record in records]
    todo = [number for number, verdict in enumerate(known) if verdict is None]
    advance(len(records) - len(todo))
    loader: DataLoader[tuple[int, Verdict]] = DataLoader(
        _Inspections(records, todo, use_alpha),
        batch_size=_AT_ONCE,
        collate_fn=list,
        num_workers=workers if len(todo) >= _WORTH_A_PROCESS else 0,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator(),  # the global one belongs to the training run
    )
    try:
        for done in loader:
            for number, verdict in done:
                known[number] = verdict
                cache.put(records[number], verdict, use_alpha=use_alpha)
            advance(len(done))
    finally:
        cache.save()
    return [verdict for verdict in known if verdict is not None]


def _quiet_worker(number: int) -> None:
    """Ctrl-C reaches every process of a terminal; the first one decides, and its processes end with it."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
