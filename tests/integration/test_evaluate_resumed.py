"""Which results of a broken-off evaluation a later one takes: its own, and no others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqsam.checkpoints import save_checkpoint
from hqsam.engine.evaluation import main
from hqsam.engine.evaluation.masks import MaskTask
from hqsam.images import read_image, write_image
from tests.integration.test_evaluate import add_image, arguments, tiny


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Three images."""
    folder = tmp_path / "here" / "tiny_pack"
    entries = [add_image(folder, name, (96, 128), seed) for seed, name in enumerate("abc")]
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(tiny(), path)
    return path


def stop_after_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next evaluation be broken off after its second image."""
    run, images = MaskTask.run, []

    def run_and_signal(self: MaskTask, group: Any, pool: Any) -> Any:
        images.append(group)
        if len(images) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, group, pool)

    monkeypatch.setattr(MaskTask, "run", run_and_signal)


def test_results_of_another_head_are_not_taken(
    tmp_path: Path, pack: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkpoints of one training have the same encoder: the head alone tells them apart."""
    trained = tiny()
    with torch.no_grad():
        for parameter in trained.hq_parameters():
            parameter.mul_(-1)
    save_checkpoint(trained, tmp_path / "trained.safetensors")
    assert main(arguments(tmp_path, pack, tmp_path / "trained.safetensors", "plots=0")) == 0
    whole = json.loads((tmp_path / "run/results.json").read_text())["sets"]
    stop_after_two(monkeypatch)
    mixed = f"output_dir={tmp_path / 'mixed'}"
    assert main(arguments(tmp_path, pack, weights, "plots=0", mixed)) == 143
    assert main(arguments(tmp_path, pack, tmp_path / "trained.safetensors", "plots=0", mixed)) == 0
    assert json.loads((tmp_path / "mixed/results.json").read_text())["sets"] == whole


def test_results_of_another_folder_of_the_same_name_are_not_taken(
    tmp_path: Path, pack: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere" / pack.name
    shutil.copytree(pack, other)
    for mask in (other / "masks").iterdir():
        values = read_image(mask)[..., 0]
        write_image(mask, np.roll(values, 5, axis=1))
    assert main(arguments(tmp_path, other, weights, "plots=0")) == 0
    whole = json.loads((tmp_path / "run/results.json").read_text())["sets"]
    stop_after_two(monkeypatch)
    mixed = f"output_dir={tmp_path / 'mixed'}"
    assert main(arguments(tmp_path, pack, weights, "plots=0", mixed)) == 143
    assert main(arguments(tmp_path, other, weights, "plots=0", mixed)) == 0
    assert json.loads((tmp_path / "mixed/results.json").read_text())["sets"] == whole


def test_results_are_kept_until_the_report_is_written(
    tmp_path: Path, pack: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full at the end costs nothing but the report."""
    (tmp_path / "run/results.md").mkdir(parents=True)
    assert main(arguments(tmp_path, pack, weights, "plots=0")) == 2
    assert (tmp_path / "run/partial").is_dir()
    (tmp_path / "run/results.md").rmdir()

    def refuse(*_: Any) -> Any:
        raise AssertionError("everything was done before")

    monkeypatch.setattr(MaskTask, "run", refuse)
    assert main(arguments(tmp_path, pack, weights, "plots=0")) == 0
    assert len((tmp_path / "run/records.jsonl").read_text().splitlines()) == 3
    assert not (tmp_path / "run/partial").exists()
