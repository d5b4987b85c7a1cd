"""The report of a run."""

from __future__ import annotations

import json
from pathlib import Path

from hqsam.engine.config import load_config
from hqsam.engine.distributed import World
from hqsam.engine.report import write_report
from hqsam.engine.schedule import StepPlan
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.validation import Validator

PLAN = StepPlan(lambda epoch: range(8), 8, 2, 1, 1, epochs=4)


def test_report_without_validation(tmp_path: Path) -> None:
    config = load_config(TrainConfig, None, [f"output_dir={tmp_path}", "data.train=[set]", "model.name=hq_vit_b"])
    entries = [
        {"step": 2, "loss": 1.5, "bce": 1.0, "dice": 0.5, "lr": 0.1},
        {"step": 4, "loss": 0.75, "bce": 0.5, "dice": 0.25, "lr": 0.1},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    text = write_report(tmp_path, config, PLAN, Validator([], config, World())).read_text()
    assert text.startswith("# Training of hq_vit_b\n") and "validated on nothing" in text
    assert "Loss 0.7500 (BCE 0.5000, dice 0.2500)" in text and "16 steps of 2 images" in text
    assert "## Validation" not in text
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"loss.png", "learning_rate.png"}
