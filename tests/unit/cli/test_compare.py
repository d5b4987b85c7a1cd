from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.cli import main
from hqsam.images import read_image

MODEL = ["--model", "hq_test_tiny", "--device", "cpu"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize(("extra", "panels"), [([], 2), (["--with-hq"], 3)])
def test_panels(photo: Path, extra: list[str], panels: int) -> None:
    out = photo.parent / "sub" / "comparison.png"
    assert main(["compare", str(photo), *MODEL, "--box", "5,5,50,30", "--out", str(out), *extra]) == 0
    assert read_image(out).shape[1] >= panels * 60


def test_zoom(photo: Path) -> None:
    out = photo.parent / "zoom.jpg"
    assert main(["compare", str(photo), *MODEL, "--point", "20,20", "--zoom", "10,10,30,20", "--out", str(out)]) == 0
    assert read_image(out).shape[1] > 2 * 512


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no prompt given"),
        (["--box", "1,2,9,9", "--zoom", "90,90,99,99"], "has no pixel inside"),
        (["--box", "1,2,9,9", "--model", "sam_test_tiny"], "nothing to compare with"),
    ],
)
def test_bad_input(photo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert main(["compare", str(photo), *MODEL, *arguments, "--out", str(photo.parent / "x.png")]) == 2
    assert text in capsys.readouterr().err


def write_run(folder: Path, gain: float, *, images: int = 12, protocol: dict[str, object] | None = None) -> Path:
    folder.mkdir()
    records = [
        {
            "set": "s",
            "image": f"{k}.jpg",
            "object": 0,
            "prompt": "box",
            "miou": {"sam": 0.8, "sum": 0.8 + gain + 0.001 * k},
            "mbiou": {"sam": 0.6, "sum": 0.6 + gain},
        }
        for k in range(images)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    results = folder / "results.json"
    results.write_text(json.dumps({"sets": {}, "mean": {}, "protocol": {"resolution": 64, **(protocol or {})}}))
    return results


def test_two_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write_run(tmp_path / "before", 0.01), write_run(tmp_path / "after", 0.03, images=13)
    assert main(["compare", str(before), str(after.parent)]) == 0
    text = capsys.readouterr().out
    assert "| s | 12 | mBIoU | 61.00 | 63.00 | **+2.00** | +2.00 to +2.00 |" in text
    assert "| **mean over sets** | 12 | mIoU |" in text
    assert "0 objects of the first alone, 1 of the second alone" in text and "protocols differ" not in text
    assert main(["compare", str(before), str(after), "--json", "--columns", "sam,sam"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["metrics"]["miou"]["mean"]["difference"] == 0


def test_one_evaluation_against_its_plain_sam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(write_run(tmp_path / "run", 0.02))]) == 0
    text = capsys.readouterr().out
    assert "# run SAM+HQ against run SAM" in text and "**+2.00**" in text


def test_other_protocols_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", 0.0)
    two = write_run(tmp_path / "two", 0.0, protocol={"resolution": 1024, "model": {"name": "x"}})
    assert main(["compare", str(one), str(two)]) == 0
    text = capsys.readouterr().out
    assert "protocols differ** in resolution: 64 and 1024" in text and "in model" not in text


def test_steps_of_prompts_frames_of_videos_and_errors_of_mattes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_run(tmp_path / "run", 0.0)
    results.write_text(json.dumps({"protocol": {"frames": "inner"}}))
    records = [
        {
            "set": "s",
            "image": "a",
            "miou": {"sam": {"click1": 0.5, "click2": 0.6}, "sum": {"click1": 0.75, "click2": 0.6}},
        },
        {"set": "s", "video": "b", "j": {"sam": [None, 0.2, 0.4, None, 0.9], "sum": [None, 0.4, 0.6, None, 0.1]}},
        {"set": "s", "image": "d", "removed": {"sam": {"region": 0.5}, "sum": {"region": 0.75}}},
        {"set": "s", "image": "c", "sad": {"sam": 3.0, "sum": 2.0}, "recalled": {"sam": [1, 2], "sum": [2, 3]}},
    ]
    (tmp_path / "run/records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["compare", str(results), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    found = {name: round(parts["mean"]["difference"], 6) for name, parts in metrics.items()}
    assert found == {"miou_click1": 25, "miou_click2": 0, "j": 20, "removed_region": 25, "sad": -1}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{tmp}/gone.json"], "no evaluation in"),
        (["{one}", "{one}", "{one}"], "one or two evaluations are compared, got 3"),
        (["{one}", "--columns", "sam"], "--columns takes two of sam, hq, sum"),
        (["{one}", "--columns", "sam,hq"], "not the column 'hq'"),
        (["{one}", "--box", "1,2,3,4"], "belong to a photograph"),
        (["{one}", "{other}"], "no object in common"),
        (["{one}", "{broken}"], "is damaged"),
        (["{one}", "--resamples", "3"], "at least 100"),
    ],
)
def test_bad_results(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    one, other, broken = (write_run(tmp_path / name, 0.0) for name in ("one", "other", "broken"))
    lines = (other.parent / "records.jsonl").read_text().replace('"s"', '"t"')
    (other.parent / "records.jsonl").write_text(lines)
    broken.write_text("{")
    places = {"tmp": tmp_path, "one": one, "other": other, "broken": broken}
    assert main(["compare", *(argument.format(**places) for argument in arguments)]) == 2
    assert text in capsys.readouterr().err
