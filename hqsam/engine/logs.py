"""What a run tells while it goes: ``log.jsonl``, TensorBoard, a progress line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hqsam.engine.config import flatten_config
from hqsam.engine.distributed import World
from hqsam.engine.schedule import StepPlan
from hqsam.engine.terminal import progress_bar, terminal
from hqsam.engine.train_config import TrainConfig

if TYPE_CHECKING:
    from hqsam.engine.trainer import StepResult

logger = logging.getLogger(__name__)


class RunLog:
    """The log of a run; on every process but the first it does nothing.

    A resumed run continues the files: what was logged beyond its first step is dropped, so each step is there once.

    Args:
        folder: run folder.
        world: the group.
        plan: for the length of the progress bar and the epoch of a step.
        config: steps averaged in one entry; all of it is shown in TensorBoard.
        first_step: steps done before.
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
        self.window: list[StepResult] = []
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        drop_entries_after(self.path, first_step)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        rows = "\n".join(f"|{key}|{value}|" for key, value in flatten_config(config).items())
        self.board.add_text("config", f"|key|value|\n|---|---|\n{rows}", first_step)
        self.progress = progress_bar()
        self.task = self.progress.add_task("training", total=plan.total_steps, completed=first_step)
        self.progress.start()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.active:
            self._write_window()
            self.progress.stop()
            self.board.close()

    def steps(self, results: Sequence[StepResult]) -> None:
        """Take the numbers of steps; every `every` steps their means are written."""
        if not self.active:
            return
        for result in results:
            self.window.append(result)
            if result.step % self.every == 0:
                self._write_window()
        if results:
            last = results[-1]
            self.progress.update(self.task, completed=last.step, description=f"training, loss {last.loss:.4f}")

    def entry(self, step: int, values: Mapping[str, Any], *, prefix: str = "") -> None:
        """Write one line to ``log.jsonl`` and its numbers to TensorBoard."""
        if not self.active:
            return
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
            self.board.add_image(name, pixels, step, dataformats="HWC")

    def _write_window(self) -> None:
        if not self.window:
            return
        window, self.window = self.window, []
        last, seconds = window[-1], max(sum(item.seconds for item in window), 1e-9)
        values = {
            "epoch": self.plan.epoch_of(last.step - 1),
            **{name: float(np.mean([getattr(item, name) for item in window])) for name in ("loss", "bce", "dice")},
            "grad_norm": float(np.mean([item.grad_norm for item in window])),
            "lr": last.lr,
            "images_per_second": sum(item.images for item in window) / seconds,
            "data_wait_share": sum(item.wait_seconds for item in window) / seconds,
        }
        if self.device.type == "cuda":
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        self.entry(last.step, values, prefix="train/")
        if not terminal().is_terminal:  # there the bar says it
            logger.info(
                "step %d/%d  loss %.4f (bce %.4f, dice %.4f)  %.2f images/s, %.0f %% of the time waiting for data",
                last.step,
                self.plan.total_steps,
                values["loss"],
                values["bce"],
                values["dice"],
                values["images_per_second"],
                100 * values["data_wait_share"],
            )


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
    """Remove what a lost part of the run logged, atomically."""
    entries = read_entries(path)
    kept = [entry for entry in entries if entry["step"] <= step]
    if path.exists():
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        os.replace(partial, path)
