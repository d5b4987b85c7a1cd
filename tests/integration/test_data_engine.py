"""The three stages with a small random model, and what the account of lost and doubled masks would notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from benchmarks.annotator import MOST_CLICKS, Work
from benchmarks.data_engine import Outcome, Plan, Stage, _problems_of_coco, run_plan, show
from tests.unit.rounds.annotated import TINY, draw_folder, true_mask, weights


@pytest.mark.slow
def test_all_three_stages_with_kills(tmp_path: Path) -> None:
    draw_folder(tmp_path / "photos", 8)
    start = weights(tmp_path / "start.safetensors")
    settings = [text for text in TINY if not text.startswith("model.")]
    plan = Plan(
        tmp_path,
        {f"{number:02d}.png": [true_mask(number), ~true_mask(number)] for number in range(8)},
        model=("--model", "hq_test_tiny", "--checkpoint", str(start), "--device", "cpu"),
        start=("model.name=hq_test_tiny", f"model.checkpoint={start}"),
        round_options=("--min-masks", "1", "--min-held-out", "2", "--held-out", "6", *settings),
        auto_options=("--points-per-side", "3", "--iou-thresh", "-100", "--stability-thresh", "0"),
        processes=2,
    )
    outcome = run_plan(plan)
    assert outcome.problems == [] and outcome.kills == 2
    clicks, mixed, automatic = outcome.stages
    assert (clicks.images, clicks.masks, mixed.images, mixed.masks) == (4, 8, 4, 8)
    assert clicks.masks <= clicks.clicks <= MOST_CLICKS * clicks.masks
    assert automatic.images == 8 and automatic.masks > 0
    adopted = outcome.round["outcome"] == "adopted"
    assert outcome.served_round == ("1" if adopted else None)
    assert (tmp_path / "auto" / "report.png").is_file()


def coco(path: Path, rows: list[tuple[int, str]]) -> None:
    content = {
        "images": [{"id": 1, "file_name": "../photos/a.png"}, {"id": 2, "file_name": "../photos/b.png"}],
        "annotations": [{"image_id": image, "segmentation": {"counts": counts}} for image, counts in rows],
    }
    path.mkdir(exist_ok=True)
    (path / "annotations.json").write_text(json.dumps(content))


def test_what_is_lost_or_twice_is_noticed(tmp_path: Path) -> None:
    plan = Plan(tmp_path, {})
    work = Work(saved={"a.png": {"x": "AA", "y": "BB"}, "b.png": {"z": "CC", "e": "EE"}}, empty={"e"})
    coco(plan.annotations, [(1, "BB"), (2, "CC"), (1, "AA")])
    assert _problems_of_coco(plan, work) == []
    for rows in (
        [(1, "AA"), (2, "CC")],
        [(1, "AA"), (1, "BB"), (2, "CC"), (2, "CC")],
        [(1, "AA"), (2, "BB"), (2, "CC")],
    ):
        coco(plan.annotations, rows)
        assert _problems_of_coco(plan, work)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [Stage("clicks", 2, 4, 6, mean_iou=0.5), Stage("proposals and clicks", 2, 3, 1, 9, 2, 0.25)]
    show(Outcome(stages, {"outcome": "kept", "reason": "no"}, None, 2))
    text = capsys.readouterr().out
    assert "| clicks | 2 | 4 | 6 |  | 0.500 | 0.0 |" in text and "| 2 of 9 | 0.250 |" in text
    assert "nothing is lost, nothing is twice" in text
