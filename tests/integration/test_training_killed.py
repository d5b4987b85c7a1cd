"""A run that is killed again and again, and always started by the same command, is the run that nobody touched."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqsam.engine.train_config import TrainConfig
from hqsam.engine.training import train
from tests.integration.forked import kill_after, kill_self, run_forked
from tests.integration.training_runs import content, draw_data, make_config

STEPS, SAVE_EVERY, VALIDATE_EVERY = 18, 2, 5
MOMENTS = ("start", "start", "state", "step", "validation", "state", "call", "validation", "state", "call", "report")
"""What is going on when the process is killed. Before the first state, in the middle of writing one, after a step,
between two images of a validation, at any call of any Python function, while the report is written."""
TIMES = {"epoch", "loss", "bce", "dice", "grad_norm", "lr", "val", "step"}
"""Keys of the log that do not depend on the clock; scores beside them."""


def config(data: Path, folder: Path) -> TrainConfig:
    return make_config(
        data,
        folder,
        f"loop.max_steps={STEPS}",
        f"loop.save_every={SAVE_EVERY}",
        f"loop.val_every={VALIDATE_EVERY}",
        "loop.batch_size=1",
        f"data.val=[{data}]",
        "data.val_per_source=2",
        "data.points.points_per_mask=500",
    )


def train_until(data: Path, folder: Path, moment: str, draw: float) -> None:
    """The run, killed at its `moment`; `draw` in [0, 1) says at which of several."""
    arm(moment, draw)
    assert train(config(data, folder))


def arm(moment: str, draw: float) -> None:
    """Make this process kill itself, as `kill -9` from outside would."""
    from hqsam.engine import state, training
    from hqsam.engine.evaluation.masks import MaskTask
    from hqsam.engine.logs import RunLog

    if moment == "start":
        kill_after(RunLog, "steps", 1)
    elif moment == "step":
        kill_after(RunLog, "steps", 1 + int(4 * draw))
    elif moment == "validation":
        kill_after(MaskTask, "run", 1 + int(3 * draw))
    elif moment == "report":
        kill_after(training, "write_report", 1)
    elif moment == "state":
        whole = state.torch.save

        def half(content: object, path: Path) -> None:
            memory = io.BytesIO()
            whole(content, memory)
            path.write_bytes(memory.getvalue()[: int(draw * memory.tell())])
            kill_self()

        state.torch.save = half  # type: ignore[assignment]
    elif moment == "call":
        left = 40_000 + int(60_000 * draw)

        def count(*arguments: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                kill_self()

        sys.setprofile(count)


def clockless(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k in TIMES or k.endswith("iou")} for entry in entries]


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "tfevents" not in path.name}


@pytest.mark.slow
def test_ten_kills_change_nothing(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "shapes", count=6)
    assert run_forked(train_until, data, tmp_path / "whole", "never", 0.0) == 0
    draws, kills, seen = np.random.default_rng(5), 0, []
    folder = tmp_path / "killed"
    for moment in MOMENTS:
        status = run_forked(train_until, data, folder, moment, draws.random())
        states = sorted((folder / "checkpoints").glob("step_*.pt"))
        seen.append((moment, status, states[-1].name if states else None))
        kills += status == -9
    assert kills >= 10, seen
    assert seen[2][2] is None, "the third kill was to fall into the writing of the first state"
    assert run_forked(train_until, data, folder, "never", 0.0) == 0
    for name in ("model.safetensors", "checkpoints/best.safetensors"):
        assert content(folder / name) == content(tmp_path / "whole" / name), name
    last = [torch.load(run / f"checkpoints/step_{STEPS:07d}.pt") for run in (folder, tmp_path / "whole")]
    moments = [state["optimizer"]["state"] for state in last]
    assert all(torch.equal(v, moments[1][k][n]) for k, values in moments[0].items() for n, v in values.items())
    assert torch.equal(last[0]["rng"][0]["torch"], last[1]["rng"][0]["torch"])
    assert clockless(folder) == clockless(tmp_path / "whole")
    assert names(folder) == names(tmp_path / "whole")  # nothing of the killed writers is left
