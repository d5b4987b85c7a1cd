from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqsam.checkpoints import save_checkpoint
from hqsam.cli import main
from hqsam.registry import create_model

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "a.png")
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How the server was started, which it is not."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: calls.append({"guard": app, **options}))
    return calls


def run(photos: Path, *arguments: str) -> int:
    return main(["serve", str(photos), "--out", str(photos.parent / "out"), "--model", "hq_test_tiny", *arguments])


def test_this_machine_alone_is_let_in(
    photos: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, "--labels", " cat, dog,cat,") == 0
    (call,) = started
    assert call["timeout_graceful_shutdown"] > 0  # a search for proposals may take minutes
    assert call["host"] == "127.0.0.1" and call["port"] == 8000 and call["guard"].token is None
    assert "1 pictures; open http://127.0.0.1:8000/ " in capsys.readouterr().out


def test_others_need_a_token(photos: Path, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "192.168.1.2", "::"):
        assert run(photos, "--host", host) == 2
        assert "give a --token too" in capsys.readouterr().err
    assert run(photos, "--host", "::1", "--token", "") == 2
    assert run(photos, "--token", "a b") == 2 and "letters, digits" in capsys.readouterr().err
    assert started == []
    assert run(photos, "--host", "::", "--token", "secret", "--port", "81") == 0
    assert started[0]["guard"].token == "secret"
    assert "http://[::]:81/?token=secret" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "x" * 201], "a label is plain text"),
        (["--boxes", "missing.json"], "boxes cannot be read"),
        (["--model", "nonsense"], "unknown model"),
        (["--threads", "0"], "--threads"),
        (["--port", "70000"], "--port"),
        (["--port", "0"], "--port"),  # any free one, which nobody would learn
    ],
)
def test_bad_options(
    photos: Path, started: list[dict[str, Any]], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, *arguments) == 2
    assert message in capsys.readouterr().err and started == []


def test_the_model_of_the_newest_round(
    photos: Path, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from hqsam.rounds import CURRENT_FILE

    services: list[Any] = []
    monkeypatch.setattr("hqsam.serve.app.create_app", lambda service, **_: services.append(service))
    rounds = tmp_path / "rounds"
    rounds.mkdir()
    assert run(photos, "--rounds", str(rounds)) == 0
    assert services[0].round is None and services[0].follower.file.path == rounds / CURRENT_FILE
    model = create_model("hq_test_tiny", device="cpu")
    model.head_state = "trained"
    save_checkpoint(model, rounds / CURRENT_FILE, metadata={"round": "7"})
    assert run(photos, "--rounds", str(rounds)) == 0
    assert services[1].round == "7" and services[1].fingerprint != services[0].fingerprint


def test_folders(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["serve", str(photos), "--out", str(photos)]) == 2
    assert "annotations need one of their own" in capsys.readouterr().err
    assert main(["serve", str(photos)]) == 2


def test_without_the_extra(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else found(name))
    assert run(photos) == 2
    assert "hqsam serve needs fastapi: pip install 'hqsam[app]'" in capsys.readouterr().err
