"""What `python -m benchmarks.card` asks for can be asked, and its tables say what the results do."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from benchmarks import card
from hqsam.engine.config import load_config
from hqsam.engine.evaluation.config import EvalConfig
from hqsam.images import write_image
from tests.helpers import ROOT


def scores(**columns: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {name: {"miou": miou, "mbiou": mbiou, "n": 2} for name, (miou, mbiou) in columns.items()}


def write_results(folder: Path, results: dict[str, Any], records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), "utf-8")
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), "utf-8")


@pytest.mark.parametrize("name", card.RUNS)
def test_each_run_is_a_configuration(name: str, tmp_path: Path) -> None:
    config, *overrides = shlex.split(card.RUNS[name].format(out=tmp_path))
    load_config(EvalConfig, ROOT / config, [*overrides, "model.name=hq_vit_tiny.embedded", "output_dir=x"])


def test_tables_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is measured again, and an object stands in the class of its share of the picture."""
    pack = tmp_path / "data" / "eval_hq"
    for file in ("a.png", "mask.png"):
        write_image(pack / file, np.zeros((10, 20, 3), np.uint8))
    entry = {"image": "a.png", "mask": "mask.png", "kind": "binary", "objects": [{"name": "thing", "area": 100}]}
    (pack / "index.json").write_text(json.dumps([entry]), "utf-8")
    monkeypatch.setenv("HQSAM_DATA", str(pack.parent))
    out = tmp_path / "runs"
    runs = {
        "eval_hq": (80.0, 83.25),
        "eval_hq_sam_guided": (78.0, 0.0),
        "eval_hq_sam_three": (79.0, 0.0),
        "eval_hq_published": (80.0, 81.0),
        "eval_hq_bilinear": (80.0, 81.5),
        "eval_hq_none": (80.0, 82.0),
        "eval_hq_again": (80.0, 83.0),
        "eval_hq_zoom": (80.0, 84.0),
    }
    for name, (sam, both) in runs.items():
        cells = scores(sam=(sam, 60.0), hq=(81.0, 61.0), sum=(both, 70.0))
        rows = [
            {"image": "a.png", "pixels": pixels, "miou": {"sam": 0.5, "sum": 0.75}, "mbiou": {"sam": 0.25, "sum": 0.5}}
            for pixels in (3, 100)
        ]
        write_results(out / name, {"sets": {"horses": cells}, "mean": cells}, rows)
    card.main(out=out, only="eval_hq,eval_hq_none", checkpoint=None)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("| horses"))
    guided = ["78.0 / 60.0", "79.0 / 60.0"]
    summed = [f"{both:.1f} / 70.0" for both in (81.0, 81.5, 82.0, 83.0, 83.25, 84.0)]
    assert row.split(" | ")[1:11] == ["2", "80.0 / 60.0", *guided, *summed]
    assert "| below 2 % | 1 | 50.0 / 25.0 | 75.0 / 50.0 |" in lines
    assert "| 2 to 10 % | 0 |  |  |" in lines
    assert "| above 10 % | 1 | 50.0 / 25.0 | 75.0 / 50.0 |" in lines
    assert not any("clicks" in line for line in lines)
    for name in set(runs) - {"eval_hq"}:
        (out / name / "results.json").unlink()
    card.main(out=out, only="eval_hq", checkpoint=None)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| horses"))
    assert row.split(" | ")[1:10] == ["2", "80.0 / 60.0", "", "", "", "", "", "", "83.2 / 70.0"]


def test_runs_of_other_weights_are_not_gone_on_with(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"a"), second.write_bytes(b"b")
    card.keep_weights(tmp_path / "runs", first)
    card.keep_weights(tmp_path / "runs", first)
    with pytest.raises(typer.BadParameter, match="holds runs of other weights"):
        card.keep_weights(tmp_path / "runs", second)


def test_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"eval_hp.*eval_hq_none"):
        card.main(out=tmp_path, only="eval_hp", checkpoint=None)
