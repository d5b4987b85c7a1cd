"""Twenty training steps give the losses that they gave when this file was last written on purpose.

After an intended change: HQSAM_UPDATE_TRACE=1 pytest tests/regression/test_loss_trace.py, and look at the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hqsam.engine.training import open_run
from tests.helpers import fill_parameters
from tests.integration.training_runs import draw_data, make_config

TRACE = Path(__file__).with_name("loss_trace.json")


def test_loss_trace(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "shapes")
    run = open_run(make_config(data, tmp_path, "loop.dtype=float64", "loop.max_steps=20"))
    fill_parameters(run.trainer.model)
    rows = [run.trainer.train_step([batch]) for batch in run.loader()]
    trace = {
        name: [round(float(row[column] / row[2]), 9) for row in rows] for name, column in (("bce", 0), ("dice", 1))
    }
    trace["grad_norm"] = [round(float(row[4]), 9) for row in rows]
    if os.environ.get("HQSAM_UPDATE_TRACE") == "1":
        TRACE.write_text(json.dumps(trace, indent=1) + "\n", "utf-8")
    expected = json.loads(TRACE.read_text("utf-8"))
    for name, values in expected.items():
        assert trace[name] == pytest.approx(values, rel=1e-5), name
