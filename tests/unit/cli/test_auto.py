from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from hqsam.automatic import SamAutomaticMaskGenerator
from hqsam.cli import main
from hqsam.cli.auto_results import draw_records
from hqsam.images import read_image
from hqsam.rle import decode_rle, encode_rle

EVERYTHING = ["--iou-thresh", "-100", "--stability-thresh", "0"]
OPTIONS = ["--model", "hq_test_tiny", "--device", "cpu", "--points-per-side", "2", *EVERYTHING]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (40, 60), "b.jpg": (30, 20), "c.bmp": (16, 16)}.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    Image.new("RGB", (4, 4)).save(folder / ".hidden.png")
    return folder


def run(path: Path, out: Path, *arguments: str) -> int:
    return main(["auto", str(path), "--out", str(out), *OPTIONS, *arguments])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_picture(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos / "a.png", tmp_path / "out") == 0
    assert names(tmp_path / "out") == ["a.json", "a_overlay.jpg"]
    assert "1 done, 0 finished before, 0 failed" in capsys.readouterr().out
    content: dict[str, Any] = json.loads((tmp_path / "out" / "a.json").read_text())
    assert list(content) == ["info", "image", "annotations"]
    assert content["image"] == {"image_id": 1, "file_name": "a.png", "width": 60, "height": 40}
    assert content["info"]["model"] == "hq_test_tiny" and content["info"]["points_per_side"] == 2
    assert content["annotations"]
    for number, annotation in enumerate(content["annotations"], start=1):
        assert list(annotation) == [
            *("id", "segmentation", "bbox", "area", "predicted_iou", "stability_score", "point_coords", "crop_box")
        ]
        assert annotation["id"] == number
        mask = decode_rle(annotation["segmentation"])
        assert mask.shape == (40, 60) and mask.sum() == annotation["area"]
        ys, xs = np.nonzero(mask)
        assert annotation["bbox"] == ([xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] if len(xs) else [0] * 4)
    assert read_image(tmp_path / "out" / "a_overlay.jpg").shape == (40, 60, 3)


def test_the_annotations_are_read_by_coco(photos: Path, tmp_path: Path) -> None:
    run(photos / "a.png", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "a.json").read_text())
    data = COCO()
    data.dataset = {
        "images": [{**content["image"], "id": 1}],
        "annotations": [{**row, "image_id": 1, "category_id": 1} for row in content["annotations"]],
        "categories": [{"id": 1, "name": "thing"}],
    }
    data.createIndex()
    assert data.annToMask(data.anns[1]).shape == (40, 60)


def test_a_folder_is_resumed(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(photos, out, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert [row["file_name"] for row in first["images"]] == ["a.png", "b.jpg", "c.bmp"]
    assert names(out) == ["a.json", "a_overlay.jpg", "b.json", "b_overlay.jpg", "c.json", "c_overlay.jpg"]
    (out / "a.json").unlink()
    (out / "b.json").write_text('{"info": ')  # as a crash of another program may leave it
    assert run(photos, out, "--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert [row["file_name"] for row in second["images"]] == ["a.png", "b.jpg"]
    assert second["skipped"] == ["c.bmp"]
    assert json.loads((out / "b.json").read_text())["image"]["image_id"] == 2
    assert run(photos, out, "--json", "--fusion", "sam") == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 3, "other settings are another result"
    Image.new("RGB", (50, 7)).save(photos / "a.png")
    assert run(photos, out, "--json", "--fusion", "sam") == 0
    assert [row["file_name"] for row in json.loads(capsys.readouterr().out)["images"]] == ["a.png"]


def test_one_bad_picture_does_not_end_the_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a.png").write_bytes(b"nonsense")
    generate = SamAutomaticMaskGenerator.generate

    def failing(self: SamAutomaticMaskGenerator, image: np.ndarray, **options: Any) -> Any:
        if image.shape[:2] == (16, 16):
            raise RuntimeError("out of memory")
        return generate(self, image, **options)

    monkeypatch.setattr(SamAutomaticMaskGenerator, "generate", failing)
    out = tmp_path / "out"
    assert run(photos, out, "--json") == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert [row["file_name"] for row in summary["images"]] == ["b.jpg"]
    assert [row["file_name"] for row in summary["failed"]] == ["a.png", "c.bmp"]
    assert "a.png: not an image" in captured.err and "c.bmp: RuntimeError: out of memory" in captured.err
    assert names(out) == ["b.json", "b_overlay.jpg"]
    monkeypatch.undo()
    assert run(photos, out) == 1, "what failed is tried again"
    assert names(out) == ["b.json", "b_overlay.jpg", "c.json", "c_overlay.jpg"]


def test_a_crash_leaves_no_json(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hqsam.cli.auto.draw_records", lambda *_: 1 / 0)
    assert run(photos, tmp_path / "out") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))


def test_bad_input_is_one_line_and_exit_code_2(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (4, 4)).save(photos / "a.jpg")
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    cases = {
        "no pictures": [str(empty)],
        "neither a picture nor a folder": [str(tmp_path / "missing.png")],
        "would both write a.json": [str(photos)],
        "not an image": [str(tmp_path / "bad.png")],
        "another folder": [str(empty.parent), "--out", str(empty.parent)],
        "points_per_side must be": [str(photos / "b.jpg"), "--points-per-side", "0"],
        "--preset": [str(photos / "b.jpg"), "--preset", "slow"],
    }
    for message, arguments in cases.items():
        given = ["--out", str(tmp_path / "out"), *OPTIONS]
        assert main(["auto", *given, *arguments]) == 2, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_small_masks_are_drawn_over_large_ones() -> None:
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    large, small = np.ones((20, 20), dtype=bool), np.zeros((20, 20), dtype=bool)
    small[5:10, 5:10] = True
    records: list[Any] = [{"segmentation": encode_rle(mask), "area": int(mask.sum())} for mask in (small, large)]
    drawn = draw_records(pixels, records)
    np.testing.assert_array_equal(drawn, draw_records(pixels, records[::-1]))
    assert (drawn[7, 7] != drawn[15, 15]).any()
    np.testing.assert_array_equal(draw_records(pixels, []), pixels)
