"""Imports go one way, one file imports timm, and everything imported is a declared dependency."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import ROOT

PACKAGE = ROOT / "hqsam"
# Lower ranks never import higher ones, not even inside a function. A new module must be given its place here.
RANKS = {
    **dict.fromkeys(
        [
            "types",
            "errors",
            "geometry",
            "boxes",
            "images",
            "postprocess",
            "upsampling",
            "guided",
            "rle",
            "prompt_arrays",
        ],
        0,
    ),
    "models": 1,
    **dict.fromkeys(["checkpoints", "hub", "registry", "assets"], 2),
    **dict.fromkeys(
        [
            "prompts",
            "features",
            "computed_from",
            "encoding",
            "refine",
            "heeding",
            "answering",
            "segmentation",
            "predictor",
        ],
        3,
    ),
    **dict.fromkeys(["automatic", "exchange", "text"], 3),
    **dict.fromkeys(["losses", "metrics", "data", "visualize"], 3),
    "drop_in": 4,
    **dict.fromkeys(["engine", "export"], 5),
    **dict.fromkeys(["hqsam", "serve"], 6),
    "rounds": 7,
    **dict.fromkeys(["cli", "__main__"], 8),
}
# Rows that know less than their rank allows: metrics know arrays, models know no files.
NEVER = {
    "metrics": {"hqsam.models", "hqsam.registry", "hqsam.predictor", "hqsam.checkpoints", "hqsam.data"},
    "models": {"hqsam.images", "pathlib", "safetensors", "huggingface_hub", "PIL", "cv2"},
    "losses": {"hqsam.models", "hqsam.data"},
    "data": {"hqsam.models", "hqsam.registry", "hqsam.predictor"},
}
TIMM_FILE = "models/encoders/timm_backbones.py"
# import names that differ from the name of the distribution
DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "huggingface_hub": "huggingface-hub"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere; `from a import b` gives a.b."""
    parts = ("hqsam", *path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*parts[: -node.level], *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def row(name: str) -> str:
    """The row of the layout that a dotted name inside hqsam belongs to."""
    parts = name.split(".")
    exists = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
    return parts[1] if exists else "hqsam"


def row_of_file(path: Path) -> str:
    top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "hqsam" if top == "__init__" else top


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = row_of_file(path)
    assert own in RANKS, f"give the new module {own!r} a rank in {Path(__file__).name}"
    for name in imported(path):
        if name.split(".")[0] == "hqsam":
            assert RANKS[row(name)] <= RANKS[own], f"{own} (rank {RANKS[own]}) imports {name}"
        assert name.split(".")[0] not in {"tests", "train", "evaluate", "benchmarks"}, f"{own} imports {name}"
        banned = [bad for bad in NEVER.get(own, ()) if name == bad or name.startswith(f"{bad}.")]
        assert not banned, f"{path.name} imports {name}, which {own} must not know"


def test_one_file_imports_timm() -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name.split(".")[0] == "timm" for name in imported(path))
    }
    assert users <= {TIMM_FILE}


def test_imported_packages_are_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    declared = set(re.findall(r'"([A-Za-z0-9_-]+)[><=]=[^"]*"', text))
    for path in modules():
        for name in imported(path):
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "hqsam":
                assert DISTRIBUTIONS.get(top, top) in declared, f"{path.name} imports {top}, not in pyproject.toml"


def test_the_lock_fixes_every_direct_dependency() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    lock = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "requirements/lock.txt").read_text("utf-8"), re.M))
    groups = re.findall(r"^(dependencies|onnx|parity|dev) = \[(.*?)\]$", text, re.M | re.S)
    assert [name for name, _ in groups] == ["dependencies", "onnx", "parity", "dev"]
    for group in groups:
        for line in re.findall(r'"([^"]+)"', group[1]):
            needed = requirements.Requirement(line)
            assert needed.specifier.contains(lock[needed.name]), f"{line}, locked at {lock[needed.name]}"
    assert lock["opencv-python"] == lock["opencv-python-headless"]
