"""Each defect of images and masks: through `hqsam check-data`, and at the start of a training run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.cli import main
from hqsam.data.check import running
from hqsam.engine import training
from hqsam.engine.config import config_to_yaml
from hqsam.engine.training import open_run, train
from hqsam.errors import ConfigError, DataError
from tests.integration.defects import DEFECTS, defective_data
from tests.integration.training_runs import draw_data, make_config


def check(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    code = main(["check-data", *map(str, arguments), "--workers", "0", "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_named_by_both(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = defective_data(tmp_path / "shapes", name)
    code, report = check(tmp_path / "shapes", capsys=capsys)
    assert code == 1
    (finding,) = [one for one in report["sets"][0]["findings"] if one["severity"] == "error"]
    assert finding["kind"] == DEFECTS[name][1] and report["errors"] == 1
    assert Path(finding["file"]).name == file and file in finding["text"]
    assert ("EXIF" in finding["text"]) == (name == "turned by exif")
    config = tmp_path / "config.yaml"
    config.write_text(config_to_yaml(make_config(tmp_path / "shapes", tmp_path / "run")))
    assert training.main([str(config)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert file in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", DEFECTS)
def test_skipped_defects_are_counted_and_listed(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = defective_data(tmp_path / "shapes", name)
    config = make_config(tmp_path / "shapes", tmp_path / "run", "data.on_defect=skip", "loop.max_steps=2")
    assert train(config)
    (row,) = json.loads((tmp_path / "run" / "skipped_data.json").read_text())
    assert row["part"] == "train" and row["kind"] == DEFECTS[name][1] and Path(row["file"]).name == file
    assert "left out 1 x" in caplog.text
    assert len(open_run(config).data.plain) == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines) and len(lines) == 2


def test_validation_data_are_checked_too(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "shapes", count=3)
    file = defective_data(tmp_path / "others", "empty mask")
    with pytest.raises(DataError, match=f"others.*{file}"):
        open_run(make_config(data, tmp_path / "run", f"data.val=[{tmp_path / 'others'}]"))
    run = open_run(make_config(data, tmp_path / "run", f"data.val=[{tmp_path / 'others'}]", "data.on_defect=skip"))
    assert len(run.records.val) == 4 and run.records.skipped[0]["part"] == "val"


def test_a_photograph_that_is_trained_on_and_held_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, others = draw_data(tmp_path / "shapes", count=3), draw_data(tmp_path / "others", count=3, seed=1)
    open_run(make_config(data, tmp_path / "run", f"data.val=[{others}]"))
    assert "that are trained on" not in caplog.text
    for part in ("images", "masks"):  # under another name, smaller, and mirrored
        with Image.open(data / part / "01.png") as picture:
            turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            turned.resize((turned.width * 3 // 4, turned.height * 3 // 4)).save(others / part / "copy.png")
    open_run(make_config(data, tmp_path / "run", f"data.val=[{others}]"))
    (warning,) = [record.getMessage() for record in caplog.records if "that are trained on" in record.getMessage()]
    assert "trained on: 1, such as copy.png, which is 01.png in data.train" in warning


def test_without_the_check_a_run_starts(tmp_path: Path) -> None:
    defective_data(tmp_path / "shapes", "empty mask")
    assert len(open_run(make_config(tmp_path / "shapes", tmp_path / "run", "data.check=off")).data.plain) == 5


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    for path in draw_data(tmp_path / "shapes", count=2).glob("masks/*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"leaves no image of data\.train: .*0[01]\.png"):
        open_run(make_config(tmp_path / "shapes", tmp_path / "run", "data.on_defect=skip"))


def label_pack(folder: Path) -> Path:
    """Four images of two objects each; of the third the second object is not in the file."""
    draw_data(folder, count=4)
    entries = []
    for k in range(4):
        mask = np.asarray(Image.open(folder / "masks" / f"{k:02d}.png")) // 255
        mask[:4, :4] = 0 if k == 2 else 2
        Image.fromarray(mask).save(folder / "masks" / f"{k:02d}.png")
        row = {"image": f"images/{k:02d}.png", "mask": f"masks/{k:02d}.png", "kind": "index"}
        entries.append({**row, "objects": [{"label": 1}, {"label": 2}]})
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def test_one_empty_object_of_several_is_skipped_alone(tmp_path: Path) -> None:
    data = label_pack(tmp_path / "pack")
    with pytest.raises(DataError, match=r"02\.png: object 2 has no pixel"):
        open_run(make_config(data, tmp_path / "run"))
    config = make_config(data, tmp_path / "run", "data.on_defect=skip", "loop.max_steps=1")
    run = open_run(config)
    assert [len(record.objects) for record in run.records.train] == [2, 2, 1, 2]
    # the objects belong to what a run may be resumed with
    whole = open_run(make_config(data, tmp_path / "run", "data.check=off"))
    assert run.trainer.plan.data != whole.trainer.plan.data


def test_a_resumed_run_sees_the_same_list(tmp_path: Path) -> None:
    defective_data(tmp_path / "shapes", "empty mask")
    settings = ["data.on_defect=skip", "loop.max_steps=3"]
    config = make_config(tmp_path / "shapes", tmp_path / "run", *settings)
    first = open_run(config)
    for _, batch in zip(range(2), first.loader(), strict=False):
        first.trainer.train_step([batch])
    first.states.save(first.trainer)
    assert open_run(config).trainer.step == 2
    size = Image.open(tmp_path / "shapes" / "masks" / "03.png").size
    Image.new("L", size, 255).save(tmp_path / "shapes" / "masks" / "03.png")
    with pytest.raises(ConfigError, match="the list of training images was"):
        open_run(config)


def test_a_second_start_looks_only_at_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw_data(tmp_path / "shapes", count=4)
    looked: list[str] = []
    inspect = running.inspect_record

    def noted(record, *, use_alpha):  # type: ignore[no-untyped-def]
        looked.append(record.image.name)
        return inspect(record, use_alpha=use_alpha)

    monkeypatch.setattr(running, "inspect_record", noted)
    open_run(make_config(data, tmp_path / "run"))
    assert len(looked) == 4
    open_run(make_config(data, tmp_path / "run"))
    assert len(looked) == 4
    (data / "masks" / "02.png").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"02\.png"):
        open_run(make_config(data, tmp_path / "run"))
    assert looked[4:] == ["02.png"]


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw_data(tmp_path / "shapes", count=2)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HQSAM_CHECK_CACHE", str(tmp_path / "file" / "below"))
    assert len(open_run(make_config(data, tmp_path / "run")).data.plain) == 2


def test_a_damaged_cache_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw_data(tmp_path / "shapes", count=2)
    monkeypatch.setenv("HQSAM_CHECK_CACHE", str(tmp_path / "verdicts"))
    open_run(make_config(data, tmp_path / "run"))
    (path,) = (tmp_path / "verdicts").iterdir()
    for content in ("{", "[]", '{"version": 1}', path.read_text().replace('"findings"', '"other"')):
        path.write_text(content)
        assert len(open_run(make_config(data, tmp_path / "run")).data.plain) == 2


def test_processes_say_the_same(tmp_path: Path) -> None:
    from hqsam.data import open_dataset

    draw_data(tmp_path / "shapes", count=40)
    records = open_dataset(tmp_path / "shapes")
    counts: list[int] = []
    assert running.check_records(records, workers=2, advance=counts.append) == running.check_records(records)
    assert sum(counts) == 40


def test_a_clean_set_and_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_data(tmp_path / "shapes", count=3)
    code, report = check(data, capsys=capsys)
    assert code == 0 and report["errors"] == 0 and report["sets"][0]["mask_files"] == {"0/255": 3}
    config = tmp_path / "config.yaml"
    config.write_text(config_to_yaml(make_config(data, tmp_path / "run", f"data.val=[{data}]")))
    code, report = check(config, capsys=capsys)
    assert code == 0 and [part["name"] for part in report["sets"]] == ["train", "val"]
    assert report["kinds"]["overlap"] >= 3
    code, report = check(config, "data.val=[]", capsys=capsys)
    assert code == 0 and [part["name"] for part in report["sets"]] == ["train"]


def test_pictures_and_reports_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_data(tmp_path / "shapes", count=9)
    for number, name in enumerate(("no image", "other size", "empty mask", "image alone")):
        defect = DEFECTS[name][0]
        for folder in ("images", "masks"):
            (data / folder / f"{number + 5:02d}.png").rename(data / folder / "kept.png")
            (data / folder / "03.png").rename(data / folder / f"{number + 5:02d}.png")
            (data / folder / "kept.png").rename(data / folder / "03.png")
        defect(data)
        for folder in ("images", "masks"):
            if (data / folder / "03.png").exists():
                (data / folder / "03.png").rename(data / folder / f"bad{number}.png")
            (data / folder / f"{number + 5:02d}.png").rename(data / folder / "03.png")
    assert main(["check-data", str(data), "--out", str(tmp_path / "out"), "--workers", "0"]) == 1
    text = capsys.readouterr().out
    assert "4 errors" in text and "bad0.png" in text
    kinds = ("image_unreadable", "size_mismatch", "empty_object", "image_without_mask")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "report.md",
        "report.json",
        *(f"{k}.png" for k in kinds),
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text())["errors"] == 4
    assert "bad2.png" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["missing.yaml"], ["data.train=[a]"], ["a", "data.train=[b]"], []], ids=str
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hqsam: error: ") and error.count("\n") == 1
