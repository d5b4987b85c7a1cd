"""What a run tells while it goes: ``log.jsonl``, TensorBoard, a progress line."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hqsam.checkpoints import atomic_path
from hqsam.engine.config import flatten_config
from hqsam.engine.distributed import World
from hqsam.engine.evaluation.columns import COLUMNS
from hqsam.engine.schedule import StepPlan
from hqsam.engine.terminal import progress_bar, terminal
from hqsam.engine.train_config import TrainConfig
from hqsam.errors import OutputError

if TYPE_CHECKING:
    from hqsam.engine.trainer import StepResult

logger = logging.getLogger(__name__)

_RECENT = 20
"""Steps over which the progress line averages images/s."""


class RunLog:
    """The log of a run; on every process but the first it does nothing.

    A resumed run continues the files: what was logged beyond its first step is dropped, so each step is there once.

    Args:
        folder: run folder.
        world: the group.
        plan: for the length of the progress bar and the epoch of a step.
        config: steps averaged in one entry; all of it is shown in TensorBoard.
        first_step: steps done before.

    Raises:
        OutputError: here and in every method, the log cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        plan: StepPlan,
        config: TrainConfig,
        *,
        first_step: int = 0,
    ) -> None:
        self.path = folder / "log.jsonl"
        self.active = world.is_main
        self.device = world.device
        self.plan = plan
        self.every = config.loop.log_every
        # A plain SAM has a focal loss where HQ has its binary cross-entropy, and no columns of HQ.
        plain = config.model.name.startswith("sam_")
        self.terms = {"loss": "loss", "focal" if plain else "bce": "bce", "dice": "dice"}
        self.columns = ("sam",) if plain else COLUMNS
        self.window: list[StepResult] = []
        self.recent: deque[StepResult] = deque(maxlen=_RECENT)
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.excepthook, threading.excepthook = threading.excepthook, self._thread_failed
        drop_entries_after(self.path, first_step)
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
            self._show_settings(config, first_step)
        self.progress = progress_bar(note=True)
        self.task = self.progress.add_task("training", total=plan.total_steps, completed=first_step, note="")
        self.progress.start()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.active:
            return
        threading.excepthook = self.excepthook
        self.progress.stop()
        if error is None:
            self._write_window()
            with self._writing():
                if self.progress.finished:
                    self.board._get_file_writer().add_summary(self.session_end)
                self.board.close()
        else:  # which is told; the log may be what failed
            with suppress(Exception):
                self._write_window()
                self.board.close()

    def steps(self, results: Sequence[StepResult]) -> None:
        """Take the numbers of steps; every `every` steps their means are written."""
        if not self.active:
            return
        for result in results:
            self.window.append(result)
            self.recent.append(result)
            if result.step % self.every == 0:
                self._write_window()
        if results:
            rate = sum(item.images for item in self.recent) / max(sum(item.seconds for item in self.recent), 1e-9)
            note = f"{rate:.1f} images/s, loss {results[-1].loss:.4f}"
            self.progress.update(self.task, completed=results[-1].step, note=note)

    def entry(self, step: int, values: Mapping[str, Any], *, prefix: str = "") -> None:
        """Write one line to ``log.jsonl`` and its numbers to TensorBoard."""
        if not self.active:
            return
        with self._writing():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self.board.add_scalar(f"{prefix}{name}", value, step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the progress line away while another one is shown."""
        if self.active:
            self.progress.stop()
        yield
        if self.active:
            self.progress.start()

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Show a picture in TensorBoard: (H, W, 3) uint8 RGB."""
        if self.active:
            with self._writing():
                self.board.add_image(name, pixels, step, dataformats="HWC")

    def validations(self) -> dict[int, dict[str, Any]]:
        """Step -> mean over sets, of the validations that are logged; empty on every process but the first."""
        entries = read_entries(self.path) if self.active else []
        return {entry["step"]: entry for entry in entries if entry.get("val") == "mean"}

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread keeps its error for the next call; a traceback beside it would only hide the line."""
        if type(failure.thread).__name__ != "_AsyncWriterThread":
            self.excepthook(failure)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # TensorBoard writes in a thread and raises the error at the next call
            reason = error.strerror or str(error)
            raise OutputError(f"cannot write the log of the run in {self.path.parent}: {reason}") from error

    def _show_settings(self, config: TrainConfig, step: int) -> None:
        """The configuration as a text and for TensorBoard's table of runs, whose metrics are scalars of this run.

        `SummaryWriter.add_hparams` would put them into a run of its own.
        """
        from torch.utils.tensorboard.summary import hparams

        settings = flatten_config(config)
        rows = "\n".join(f"|{key}|{value}|" for key, value in settings.items())
        self.board.add_text("config", f"|key|value|\n|---|---|\n{rows}", step)
        scores = [f"val/mean/{column}_{key}" for column in self.columns for key in ("miou", "mbiou")]
        metrics = dict.fromkeys(["train/loss", *(scores if config.data.val or config.data.val_synthetic else [])], 0.0)
        simple = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        *start, self.session_end = hparams(simple, metrics)
        for summary in start:
            self.board._get_file_writer().add_summary(summary)

    def _write_window(self) -> None:
        if not self.window:
            return
        window, self.window = self.window, []
        last, seconds = window[-1], max(sum(item.seconds for item in window), 1e-9)
        values = {
            "epoch": self.plan.epoch_of(last.step - 1),
            **{name: float(np.mean([getattr(item, field) for item in window])) for name, field in self.terms.items()},
            "grad_norm": float(np.mean([item.grad_norm for item in window])),
            "lr": last.lr,
            "images_per_second": sum(item.images for item in window) / seconds,
            "step_seconds": seconds / len(window),
            "data_wait_share": sum(item.wait_seconds for item in window) / seconds,
            **peak_memory(self.device),
        }
        self.entry(last.step, values, prefix="train/")
        if not terminal().is_terminal:  # there the bar says it
            logger.info(
                "step %d/%d  %s  %.2f images/s, %.0f %% of the time waiting for data",
                last.step,
                self.plan.total_steps,
                ", ".join(f"{name} {values[name]:.4f}" for name in self.terms),
                values["images_per_second"],
                100 * values["data_wait_share"],
            )


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held, in GB: resident, and on a GPU allocated and reserved by torch.

    Counters are read; nothing waits for the device.
    """
    values = {}
    with suppress(ImportError):  # not on every system
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        values["peak_resident_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    if device.type == "cuda":
        values["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        values["peak_reserved_gb"] = torch.cuda.max_memory_reserved(device) / 1e9
    return values


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Entries of a ``log.jsonl``; a line cut short by a crash is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def drop_entries_after(path: Path, step: int) -> None:
    """Remove what a lost part of the run logged, and scores of a validation whose mean, the last line, is not there."""
    if not path.exists():
        return
    entries = [entry for entry in read_entries(path) if entry["step"] <= step]
    whole = {entry["step"] for entry in entries if entry.get("val") == "mean"}
    kept = [entry for entry in entries if "val" not in entry or entry["step"] in whole]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
