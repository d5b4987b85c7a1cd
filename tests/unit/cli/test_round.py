from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from hqsam.cli import main
from hqsam.engine.signals import STOPPED
from hqsam.rounds import running
from hqsam.rounds.state import Change
from tests.unit.rounds.annotated import TINY, annotate, draw_folder, open_store, weights


@pytest.fixture
def place(tmp_path: Path) -> Path:
    annotate(open_store(draw_folder(tmp_path / "photos", 8), tmp_path / "annotations"), range(8))
    weights(tmp_path / "start.safetensors")
    return tmp_path


def run(place: Path, *arguments: str) -> int:
    few = ["--held-out", "5", "--min-masks", "1", "--min-held-out", "2"]
    settings = [*TINY, f"model.checkpoint={place / 'start.safetensors'}"]
    folders = [str(place / "photos"), str(place / "annotations"), "--out", str(place / "rounds")]
    return main(["round", *folders, *few, *settings, *arguments])


def without_work(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    def train(config: object, world: object) -> bool:
        path = place / "rounds" / "round_0001" / "train"
        path.mkdir()
        (path / "model.safetensors").write_bytes((place / "start.safetensors").read_bytes())
        return True

    found = {name: Change(before=50, after=51, low=0.5, high=2) for name in ("miou", "mbiou")}
    monkeypatch.setattr(running, "train", train)
    monkeypatch.setattr(running, "run_evaluation", lambda *_: None)
    monkeypatch.setattr(running, "measured_changes", lambda *_: found)


def test_a_round_and_nothing_new(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_work(monkeypatch, place)
    assert run(place, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "adopted" and found["annotated"] == {"images": 8, "masks": 8}
    assert (place / "rounds" / "current.safetensors").is_file()
    assert run(place) == 0
    assert "nothing to do: neither annotations nor settings changed since round 1" in capsys.readouterr().out


def test_a_signal_and_giving_up(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "train", lambda *_: False)
    assert run(place) == STOPPED
    assert "the same command goes on from here" in capsys.readouterr().err
    assert run(place, "--abandon") == 0
    assert "round 1 is given up" in capsys.readouterr().out
    assert run(place, "--abandon") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-masks", "50"], "50 are needed"),
        (["data.val=[x]"], "hqsam round decides this itself"),
        (["--config", "missing.yaml"], "no configuration file"),
        (["--held-out", "10"], "--held-out"),
    ],
)
def test_bad_options(place: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(place, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (place / "rounds" / "rounds.json").exists()
