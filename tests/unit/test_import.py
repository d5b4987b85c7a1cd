"""`import hqsam` is quick and silent; `hqsam --help` does not even load torch. Each in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

HEAVY = [
    "timm",
    "cv2",
    "pycocotools",
    "albumentations",
    "tensorboard",
    "omegaconf",
    "onnx",
    "onnxruntime",
    "matplotlib",
]
HEAVY += ["scipy", "huggingface_hub", "fastapi", "rich", "typer", "torchvision"]


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "always", "-c", code]
    return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True)


def loaded_after(statement: str, names: list[str]) -> list[str]:
    done = fresh(f"import sys\n{statement}\nprint([n for n in {names!r} if n in sys.modules])")
    return list(eval(done.stdout.strip().splitlines()[-1]))


def test_import_emits_nothing() -> None:
    done = fresh("import torch, warnings\nimport sys\nsys.stderr.write('|')\nimport hqsam")
    assert done.stderr.split("|", 1)[1] == ""
    assert done.stdout == ""


def test_import_is_light() -> None:
    assert loaded_after("import hqsam", HEAVY) == []


def test_every_public_name_resolves() -> None:
    import hqsam

    assert len(set(hqsam.__all__)) == len(hqsam.__all__)
    for name in hqsam.__all__:
        assert getattr(hqsam, name) is not None
        assert name in dir(hqsam)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hqsam.no_such_name


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["train", "--help"], ["--version"]])
def test_help_does_not_load_torch(arguments: list[str]) -> None:
    call = f"from hqsam.cli import main\nassert main({arguments!r}) == 0"
    assert loaded_after(call, ["torch", "cv2", "timm", "omegaconf"]) == []
