from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqsam.cli import main
from hqsam.images import read_image
from hqsam.rle import decode_rle

MODEL = ["--model", "hq_test_tiny", "--device", "cpu"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


def run(photo: Path, *arguments: str) -> Path:
    out = photo.parent / "out"
    assert main(["predict", str(photo), *MODEL, "--out", str(out), *arguments]) == 0
    return out


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "photo.json").read_text())
    return record


def test_one_box_writes_mask_overlay_and_record(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(photo, "--box", "5,5,50,30")
    assert sorted(path.name for path in out.iterdir()) == ["photo.json", "photo_mask.png", "photo_overlay.png"]
    record = record_of(out)
    assert list(record) == ["image", "size", "model", "masks", "timings_ms"]
    assert (record["image"], record["size"], record["model"]) == (str(photo), [40, 60], "hq_test_tiny")
    assert set(record["timings_ms"]) == {"load_model", "encode", "decode"}
    (entry,) = record["masks"]
    assert list(entry) == ["segmentation", "bbox", "area", "score"]
    mask = np.array(Image.open(out / "photo_mask.png"))
    assert set(np.unique(mask)) <= {0, 255}
    np.testing.assert_array_equal(decode_rle(entry["segmentation"]), mask > 0)
    assert entry["area"] == int((mask > 0).sum())
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] if len(xs) else [0, 0, 0, 0]
    assert entry["bbox"] == [int(value) for value in box]
    assert read_image(out / "photo_overlay.png").shape == (40, 60, 3)
    assert "photo_overlay.png" in capsys.readouterr().out


def test_several_boxes_give_one_mask_each(photo: Path) -> None:
    out = run(photo, "--box", "5,5,50,30", "--box", "0,0,20,20")
    assert {path.name for path in out.glob("*_mask*")} == {"photo_mask_0.png", "photo_mask_1.png"}
    assert len(record_of(out)["masks"]) == 2


@pytest.mark.parametrize(
    "prompt",
    [
        ["--point", "10,10"],
        ["--point", "10,10,1", "--point", "30.5,20,0"],
        ["--box", "5,5,50,30", "--point", "10,10,0"],
        ["--point", "10,10", "--single-mask"],
        ["--box", "5,5,50,30", "--multimask", "--fusion", "sam"],
        ["--box", "5,5,50,30", "--fusion", "hq"],
    ],
)
def test_every_kind_of_prompt_gives_one_mask(photo: Path, prompt: list[str]) -> None:
    assert len(record_of(run(photo, *prompt))["masks"]) == 1


def test_points_beside_a_box_count_once(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def predict(self: object, coords: Any, labels: Any, boxes: Any, **options: Any) -> Any:
        seen.append((coords, labels, boxes, options))
        return np.zeros((1, 1, 40, 60), bool), np.zeros((1, 1), np.float32), None

    monkeypatch.setattr("hqsam.predictor.SamPredictor.predict", predict)
    run(photo, "--box", "5,5,50,30", "--point", "10,11,0", "--point", "12,13")
    coords, labels, boxes, options = seen[0]
    assert boxes.tolist() == [[5, 5, 50, 30]]
    assert coords.tolist() == [[[10, 11], [12, 13]]]
    assert labels.tolist() == [[0, 1]]
    assert options["multimask_output"] is False


def test_plain_sam_answers_with_its_best_candidate(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((3, 40, 60), bool)
    masks[1, :2, :3] = True
    scores = np.array([0.1, 0.9, 0.4], np.float32)
    monkeypatch.setattr("hqsam.predictor.SamPredictor.predict", lambda *a, **k: (masks, scores, None))
    entry = record_of(run(photo, "--point", "1,1"))["masks"][0]
    assert (entry["area"], entry["bbox"], entry["score"]) == (6, [0, 0, 3, 2], pytest.approx(0.9))


def test_refining_changes_a_small_object(photo: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(photo)
    plain = record_of(run(photo, "--box", "5,5,60,60"))["masks"]
    assert record_of(run(photo, "--box", "5,5,60,60", "--refine", "zoom"))["masks"] != plain


def test_clicks_can_be_heeded(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hqsam import SamPredictor

    asked, predict = [], SamPredictor.predict
    monkeypatch.setattr(SamPredictor, "predict", lambda *a, **k: asked.append(k["heed_clicks"]) or predict(*a, **k))
    for flags in ([], ["--heed-clicks"], ["--no-heed-clicks"]):
        run(photo, "--point", "20,20", "--point", "5,5,0", *flags)
    assert asked == [None, True, False]


def test_edges_can_follow_the_picture(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hqsam import SamPredictor

    asked, predict = [], SamPredictor.predict
    monkeypatch.setattr(SamPredictor, "predict", lambda *a, **k: asked.append(k["upsampling"]) or predict(*a, **k))
    for flags in ([], ["--upsampling", "guided"], ["--upsampling", "bilinear"]):
        run(photo, "--point", "20,20", "--point", "5,5,0", *flags)
    assert asked == [None, "guided", "bilinear"]


def test_json_goes_to_standard_output_alone(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(photo, "--box", "5,5,50,30", "--json")
    assert json.loads(capsys.readouterr().out) == record_of(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt given"),
        (["--box", "1,2,3"], "x0,y0,x1,y1"),
        (["--box", "a,b,c,d"], "got 'a,b,c,d'"),
        (["--box", "1,2,nan,4"], "got '1,2,nan,4'"),
        (["--box", "50,30,5,5"], "inverted"),
        (["--box", "100,100,120,120"], "outside"),
        (["--point", "5"], "x,y or x,y,label"),
        (["--point", "5,5,2"], "1 (inside the object) or 0 (outside)"),
        (["--box", "1,1,9,9", "--box", "2,2,9,9", "--point", "3,3"], "at most one --box, got 2"),
        (["--box", "1,1,9,9", "--fusion", "both"], "both"),
        (["--box", "1,1,9,9", "--device", "tpu9"], "device 'tpu9'"),
        (["--box", "1,1,9,9", "--checkpoint", "missing.pth"], "missing.pth"),
        (["--box", "1,1,9,9", "--model", "hq_vit_tine"], "hq_vit_tiny"),
        (["--boxes", "1,1,9,9"], "--boxes"),
        (["--text", "a dog", "--refine", "zoom"], "--refine goes with --box and --point"),
        (["--text", "a dog", "--heed-clicks"], "--heed-clicks goes with --box and --point"),
        (["--text", "a dog", "--upsampling", "guided"], "--upsampling goes with --box and --point"),
        (["--point", "9,9,0", "--heed-clicks", "--refine", "zoom"], "heed_clicks is about the whole image"),
        (["--point", "9,9", "--multimask", "--fusion", "sam", "--refine", "zoom"], "one mask a prompt"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    photo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    out = photo.parent / "out"
    assert main(["predict", str(photo), *MODEL, "--out", str(out), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hqsam: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not out.exists()


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n broken", b"text"])
def test_unreadable_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    assert main(["predict", str(path), *MODEL, "--box", "1,1,9,9"]) == 2
    error = capsys.readouterr().err
    assert "bad.png" in error
    assert error.count("\n") == 1


def test_an_out_folder_that_cannot_be_made(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(photo), *MODEL, "--box", "1,1,9,9", "--out", str(photo / "below")]) == 2
    assert "photo.png" in capsys.readouterr().err


def test_one_pixel_picture(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("L", (1, 1), 7).save(path)
    assert record_of(run(path, "--box", "0,0,1,1"))["size"] == [1, 1]
