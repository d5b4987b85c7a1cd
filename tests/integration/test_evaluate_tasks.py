"""The tasks of `evaluate.py` beside masks, on generated stand-ins with a small random model."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hqsam.checkpoints import save_checkpoint
from hqsam.data.boundaries import read_bsds
from hqsam.engine.distributed import World
from hqsam.engine.evaluation import main
from hqsam.engine.evaluation.edges import EdgeOptions, EdgeTask
from hqsam.engine.evaluation.one_by_one import OneByOne
from hqsam.engine.evaluation.runner import RunOptions, run_task
from hqsam.engine.evaluation.video import VideoTask
from hqsam.images import write_image
from hqsam.metrics.edges import EdgeRecord
from hqsam.registry import create_model
from tests.helpers import fill_parameters
from tests.integration.forked import start_group
from tests.integration.test_eval_instances import write_set
from tests.integration.test_evaluate_prompts import write_pack
from tests.unit.data.video_sets import write_davis, write_youtube_vis

METRICS = {
    "instances": {"ap", "ap50", "ap75", "ap_b", "ap_b_strict", "n", "n_images"},
    "davis": {"jf", "j", "f", "j_recall", "f_decay", "n"},
    "tubes": {"ap", "ap50", "ar1", "ar10", "ap_b", "n", "n_videos"},
    "clicks": {"miou_click1", "mbiou_click3", "miou_points3", "miou_point", "mbiou_noise0.4", "noc85", "n"},
    "edges": {"ods", "ois", "ap", "r50", "n"},
    "mattes": {"sad", "mse", "grad", "n"},
    "proposals": {"ar10", "ar100", "ar1000", "n", "n_images", "n_proposals"},
}
PLOTS = {
    "clicks": {f"{metric}_{kind}.png" for metric in ("miou", "mbiou") for kind in ("click", "points", "noise")},
    "edges": {"precision_recall_bsds500_val.png"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets below one folder, a model, and a configuration for each."""
    folder = tmp_path_factory.mktemp("data")
    write_set(folder)
    write_davis(folder / "DAVIS", 2017, {"swan": 4, "dog": 3, "cow": 3})
    tubes = write_youtube_vis(folder / "vis")
    pack = write_pack(folder / "pack")
    write_bsds(folder / "bsds500")
    model = create_model("hq_test_vit", device="cpu")
    fill_parameters(model, seed=5)
    save_checkpoint(model, folder / "tiny.safetensors")
    for name, task, data in (
        ("instances", "instances", "coco_val2017"),
        ("davis", "video", "davis2017_val"),
        ("tubes", "video", str(tubes)),
        ("clicks", "clicks", str(pack)),
        ("edges", "edges", "bsds500_val"),
        ("mattes", "mattes", str(pack)),
        ("proposals", "proposals", "coco_val2017"),
    ):
        (folder / f"{name}.yaml").write_text(
            "{clicks: {prompts: [clicks, points, point, boxes], clicks: 3, points: [1, 3]},"
            " edges: {points_per_side: 2, thresholds: 9}, proposals: {points_per_side: 4},"
            f" task: {task}, device: cpu, data: {{sets: ['{data}'], root: '{folder}', workers: 1}},"
            f" model: {{name: hq_test_vit, checkpoint: '{folder / 'tiny.safetensors'}'}}}}"
        )
    return folder


def write_bsds(folder: Path) -> None:
    """Two images with the outlines of a rectangle, each by two people."""
    for k, name in enumerate(("1001", "1002")):
        pixels = np.full((60, 80, 3), 40, dtype=np.uint8)
        pixels[15 : 40 + k, 20:60] = 200
        write_image(folder / f"images/val/{name}.jpg", pixels)
        people = np.zeros((2, 60, 80), dtype=bool)
        for person in range(2):
            people[person, 15, 20:60] = people[person, 40 + k, 20 : 60 - person] = True
        (folder / "gt/val").mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"gt/val/{name}.npz", bnd=np.packbits(people, axis=-1), shape=people.shape)


def evaluate(root: Path, name: str, run: Path, *more: str) -> int:
    return main([str(root / f"{name}.yaml"), f"output_dir={run}", *more])


