"""Writes that fail: what was there stays, the user reads one line, and the same command goes on."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hqsam.checkpoints import atomic_path
from hqsam.checkpoints.writing import remove_leftovers
from hqsam.engine.config import config_to_yaml
from hqsam.engine.logs import read_entries
from hqsam.engine.state import read_state
from hqsam.engine.training import main, open_run, train
from hqsam.errors import OutputError
from tests.integration.forked import run_forked
from tests.integration.training_runs import draw_data, make_config

OPTIONS = ("loop.max_steps=4", "loop.save_every=2", "data.points.points_per_mask=500")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("drawn") / "shapes", count=4)


def train_limited(config: Path, limit: int) -> None:
    """`train.py` where no file may grow beyond so many bytes: what the system does when the disk is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(main([str(config)]))


NOT_BOUND = 77


def train_without_rights(config: Path, folder: Path) -> None:
    """`train.py` of a user whom permissions bind, as they do not bind root; NOT_BOUND where there is no such user."""
    if os.getuid() == 0:
        drop_override()
    if os.access(folder, os.W_OK, effective_ids=True) or not os.access(config, os.R_OK, effective_ids=True):
        sys.exit(NOT_BOUND)  # a container whose files belong to somebody else
    sys.exit(main([str(config)]))


def drop_override() -> None:
    """Give up the capability CAP_DAC_OVERRIDE (bit 1), see capabilities(7)."""
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~2  # of the effective ones
    assert libc.capset(header, sets) == 0


def errors(output: Path) -> list[str]:
    text = output.read_text()
    assert "Traceback" not in text, text
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_a_full_disk_while_a_state_is_written(data: Path, tmp_path: Path) -> None:
    folder, config, output = tmp_path / "run", tmp_path / "config.yaml", tmp_path / "stderr.txt"
    config.write_text(config_to_yaml(make_config(data, folder, *OPTIONS)))
    run = open_run(make_config(data, folder, *OPTIONS))
    size = run.states.save(run.trainer).stat().st_size
    # Adam's moments come with the first step, so the next state is larger than the one of step 0.
    assert run_forked(train_limited, config, size + 1000, output=output) == 2
    (error,) = errors(output)
    assert "cannot write" in error and "step_0000002.pt" in error
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_0000000.pt"]
    assert run_forked(train_limited, config, 2**40, output=output) == 0
    assert errors(output) == [] and (folder / "report.md").exists()


@pytest.mark.slow
def test_a_full_disk_while_the_log_is_written(data: Path, tmp_path: Path) -> None:
    folder, config, output = tmp_path / "run", tmp_path / "config.yaml", tmp_path / "stderr.txt"
    config.write_text(config_to_yaml(make_config(data, folder, *OPTIONS)))
    assert (
        run_forked(train_limited, config, 5000, output=output) == 2
    )  # config.yaml is smaller, TensorBoard's file is not
    (error,) = errors(output)
    assert "cannot write the log" in error


def test_a_folder_that_cannot_be_made(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "run"
    config.write_text(config_to_yaml(make_config(data, folder, *OPTIONS)))
    assert main([str(config)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "cannot write" in error and "Not a directory" in error and str(folder) in error


@pytest.mark.slow
def test_a_folder_that_may_not_be_written(data: Path, tmp_path: Path) -> None:
    folder, config, output = tmp_path / "run", tmp_path / "config.yaml", tmp_path / "stderr.txt"
    config.write_text(config_to_yaml(make_config(data, folder, *OPTIONS)))
    folder.mkdir(mode=0o555)
    status = run_forked(train_without_rights, config, folder, output=output)
    if status == NOT_BOUND:
        pytest.skip("permissions of files do not bind here")
    assert status == 2
    (error,) = errors(output)
    assert "cannot write" in error and "Permission denied" in error and str(folder) in error
    assert not list(folder.iterdir())


def test_an_older_state_replaces_a_damaged_one(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = open_run(make_config(data, tmp_path, *OPTIONS))
    files = []
    for _, batch in zip(range(3), run.loader(), strict=False):
        files.append(run.states.save(run.trainer))
        run.trainer.train_step([batch])
    content = bytearray(files[2].read_bytes())
    content[len(content) // 2] ^= 1  # one bit: torch would load it as it is
    files[2].write_bytes(bytes(content))
    files[1].write_bytes(files[1].read_bytes()[:-20])
    assert open_run(make_config(data, tmp_path, *OPTIONS)).trainer.step == 0
    told = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert [path.name in text for path, text in zip(files[:0:-1], told, strict=True)] == [True, True]


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    keep = [tmp_path / name for name in (".step_0000002.pt.tmp", "notes.tmp", ".hidden")]
    with atomic_path(tmp_path / "step_0000002.pt") as temporary:
        temporary.write_bytes(b"half")
        leftover = tmp_path / temporary.name.replace("0000002", "0000009")
    for path in [*keep, leftover]:
        path.write_bytes(b"")
    remove_leftovers(tmp_path)
    assert not leftover.exists() and all(path.exists() for path in keep)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:672] .")]
)
def test_a_state_that_cannot_be_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = open_run(make_config(data, tmp_path, *OPTIONS))
    first = run.states.save(run.trainer)
    run.trainer.step = 1

    def fails(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OutputError, match=r"cannot write .*step_0000001\.pt: (No space left|not all of it)"):
        run.states.save(run.trainer)
    assert run.states.files() == [first] and len(list(first.parent.iterdir())) == 1
    assert read_state(first)["step"] == 0


def test_errors_of_another_kind_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), atomic_path(tmp_path / "a"):
        raise RuntimeError("a bug")
    assert not list(tmp_path.iterdir())


def test_a_signal_during_a_validation(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scores are not there, the steps are; the next start does the validation before anything else."""
    from hqsam.engine.evaluation.masks import MaskTask

    run, calls = MaskTask.run, []

    def run_and_signal(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(*arguments)

    options = (*OPTIONS, f"data.val=[{data}]", "loop.val_every=3", "loop.save_every=100")
    config = make_config(data, tmp_path / "run", *options)
    monkeypatch.setattr(MaskTask, "run", run_and_signal)
    assert not train(config)
    assert len(calls) == 2
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_0000003.pt"]
    entries = read_entries(tmp_path / "run/log.jsonl")
    assert [entry["step"] for entry in entries] == [1, 2, 3] and not any("val" in entry for entry in entries)
    assert train(config)
    validated = [entry["step"] for entry in read_entries(tmp_path / "run/log.jsonl") if entry.get("val") == "mean"]
    assert validated == [3, 4]
    assert train(config)  # complete: only its report is written again
    assert [e["step"] for e in read_entries(tmp_path / "run/log.jsonl") if e.get("val") == "mean"] == [3, 4]
