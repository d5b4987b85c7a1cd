"""`hqsam auto` in several processes, filters between masks, and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqsam.automatic.overlaps import drop_overlapping
from hqsam.cli import main
from hqsam.cli.auto_report import Quality, sample, write_report
from hqsam.cli.shards import Shard
from hqsam.images import read_image
from hqsam.rle import decode_rle, encode_rle

OPTIONS = ["--model", "hq_test_tiny", "--device", "cpu", "--points-per-side", "2"]
EVERYTHING = ["--iou-thresh", "-100", "--stability-thresh", "0"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model has no file: without this every process would draw weights of its own."""
    import torch

    from hqsam.cli import auto

    load = auto.load_model

    def seeded(*arguments: Any) -> Any:
        torch.manual_seed(0)
        return load(*arguments)

    monkeypatch.setattr(auto, "load_model", seeded)


def run(photos: Path, out: Path, *arguments: str) -> int:
    return main(["auto", str(photos), "--out", str(out), *OPTIONS, *EVERYTHING, "--json", *arguments])


def in_shard(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


def results(out: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}


def test_processes_share_the_pictures(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tmp_path / "alone") == 0
    capsys.readouterr()
    done = []
    for rank in range(3):
        in_shard(monkeypatch, rank, 3)
        assert run(photos, tmp_path / "shared") == 0
        done += [row["file_name"] for row in json.loads(capsys.readouterr().out)["images"]]
    assert sorted(done) == [f"{number}.png" for number in range(5)], "nothing is lost and nothing is done twice"
    assert results(tmp_path / "alone") == results(tmp_path / "shared")


def test_another_number_of_processes_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_shard(monkeypatch, 0, 2)
    run(photos, tmp_path / "out")
    first = [row["file_name"] for row in json.loads(capsys.readouterr().out)["images"]]
    assert first == ["0.png", "2.png", "4.png"]
    done = []
    for rank in range(3):
        in_shard(monkeypatch, rank, 3)
        run(photos, tmp_path / "out")
        done += [row["file_name"] for row in json.loads(capsys.readouterr().out)["images"]]
    assert sorted(done) == ["1.png", "3.png"]


def test_a_failure_does_not_end_the_other_processes(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "0.png").write_bytes(b"nonsense")
    in_shard(monkeypatch, 0, 2)
    assert run(photos, tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert [row["file_name"] for row in json.loads(captured.out)["failed"]] == ["0.png"]
    assert "0.png: not an image" in captured.err
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name)
    assert run(photos, tmp_path / "out") == 1, "the next run by itself tries it again, and says so"


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "1"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "a", "WORLD_SIZE": "2"}],
)
def test_places_that_are_none(environment: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="RANK"):
        Shard.of_environment(environment)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20])
def test_parts_are_a_partition(size: int) -> None:
    items = list(range(10))
    parts = [Shard(rank, size).part(items) for rank in range(size)]
    assert sorted(item for part in parts for item in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert Shard.of_environment({}) == Shard(0, 1, 0)


def record(inside: np.ndarray, score: float) -> Any:
    return {"segmentation": encode_rle(inside), "predicted_iou": score}


def test_overlap_goes_by_pixels_and_keeps_the_better_one() -> None:
    left, most, right = (np.zeros((4, 10), bool) for _ in range(3))
    left[:, :6], most[:, :5], right[:, 5:] = True, True, True
    records = [record(most, 0.8), record(right, 0.7), record(left, 0.9)]
    assert drop_overlapping(records, 0.5) == [records[1], records[2]], "5/6 of the pixels are common"
    assert drop_overlapping(records, 0.84) == records
    assert drop_overlapping(records, 0.0) == [records[2]]
    assert drop_overlapping([], 0.5) == []
    tied = [record(most, 0.8), record(most, 0.8)]
    assert drop_overlapping(tied, 0.5) == tied[:1]
    empty = [record(np.zeros((4, 4), bool), 0.5)] * 2
    assert drop_overlapping(empty, 0.5) == empty, "masks without a pixel overlap nothing"
    with pytest.raises(ValueError, match="within 0 and 1"):
        drop_overlapping(records, 1.5)


def test_overlap_of_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(photos, tmp_path / "all") == 0
    assert run(photos, tmp_path / "few", "--overlap", "0") == 0
    capsys.readouterr()
    for name, content in results(tmp_path / "few").items():
        masks = [decode_rle(row["segmentation"]) for row in content["annotations"]]
        assert sum(masks, np.zeros((20, 24), int)).max() <= 1
        assert len(masks) <= len(results(tmp_path / "all")[name]["annotations"])
        assert content["info"]["overlap"] == 0
    assert run(photos, tmp_path / "few", "--overlap", "2") == 2
    assert "--overlap is an IoU within 0 and 1" in capsys.readouterr().err


def test_the_report(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (photos / "4.png").write_bytes(b"nonsense")
    assert run(photos, out, "--report") == 1
    assert json.loads(capsys.readouterr().out)["report"] == str(out / "report.png")
    first = read_image(out / "report.png")
    assert first.shape[1] >= 4 * 300
    (out / "report.png").unlink()
    run(photos, out, "--report")
    np.testing.assert_array_equal(read_image(out / "report.png"), first)


def test_what_a_report_counts() -> None:
    quality = Quality()
    rows = [{"predicted_iou": 0.9, "stability_score": 0.95, "area": 50}]
    quality.add({"image": {"file_name": "a.jpg", "width": 10, "height": 20}, "annotations": rows})
    quality.add({"image": {"file_name": "b.jpg", "width": 10, "height": 20}, "annotations": []})
    assert quality == Quality([0.9], [0.95], [0.25], [1, 0], ["b.jpg"])


def test_a_report_of_nothing(tmp_path: Path) -> None:
    assert write_report(tmp_path, [], 3).is_file()
    files = [Path(f"{number}.png") for number in range(30)]
    assert sample(files, 3) == [files[0], files[10], files[20]] and sample(files[:2]) == files[:2] and sample([]) == []
