from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hqsam.cli import main
from hqsam.text import ProjectionInfo, TextProjection, save_projection
from tests.unit.text.tiny_text_models import DETECTOR_KINDS, build_clip_folder, build_detector_folder

MODEL = ["--model", "hq_test_tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: str(build_detector_folder(tmp_path_factory.mktemp(kind), kind)) for kind in DETECTOR_KINDS}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def projection(tmp_path: Path, clip: str) -> str:
    path = tmp_path / "projection.safetensors"
    torch.manual_seed(0)
    save_projection(TextProjection(24), path, ProjectionInfo(clip=clip, sam="hq_test_tiny"))
    return str(path)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def run(photo: Path, *arguments: str) -> dict[str, Any]:
    out = photo.parent / "out"
    assert main(["predict", str(photo), *MODEL, "--out", str(out), *arguments]) == 0
    record: dict[str, Any] = json.loads((out / "photo.json").read_text())
    return record


@pytest.mark.parametrize("kind", DETECTOR_KINDS)
def test_a_detector_gives_a_mask_for_each_box(
    photo: Path, detectors: dict[str, str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(
        photo, "--text", "a dog", "--text", "red ball", "--detector", detectors[kind], "--text-threshold", "0.05"
    )
    entries = record["masks"]
    assert record["text"] == {"phrases": ["a dog", "red ball"], "detector": detectors[kind], "threshold": 0.05}
    assert len(entries) > 0
    assert list(entries[0]) == [
        "segmentation", "bbox", "area", "score", "text", "detector_score", "detector_box"
    ]  # fmt: skip
    assert {entry["text"] for entry in entries} <= {"a dog", "red ball"}
    scores = [entry["detector_score"] for entry in entries]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= e["detector_box"][0] < e["detector_box"][2] <= 60 for e in entries)
    written = list((photo.parent / "out").glob("photo_mask*.png"))
    assert len(written) == len(entries)
    assert f"mask 0 ('{entries[0]['text']}', detector " in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_found_is_a_success_without_masks(
    photo: Path, detectors: dict[str, str], capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    flags = ["--json"] if as_json else []
    record = run(
        photo, "--text", "a dog", "--text", "cat", "--detector", detectors["owlvit"], "--text-threshold", "1", *flags
    )
    assert record["masks"] == []
    assert record["size"] == [40, 60]
    out = photo.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == ["photo.json", "photo_overlay.png"]
    shown = capsys.readouterr().out
    if as_json:
        assert json.loads(shown) == record
    else:
        assert "nothing found for 'a dog' with a score above 1\n" in shown
        assert "nothing found for 'cat' with a score above 1\n" in shown


def test_a_point_corrects_the_box_that_holds_it(photo: Path, detectors: dict[str, str]) -> None:
    arguments = ["--text", "a dog", "--detector", detectors["owlvit"], "--text-threshold", "0.05"]
    every = run(photo, *arguments)["masks"]
    assert len(every) > 2
    last = every[-1]["detector_box"]
    x, y = (last[0] + last[2]) / 2, (last[1] + last[3]) / 2
    (entry,) = run(photo, *arguments, "--point", f"{x},{y}")["masks"]
    box = entry["detector_box"]
    assert box[0] <= x <= box[2]
    assert box[1] <= y <= box[3]
    (entry,) = run(photo, *arguments, "--point", "0,0,0")["masks"]
    assert entry["detector_box"] == every[0]["detector_box"]


def test_a_projection_gives_a_mask_for_each_phrase(
    photo: Path, projection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(photo, "--text", "a dog", "--text", "cat", "--text-projection", projection)
    assert [entry["text"] for entry in record["masks"]] == ["a dog", "cat"]
    assert list(record["masks"][0]) == ["segmentation", "bbox", "area", "score", "text"]
    assert record["text"] == {"phrases": ["a dog", "cat"], "projection": projection}
    assert "mask 1 ('cat'): " in capsys.readouterr().out


def test_a_projection_takes_points_beside_the_text(photo: Path, projection: str) -> None:
    arguments = ["--text", "a dog", "--text-projection", projection]
    (alone,) = run(photo, *arguments)["masks"]
    (corrected,) = run(photo, *arguments, "--point", "10,10", "--point", "40,30,0")["masks"]
    assert alone["score"] != corrected["score"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", ""], "at least one word"),
        (["--text", "a dog", "--box", "1,1,9,9"], "leave --box out"),
        (["--text", "a", "--text", "b", "--point", "3,3"], "at most one --text, got 2"),
        (["--detector", "owl", "--point", "3,3"], "--detector goes with --text"),
        (["--text-threshold", "0.3", "--point", "3,3"], "--text-threshold goes with --text"),
        (["--text-projection", "p.safetensors", "--point", "3,3"], "--text-projection goes with --text"),
        (["--text", "a", "--text-threshold", "1.5"], "within 0..1, got 1.5"),
        (["--text", "a", "--text-threshold", "nan"], "within 0..1, got nan"),
        (["--text", "a", "--text-projection", "p.safetensors", "--detector", "owl"], "leave --detector out"),
        (["--text", "a", "--text-projection", "p.safetensors", "--text-threshold", "0.1"], "leave --text-threshold"),
        (["--text", "a", "--text-projection", "missing.safetensors"], "missing.safetensors"),
        (["--text", "a", "--detector", "./no/such/folder"], "'./no/such/folder' cannot be loaded"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    photo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if "--detector" in arguments and "./no/such/folder" in arguments:
        pytest.importorskip("transformers")
    out = photo.parent / "out"
    assert main(["predict", str(photo), *MODEL, "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hqsam: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(("package", "extra"), [("transformers", []), ("open_clip", ["--text-projection"])])
def test_without_the_extra_one_line_says_how_to_get_it(
    photo: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    extra: list[str],
) -> None:
    arguments = [*extra, request.getfixturevalue("projection")] if extra else []
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["predict", str(photo), *MODEL, "--text", "a dog", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert package in error
    assert "pip install 'hqsam[text]'" in error


def test_a_projection_of_another_sam_is_refused(
    photo: Path, tmp_path: Path, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.safetensors"
    save_projection(TextProjection(24), path, ProjectionInfo(clip=clip, sam="hq_vit_l"))
    assert main(["predict", str(photo), *MODEL, "--text", "a", "--text-projection", str(path)]) == 2
    assert "trained with 'hq_vit_l', the model is 'hq_test_tiny'" in capsys.readouterr().err
