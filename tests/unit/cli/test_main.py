from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hqsam
from hqsam.cli import main
from hqsam.cli.main import app

COMMANDS = [
    "predict",
    "auto",
    "compare",
    "train",
    "evaluate",
    "ablate",
    "check-data",
    "inspect",
    "convert",
    "export",
    "serve",
    "round",
    "models",
    "models list",
    "models download",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert f"\n  hqsam {command}" in capsys.readouterr().out


def test_every_command_is_in_the_list_above() -> None:
    assert {command.name for command in app.registered_commands} | {"models"} == {c.split()[0] for c in COMMANDS}


def test_no_arguments_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    captured = capsys.readouterr()
    assert "Commands:" in captured.out + captured.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == hqsam.__version__


@pytest.mark.parametrize("arguments", [["nonsense"], ["predict"], ["--nonsense"], ["models", "list", "xyz*"]])
def test_usage_errors_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("hqsam: error: ")
    assert error.count("\n") == 1


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pattern: str) -> list[str]:
        raise KeyError("a bug")

    monkeypatch.setattr("hqsam.registry.list_models", broken)
    with pytest.raises(KeyError):
        main(["models"])


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HQSAM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="xyz"):
        main(["models", "list", "xyz*"])


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out.split() == hqsam.list_models()
    assert main(["models", "list", "hq_vit_?", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["hq_vit_b", "hq_vit_h", "hq_vit_l"]
    assert rows[0]["hq"] is True
    assert main(["models", "list", "xyz*", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    hqsam.save_checkpoint(hqsam.create_model("hq_test_tiny", device="cpu"), path)
    return path


def test_inspect(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint)]) == 0
    assert "Light HQ-SAM" in capsys.readouterr().out
    assert main(["inspect", str(checkpoint), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["layout"], row["variant"], row["has_hq"], row["dtype"]) == (
        "light_hq_sam",
        "test_tiny",
        True,
        "float32",
    )


def test_convert(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = checkpoint.with_name("head.safetensors")
    assert main(["convert", str(checkpoint), str(head), "--part", "hq", "--dtype", "float16"]) == 0
    assert "float16" in capsys.readouterr().out
    assert main(["convert", str(checkpoint), str(head.with_suffix(".pth")), "--head", str(head), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "light_hq_sam"


def test_convert_to_another_layout_and_back(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder, back = checkpoint.with_name("encoder.pth"), checkpoint.with_name("back.safetensors")
    assert main(["convert", str(checkpoint), str(encoder), "--to", "timm"]) == 0
    assert "an image encoder alone under timm's names (test_tiny)" in capsys.readouterr().out
    merge = ["convert", str(checkpoint), str(back), "--encoder", str(encoder), "--recommended-fusion", "hq", "--json"]
    assert main(merge) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["layout"], row["recommended_fusion"]) == ("light_hq_sam", "hq")
    assert main(["inspect", str(back)]) == 0
    assert re.search("recommended fusion +hq\n", capsys.readouterr().out)
    assert main(["convert", str(checkpoint), str(back), "--to", "transformers"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["convert", str(checkpoint), str(back), "--to", "onnx"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "convert"])
@pytest.mark.parametrize("kind", ["missing", "garbage", "foreign"])
def test_bad_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str) -> None:
    path = tmp_path / "bad.safetensors"
    if kind == "garbage":
        path.write_bytes(b"nonsense")
    elif kind == "foreign":
        save_file({"resnet.conv1.weight": torch.zeros(3)}, path)
    extra = [str(tmp_path / "out.pth")] if command == "convert" else []
    assert main([command, str(path), *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hqsam: error: ") and "bad.safetensors" in error
    assert not (tmp_path / "out.pth").exists()