@pytest.mark.parametrize("name", METRICS)
def test_run_folder(root: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(root, name, tmp_path / "run") == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["mean"]) == ["sam", "hq", "sum"]
    assert METRICS[name] <= set(results["mean"]["sum"])
    assert results["protocol"]["model"]["name"] == "hq_test_vit"
    assert {"name", "resolution", "versions"} <= set(results["protocol"])
    assert results["protocol"].get("objects_left_out") == {"clicks": 1, "mattes": 0}.get(name)
    table = capsys.readouterr().out
    assert "nan" not in table.lower() and "| SAM+HQ |" in table
    lines = (tmp_path / "run/records.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) >= (1 if name == "mattes" else 2)
    if name in PLOTS:
        assert {path.name for path in (tmp_path / "run/plots").iterdir()} == PLOTS[name]
        assert (tmp_path / "run/gallery.html").read_text().count("<img ") == len(PLOTS[name])
    assert not (tmp_path / "run/partial").exists()


def test_pictures_of_an_earlier_task_do_not_stay(root: Path, tmp_path: Path) -> None:
    """One run folder, other numbers: a page or a plot that shows the old ones would be taken for theirs."""
    run = tmp_path / "run"
    assert evaluate(root, "edges", run) == 0
    (run / "plots" / "notes.txt").write_text("mine")
    assert evaluate(root, "mattes", run) == 0
    assert not (run / "gallery.html").exists()
    assert [path.name for path in (run / "plots").iterdir()] == ["notes.txt"]


def test_boundaries_are_counted_in_images(root: Path, tmp_path: Path) -> None:
    assert evaluate(root, "edges", tmp_path / "run") == 0
    assert "| images |" in (tmp_path / "run/results.md").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_task_can_be_run_again(root: Path, workers: int) -> None:
    """Its numbers come from the records of that run alone, whether they were scored in the loop or in threads."""
    model = create_model("hq_test_vit", root / "tiny.safetensors", device="cpu")
    task = EdgeTask(model, read_bsds(root, "val"), EdgeOptions(points_per_side=2, thresholds=9))
    wrapped = OneByOne(task, model, name="edges", title="boundaries", make_record=EdgeRecord)
    first, second = (run_task(wrapped, World(), RunOptions(workers=workers))[0] for _ in range(2))
    assert first == second and first.mean["sum"]["n"] == 2
    alone = [record for item in task.items for record in task.run(item, task.load(item))]
    assert [record.as_dict() for record in first.records] == [record.as_dict() for record in alone]


@pytest.mark.parametrize("name", [name for name in METRICS if name != "mattes"])  # it has one image
def test_a_broken_off_one_goes_on(root: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that come back from their file give the same numbers to the last bit."""
    assert evaluate(root, name, tmp_path / "whole") == 0
    kind: Any = VideoTask if name in ("davis", "tubes") else OneByOne
    run, items = kind.run, []

    def run_and_signal(self: Any, group: Any, pool: Any) -> Any:
        items.append(self.key(group[0][0]))
        if len(items) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, group, pool)

    monkeypatch.setattr(kind, "run", run_and_signal)
    assert evaluate(root, name, tmp_path / "run") == 143
    assert evaluate(root, name, tmp_path / "run") == 0
    assert len(items) == len(set(items))
    for file in ("results.json", "records.jsonl"):
        assert (tmp_path / "run" / file).read_text() == (tmp_path / "whole" / file).read_text()


def evaluate_in_group(rank: int, root: Path, name: str, run: Path) -> None:
    assert evaluate(root, name, run) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "names"), [(2, ["davis", "proposals"]), (3, list(METRICS))])
def test_processes_agree(root: Path, tmp_path: Path, size: int, names: list[str]) -> None:
    """Three items divide by three, not by two; two images of boundaries the other way round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes below
    try:
        for name in names:
            assert evaluate(root, name, tmp_path / f"{name}_alone") == 0
    finally:
        torch.set_num_threads(threads)
    for name in names:
        start_group(evaluate_in_group, size, root, name, tmp_path / name)
        for file in ("results.json", "records.jsonl", "results.md"):
            assert (tmp_path / name / file).read_text() == (tmp_path / f"{name}_alone" / file).read_text()


@pytest.mark.parametrize(
    ("name", "override", "text"),
    [
        ("instances", "data.sets=[a,b]", "task=instances takes one data set at a time"),
        ("instances", "data.sets=[coco_val2018]", "coco_val2018"),
        ("instances", "instances.boxes=/nowhere.json", "/nowhere.json"),
        ("instances", "instances.metrics=[ap_c]", "ap_c"),
        ("proposals", "data.sets=[coco_val2017,coco_val2017]", "two data sets are called coco_val2017"),
        ("proposals", "data.sets=[bsds500_dev]", "train, val, test"),
        ("proposals", "data.sets=[nowhere]", "nowhere"),
        ("instances", "instances.rules=lvis", "need a frequency r, c or f"),
        ("instances", "protocol=paper", "protocol belongs to task=masks"),
        ("instances", "dilation_ratio=0.01", "dilation_ratio belongs to task=masks, video, clicks"),
        ("davis", "data.max_per_source=5", "data.max_per_source belongs to"),
        ("davis", "video.prompts=boxes", "come together"),
        ("tubes", "video.prompts=propagate", "is scored by tubes"),
        ("davis", "video.step=9", "frames with step=9"),
        ("davis", "columns=[best]", "best"),
        ("clicks", "clicks.prompts=[taps]", "taps"),
        ("clicks", "clicks.points=[0]", "at least 1"),
        ("clicks", "clicks.refine=again", "is for the prompts boxes and negative"),
        ("clicks", "upsampling=guided", "upsampling belongs to task=masks"),
        ("edges", "data.sets=[eval_hq]", "task=edges takes bsds500_train"),
        ("edges", "data.sets=[bsds500_test]", "Berkeley"),
        ("mattes", "data.sets=[{root}/coco/annotations/instances_val2017.json]", "matte"),
        ("davis", "task=vidoe", "1 problem(s) in the configuration"),
    ],
)
def test_bad_input_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, override: str, text: str
) -> None:
    assert evaluate(root, name, tmp_path / "run", override.format(root=root)) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert text in error
    assert not (tmp_path / "run").exists()
