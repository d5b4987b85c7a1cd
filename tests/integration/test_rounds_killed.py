"""A round that is killed at each of its steps, and always started by the same command, is the round nobody touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from hqsam.rounds import RoundOptions, read_rounds, run_round
from tests.integration.forked import kill_after, run_forked
from tests.integration.training_runs import content
from tests.unit.rounds.annotated import TINY, annotate, draw_folder, open_store, weights

MOMENTS = ("snapshot", "begun", "training", "candidate", "before", "after", "outcome", "model")


def one_round(place: Path, name: str, moment: str) -> None:
    """A round, killed at its `moment`."""
    arm(moment)
    start = place / "start.safetensors"
    options = RoundOptions(
        overrides=[*TINY, f"model.checkpoint={start}", "loop.max_steps=3", "loop.save_every=1"],
        held_out_tenths=4,
        min_masks=3,
        min_held_out=2,
    )
    run_round(open_store(place / "photos", place / "annotations"), place / name, options)


def arm(moment: str) -> None:
    from hqsam.engine.evaluation.masks import MaskTask
    from hqsam.engine.logs import RunLog
    from hqsam.rounds import running
    from hqsam.rounds.state import Change, Rounds

    # an adopted model has more steps to go wrong
    found = {name: Change(before=50, after=51, low=0.5, high=2) for name in ("miou", "mbiou")}
    running.measured_changes = lambda *_: found  # type: ignore[assignment]
    calls: dict[str, tuple[Any, str, int]] = {
        "snapshot": (running, "check_snapshot", 1),
        "begun": (Rounds, "write", 1),
        "training": (RunLog, "steps", 2),
        "candidate": (running, "_write_candidate", 1),
        "before": (MaskTask, "run", 2),
        "after": (MaskTask, "run", 5),
        "outcome": (running, "_close", 1),
        "model": (running, "settle_current", 2),
    }
    if moment in calls:
        kill_after(*calls[moment])


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    store = open_store(draw_folder(tmp_path / "photos", 16), tmp_path / "annotations")
    annotate(store, range(14))
    weights(tmp_path / "start.safetensors")
    assert run_forked(one_round, tmp_path, "whole", "never") == 0
    statuses = [(moment, run_forked(one_round, tmp_path, "killed", moment)) for moment in MOMENTS]
    assert [status for _, status in statuses] == [-9] * len(MOMENTS), statuses
    run_forked(one_round, tmp_path, "killed", "never")  # settles the model; nothing else is left to do
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert read_rounds(whole) == read_rounds(killed)
    assert content(whole / "current.safetensors") == content(killed / "current.safetensors")
    for name in ("before", "after"):
        one, other = (folder / "round_0001" / name / "records.jsonl" for folder in (whole, killed))
        assert one.read_text() == other.read_text()
    assert {path.name for path in whole.iterdir()} == {path.name for path in killed.iterdir()}
    assert (whole / "report.md").read_text() == (killed / "report.md").read_text()
    assert not list(killed.rglob("*.tmp"))
