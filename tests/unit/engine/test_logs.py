"""The log of a run: means over windows, and no line twice after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from hqsam.engine.config import load_config
from hqsam.engine.distributed import World
from hqsam.engine.logs import RunLog, drop_entries_after, read_entries
from hqsam.engine.schedule import StepPlan
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.trainer import StepResult

PLAN = StepPlan(lambda epoch: range(8), 8, 2, 1, 1, epochs=4)


def config(tmp_path: Path) -> TrainConfig:
    return load_config(
        TrainConfig, None, [f"output_dir={tmp_path}", "data.train=[x]", "model.name=y", "loop.log_every=2"]
    )


def result(step: int) -> StepResult:
    return StepResult(step, loss=float(step), bce=0.25 * step, dice=0.75 * step, grad_norm=1.0, lr=1e-3, images=2,
                      seconds=0.5, wait_seconds=0.1)  # fmt: skip


def test_windows_are_averaged(tmp_path: Path) -> None:
    with RunLog(tmp_path, World(), PLAN, config(tmp_path)) as log:
        log.steps([result(1), result(2), result(3)])
        log.entry(3, {"val": "mean", "sum_miou": 50.0}, prefix="val/")
    first, val, rest = read_entries(tmp_path / "log.jsonl")
    assert (first["step"], first["loss"], first["bce"], first["dice"]) == (2, 1.5, 0.375, 1.125)
    assert first["images_per_second"] == pytest.approx(4.0) and first["data_wait_share"] == pytest.approx(0.2)
    assert (val["step"], val["val"]) == (3, "mean")
    assert (rest["step"], rest["loss"], rest["epoch"]) == (3, 3.0, 0)


def test_a_resumed_log_has_each_step_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, World(), PLAN, config(tmp_path)) as log:
        log.steps([result(step) for step in range(1, 9)])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # cut short by a crash
    with RunLog(tmp_path, World(), PLAN, config(tmp_path), first_step=4) as log:
        log.steps([result(step) for step in range(5, 9)])
    assert [entry["step"] for entry in read_entries(tmp_path / "log.jsonl")] == [2, 4, 6, 8]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", World(rank=1, size=2), PLAN, config(tmp_path)) as log, log.paused():
        log.steps([result(1), result(2)])
        log.entry(2, {"x": 1.0})
    assert not (tmp_path / "run").exists()


def test_a_log_that_is_not_there_has_no_entries(tmp_path: Path) -> None:
    assert read_entries(tmp_path / "log.jsonl") == []
    drop_entries_after(tmp_path / "log.jsonl", 3)
    assert not (tmp_path / "log.jsonl").exists()


def test_tensorboard_has_scalars_and_settings_in_one_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, World(), PLAN, config(tmp_path)) as log:
        log.steps([result(step) for step in range(1, PLAN.total_steps + 1)])
    assert all(path.is_file() for path in (tmp_path / "tensorboard").iterdir())  # a folder would be another run
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = ("loss", "lr", "grad_norm", "images_per_second", "step_seconds", "data_wait_share", "peak_resident_gb")
    assert {f"train/{name}" for name in scalars} <= set(board.Tags()["scalars"])
    # The last says that the run is complete.
    hparams = {f"_hparams_/{name}" for name in ("experiment", "session_start_info", "session_end_info")}
    assert set(board.summary_metadata) >= hparams


def test_a_validation_that_broke_off_leaves_no_scores(tmp_path: Path) -> None:
    with RunLog(tmp_path, World(), PLAN, config(tmp_path)) as log:
        for step, name in [(2, "a"), (2, "mean"), (4, "a")]:
            log.entry(step, {"val": name, "sum_mbiou": 1.0})
        assert list(log.validations()) == [2]
    drop_entries_after(tmp_path / "log.jsonl", 4)
    assert [(entry["step"], entry["val"]) for entry in read_entries(tmp_path / "log.jsonl")] == [(2, "a"), (2, "mean")]
