"""`torchrun` as a scheduler uses it: a stop from outside, a restart after a crash, and still the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hqsam.engine.config import config_to_yaml
from hqsam.engine.distributed import join_world
from hqsam.engine.logs import read_entries
from hqsam.engine.training import train
from tests.helpers import ROOT
from tests.integration.forked import start_group
from tests.integration.training_runs import content, draw_data, make_config

OPTIONS = ("loop.max_steps=12", "loop.batch_size=1", "loop.save_every=2", "data.points.points_per_mask=500")


def undisturbed(rank: int, data: Path, folder: Path) -> None:
    with join_world("cpu") as world:
        assert train(make_config(data, folder, *OPTIONS), world)


def start(config: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    program = str(ROOT / "tests/integration/killed_once.py")
    return subprocess.Popen([*command, program, str(config)], stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_stop_and_a_restart_are_one_run(tmp_path: Path) -> None:
    data, folder, config = draw_data(tmp_path / "shapes"), tmp_path / "run", tmp_path / "config.yaml"
    config.write_text(config_to_yaml(make_config(data, folder, *OPTIONS)))

    with start(config) as stopped:  # the second process would be killed after step 4
        assert stopped.stderr is not None
        seen = [next(line for line in stopped.stderr if "step 1/12" in line)]
        stopped.send_signal(signal.SIGTERM)  # to the launcher, as a scheduler does
        seen += stopped.stderr
    last = read_entries(folder / "log.jsonl")[-1]["step"]
    assert stopped.returncode != 0 and any("stopped by SIGTERM" in line for line in seen), "".join(seen)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())][-1] == f"step_{last:07d}.pt"

    with start(config, "--max-restarts=1") as restarted:
        assert restarted.stderr is not None
        seen = list(restarted.stderr)
    assert restarted.returncode == 0, "".join(seen)
    assert sum("going on from" in line for line in seen) == 2, "".join(seen)
    assert [entry["step"] for entry in read_entries(folder / "log.jsonl")] == list(range(1, 13))

    start_group(undisturbed, 2, data, tmp_path / "whole")
    assert content(folder / "model.safetensors") == content(tmp_path / "whole/model.safetensors")
