"""Evaluation end to end on a small made-up pack with small random models."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from hqsam.boxes import mask_to_box
from hqsam.checkpoints import save_checkpoint
from hqsam.data import load_object_mask, open_dataset
from hqsam.data.records import is_held_out
from hqsam.engine.config import load_config
from hqsam.engine.evaluation import evaluate, main
from hqsam.engine.evaluation.config import EvalConfig, EvalOptions
from hqsam.engine.evaluation.masks import MaskTask
from hqsam.engine.evaluation.opening import open_task
from hqsam.engine.evaluation.protocols import make_path
from hqsam.errors import ConfigError, DataError
from hqsam.images import read_image, write_image
from hqsam.metrics import boundary_iou, mask_iou
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.types import Prompts, Refine, Upsampling
from tests.helpers import ROOT, fill_parameters

SIDE = 128


def add_image(folder: Path, name: str, hw: tuple[int, int], seed: int, *, labels: int = 0) -> dict[str, Any]:
    """An image with `labels` rectangles in a label PNG, or one disc in a binary mask; returns its index entry."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 255, (hw[0] // 8 + 1, hw[1] // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    pixels = pixels[: hw[0], : hw[1]].astype(np.uint8)
    mask = np.zeros(hw, dtype=np.uint8)
    y, x = np.mgrid[: hw[0], : hw[1]]
    if labels == 0:
        mask[np.hypot(y - hw[0] / 2, x - hw[1] / 2) < min(hw) / 3] = 1
    for label in range(1, labels + 1):
        top = 4 + 14 * label
        mask[top : top + 9, 10 * label : 10 * label + 30] = label
    write_image(folder / f"images/{name}.png", pixels)
    write_image(folder / f"masks/{name}.png", mask)
    objects = [{"label": k, "thin": 0.01 * k + 0.03} for k in range(1, labels + 1)] or [{"label": -1, "thin": 0.0}]
    kind = "index" if labels else "binary"
    return {"image": f"images/{name}.png", "mask": f"masks/{name}.png", "kind": kind, "objects": objects}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, three sources, not in alphabetical order."""
    folder = tmp_path_factory.mktemp("data") / "tiny_pack"
    entries = [
        {**add_image(folder, "z", (96, 128), 0), "source": "discs"},
        {**add_image(folder, "m", (130, 100), 1, labels=3), "source": "bars"},
        {**add_image(folder, "a", (128, 128), 2), "source": "discs"},
        {**add_image(folder, "c", (70, 200), 3, labels=2), "source": "bars"},
        {**add_image(folder, "b", (150, 90), 4), "source": "others"},
    ]
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def tiny(name: str = "hq_test_vit") -> Sam:
    model = create_model(name, device="cpu")
    fill_parameters(model, seed=5)
    return model


@pytest.fixture(scope="module")
def model() -> Sam:
    return tiny()


@pytest.fixture(scope="module")
def weights(model: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(model, path)
    return path


def test_numbers_are_what_the_predictor_gives(pack: Path, model: Sam) -> None:
    records = open_dataset(str(pack))
    result = evaluate(model, records, EvalOptions(workers=1))
    predictor = SamPredictor(model)
    expected: dict[tuple[str, int, str], tuple[float, float]] = {}
    for record in records:
        image = read_image(record.image)
        predictor.set_image(image)
        for k, obj in enumerate(record.objects):
            target = load_object_mask(obj, image.shape[:2], record.image) > 128
            for fusion in ("sam", "hq", "sum"):
                masks, _, _ = predictor.predict(box=mask_to_box(target), multimask_output=False, fusion=fusion)
                name = record.key.removeprefix("tiny_pack/")
                expected[name, k, fusion] = (mask_iou(masks[0], target), boundary_iou(masks[0], target))
    got = {(r.image, r.object, column): (r.miou[column], r.mbiou[column]) for r in result.records for column in r.miou}
    assert got.keys() == expected.keys()
    for key, values in expected.items():  # prompts decoded together round differently from one alone
        assert got[key] == pytest.approx(values, abs=1e-3)
    assert len(set(got.values())) > 10  # not all empty, not all alike
    for name, images in {"discs": ("z", "a"), "bars": ("m", "c"), "others": ("b",)}.items():
        values = [v for (image, _, column), v in expected.items() if Path(image).stem in images and column == "sum"]
        scores = result.sets[name]["sum"]
        assert scores["n"] == len(values)
        assert scores["miou"] == pytest.approx(100 * np.mean([v[0] for v in values]), abs=0.1)
        assert scores["mbiou"] == pytest.approx(100 * np.mean([v[1] for v in values]), abs=0.1)
    for column in ("sam", "hq", "sum"):
        means = [scores[column]["miou"] for scores in result.sets.values()]
        assert result.mean[column]["miou"] == pytest.approx(np.mean(means))
        assert result.mean[column]["n"] == 8
    thin = [r.miou["sam"] for r in result.records if r.set == "bars" and r.object >= 1]
    assert result.slices["thin >= 0.05"]["sam"]["miou"] == pytest.approx(100 * np.mean(thin))


def test_limit_counts_objects_of_each_source_in_index_order(pack: Path, model: Sam) -> None:
    result = evaluate(model, open_dataset(str(pack)), EvalOptions(max_per_source=1, columns=("sum",)))
    assert [(r.set, r.image, r.object) for r in result.records] == [
        ("bars", "images/m.png", 0),
        ("discs", "images/z.png", 0),
        ("others", "images/b.png", 0),
    ]
    assert result.protocol["max_per_source"] == 1


def test_a_part_of_a_set(pack: Path, model: Sam) -> None:
    def images(*overrides: str) -> set[str]:
        base = [f"data.sets=[{pack}]", "output_dir=unused", "model.name=hq_test_vit"]
        task, _ = open_task(load_config(EvalConfig, None, [*base, *overrides]), model)
        return {item.image for item in task.items}

    everything = images()
    assert images("data.sources=[bars, others]") == {"images/m.png", "images/c.png", "images/b.png"}
    reserved = {name for name in everything if is_held_out(Path(name))}
    assert images("data.holdout=train") == everything - reserved
    with pytest.raises(DataError, match="no image of source nothing; the data has bars, discs, others"):
        images("data.sources=[nothing]")
    with pytest.raises(ConfigError, match=r"data.holdout belongs to task=masks, clicks, mattes, not to task=video"):
        images("data.holdout=val", "task=video")


def squashed_prediction(model: Sam, image: NDArray[np.uint8], target: NDArray[np.bool_]) -> NDArray[np.bool_]:
    def squash(channels: torch.Tensor) -> torch.Tensor:
        return F.interpolate(channels[None].float(), (SIDE, SIDE), mode="bilinear", align_corners=False)

    inside = squash(torch.from_numpy(target)[None] * 255)[0, 0] > 128
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    box = torch.tensor([columns.min(), rows.min(), columns.max(), rows.max()], dtype=torch.float32)
    pixels = squash(torch.from_numpy(image).permute(2, 0, 1)).to(torch.uint8)
    with torch.no_grad():
        features = model.image_encoder(model.preprocess(pixels[0])[None])
        logits = model.decode(features, Prompts.from_parts(boxes=box[None])).hq_logits
    assert logits is not None
    return (F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)[0, 0] > 0).numpy()


def test_paper_protocol_squashes_and_takes_hq_alone(pack: Path, model: Sam) -> None:
    records = open_dataset(str(pack))
    result = evaluate(model, records, EvalOptions(protocol="paper"))
    assert all(set(scores) == {"hq"} for scores in (*result.sets.values(), result.mean))
    by_key = {(r.image, r.object): r for r in result.records}
    for record in records:
        image = read_image(record.image)
        for k, obj in enumerate(record.objects):
            target = load_object_mask(obj, image.shape[:2], record.image) > 128
            pred = squashed_prediction(model, image, target)
            got = by_key[record.key.removeprefix("tiny_pack/"), k]
            assert got.miou["hq"] == pytest.approx(mask_iou(pred, target), abs=1e-3)
            assert got.mbiou["hq"] == pytest.approx(boundary_iou(pred, target), abs=1e-3)


def test_protocols_agree_on_an_image_of_the_input_size(model: Sam) -> None:
    image = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    target = np.zeros((SIDE, SIDE), dtype=np.uint8)
    target[20:90, 30:100] = 255
    paper = next(next(make_path(model, EvalOptions(protocol="paper"))([(image, [target])])))
    predictor = next(next(make_path(model, EvalOptions())([(image, [target])])))
    np.testing.assert_array_equal(paper["hq"], predictor["hq"])


def test_object_that_squashing_loses_keeps_its_box(model: Sam) -> None:
    target = np.zeros((40, 1600), dtype=np.uint8)
    target[:, 805] = 255
    path = make_path(model, EvalOptions(protocol="paper"))
    masks = list(next(path([(np.zeros((40, 1600, 3), dtype=np.uint8), [target])])))
    assert [mask["hq"].shape for mask in masks] == [(40, 1600)]


def test_plain_and_untrained_models_have_one_column(pack: Path, model: Sam) -> None:
    plain = tiny("sam_test_vit")
    records = open_dataset(str(pack))[:2]
    expected = evaluate(plain, records).as_dict()
    assert set(expected["mean"]) == {"sam"}
    untrained = tiny()
    untrained.head_state = "untrained"
    assert set(evaluate(untrained, records).mean) == {"sam"}
    for bad in (plain, untrained):
        with pytest.raises(ValueError, match=r"protocol 'paper' of a model with .* HQ head gives no column"):
            evaluate(bad, records, EvalOptions(protocol="paper"))
        with pytest.raises(ValueError, match="gives sam, asked for sam, sum"):
            evaluate(bad, records, EvalOptions(columns=("sam", "sum")))


@pytest.mark.parametrize("upsampling", ["bilinear", "guided"])
@pytest.mark.parametrize("refine", ["again", "zoom", "again+zoom"])
def test_refined_masks_are_the_predictors(model: Sam, refine: Refine, upsampling: Upsampling) -> None:
    """Named in the protocol; the paper's protocol has no such thing."""
    image = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    target = np.zeros((300, 400), dtype=np.uint8)
    target[40:90, 30:100] = 255
    path = make_path(model, EvalOptions(refine=refine, upsampling=upsampling, columns=("sam", "hq", "sum")))
    (mask,) = next(path([(image, [target])]))
    predictor = SamPredictor(model)
    predictor.set_image(image)
    box = np.array([[30.0, 40.0, 99.0, 89.0]])
    for fusion, found in mask.items():
        wanted, _, _ = predictor.predict(
            box=box, multimask_output=False, refine=refine, fusion=fusion, upsampling=upsampling
        )
        np.testing.assert_array_equal(found, wanted[0, 0])
    assert path.describe()["refine"] == refine and path.describe()["upsampling"] == upsampling
    for bad in (EvalOptions(protocol="paper", refine=refine), EvalOptions(protocol="paper", upsampling="guided")):
        with pytest.raises(ValueError, match="belongs to protocol 'predictor'"):
            make_path(model, bad)


def test_the_models_upsampling_is_named(model: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "default_upsampling", "guided")
    assert make_path(model, EvalOptions()).describe()["upsampling"] == "guided, of masks that HQ takes part in"
    assert make_path(model, EvalOptions(upsampling="bilinear")).describe()["upsampling"] == "bilinear"


def test_training_mode_is_restored(pack: Path, model: Sam) -> None:
    model.train()
    try:
        evaluate(model, open_dataset(str(pack))[:1], EvalOptions(columns=("sam",)))
        assert model.training
    finally:
        model.eval()


def test_empty_objects_are_left_out_and_counted(tmp_path: Path, model: Sam, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "pack"
    entry = add_image(folder, "a", (64, 64), 0, labels=1)
    entry["objects"].append({"label": 9})
    (folder / "index.json").write_text(json.dumps([entry]))
    result = evaluate(model, open_dataset(str(folder)))
    assert result.protocol["objects_left_out"] == 1
    assert [r.object for r in result.records] == [0]
    assert "pack/images/a.png, object 1" in caplog.text
    entry["objects"] = [{"label": 9}]
    (folder / "index.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match="none of 1 objects has a pixel"):
        evaluate(model, open_dataset(str(folder)))


def arguments(tmp_path: Path, pack: Path, weights: Path, *more: str) -> list[str]:
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"data: {{sets: ['{pack}'], workers: 1}}\nmodel: {{name: hq_test_vit, checkpoint: '{weights}'}}\n"
    )
    return [str(config), f"output_dir={tmp_path / 'run'}", "device=cpu", "plots=2", *more]


def test_run_folder(tmp_path: Path, pack: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run/plots").mkdir(parents=True)
    (tmp_path / "run/plots/worst_17.png").touch()  # of an earlier run
    assert main(arguments(tmp_path, pack, weights)) == 0
    run = tmp_path / "run"
    files = {path.name for path in run.iterdir()}
    assert files == {"gallery.html", "plots", "records.jsonl", "results.json", "results.md", "timing.json"}
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"sets", "mean", "protocol", "slices"}
    assert list(results["sets"]) == ["discs", "bars", "others"]
    for scores in (*results["sets"].values(), results["mean"]):
        assert list(scores) == ["sam", "hq", "sum"]
        for values in scores.values():
            assert set(values) == {"miou", "mbiou", "n"}
            assert all(math.isfinite(value) and 0 <= value <= 100 for value in values.values())
    protocol = results["protocol"]
    assert protocol["name"] == "predictor" and protocol["prompt"] == "box" and protocol["resolution"] == SIDE
    assert protocol["model"]["name"] == "hq_test_vit" and protocol["model"]["checkpoint"] == str(weights)
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert set(lines[0]) == {"set", "image", "object", "prompt", "miou", "mbiou", "pixels"}
    assert set(lines[0]["mbiou"]) == {"sam", "hq", "sum"}
    table = (run / "results.md").read_text()
    assert table == capsys.readouterr().out
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 5 and all("predictor, box, 128 px, ring 2 %" in row for row in rows)
    names = {p.name for p in (run / "plots").iterdir()}
    assert {"worst_01.png", "worst_02.png", "scatter_miou.png", "scatter_mbiou.png"} <= names
    page = (run / "gallery.html").read_text()
    assert page.count("<img ") == len(names) and 'src="data:image/jpeg;base64,' in page
    assert 'src="http' not in page and "SAM+HQ mBIoU</th>" in page
    names -= {"scatter_miou.png", "scatter_mbiou.png"}
    assert names <= {f"{kind}_{rank:02d}.png" for kind in ("worst", "gain", "decline") for rank in (1, 2)}
    assert read_image(run / "plots/worst_01.png").shape[1] > 1000


def test_a_broken_off_evaluation_goes_on(
    tmp_path: Path, pack: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = arguments(tmp_path, pack, weights, "plots=0")
    assert main(call) == 0
    whole = {name: (tmp_path / "run" / name).read_text() for name in ("results.json", "records.jsonl")}
    run, images = MaskTask.run, []

    def run_and_signal(self: MaskTask, group: Any, pool: Any) -> Any:
        images.append(group[0][0].image)
        if len(images) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return run(self, group, pool)

    monkeypatch.setattr(MaskTask, "run", run_and_signal)
    other = [*call, f"output_dir={tmp_path / 'two'}"]
    assert main(other) == 143
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"partial"}
    assert main(other) == 0
    assert images == [f"images/{name}.png" for name in "zmacb"]  # each once
    assert {name: (tmp_path / "two" / name).read_text() for name in whole} == whole


def test_batches_of_images_change_nothing_but_rounding(pack: Path, model: Sam) -> None:
    alone = evaluate(model, open_dataset(str(pack)), EvalOptions(batch_size=1))
    together = evaluate(model, open_dataset(str(pack)), EvalOptions(batch_size=2, workers=2))
    for one, two in zip(alone.records, together.records, strict=True):
        assert one.key == two.key
        assert two.miou == pytest.approx(one.miou, abs=1e-3) and two.mbiou == pytest.approx(one.mbiou, abs=1e-3)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path, pack: Path, weights: Path) -> None:
    """Five images do not divide by two; the results are equal to the last bit."""
    call = arguments(tmp_path, pack, weights, "plots=0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes below: the number of threads may change the last bit
    try:
        assert main(call) == 0
    finally:
        torch.set_num_threads(threads)
    run = tmp_path / "run"
    alone = {name: (run / name).read_text() for name in ("results.json", "records.jsonl", "results.md")}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "evaluate.py"), *call, f"output_dir={tmp_path / 'two'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, text in alone.items():
        assert (tmp_path / "two" / name).read_text() == text
    assert done.stdout.count("mean over sets") == 1


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("data.sets=[{tmp}/nowhere]", "nowhere"),
        ("data.sets=[]", "data.sets is empty"),
        ("data.sets=[{pack},{pack}]", "images come twice"),
        ("data.max_per_source=0", "data.max_per_source must be at least 1, got 0"),
        ("model.nam=x", "did you mean model.name?"),
        ("model.name=hq_test_vitt", "unknown model 'hq_test_vitt'; did you mean hq_test_vit"),
        ("model.checkpoint=null", "no pretrained weights of 'hq_test_vit'"),
        ("model.checkpoint={tmp}/gone.pth", "gone.pth"),
        ("columns=[sum,best]", "columns must be among sam, hq, sum, got best"),
        ("protocol=papr", "protocol"),
        ("prompts=points", "prompts"),
        ("device=quantum", "device must be auto, cpu, cuda or cuda:N, got 'quantum'"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(
    tmp_path: Path, pack: Path, weights: Path, capsys: pytest.CaptureFixture[str], override: str, text: str
) -> None:
    assert main(arguments(tmp_path, pack, weights, override.format(tmp=tmp_path, pack=pack))) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for key in ("output_dir", "model.checkpoint", "data.max_per_source", "protocol", "prompts"):
        assert f"  {key} " in text
    assert main([]) == 2


def test_shipped_configurations_load(tmp_path: Path) -> None:
    from hqsam.engine.config import load_config

    files = sorted((ROOT / "configs/eval").rglob("*.yaml"))
    assert {file.name for file in files} >= {"eval_hq.yaml", "hqseg44k_val.yaml"}
    for file in files:
        first = file.read_text().splitlines()[0]
        assert first.startswith("# ") and f"python evaluate.py configs/eval/{file.name}" in file.read_text()
        config = load_config(EvalConfig, file, [f"output_dir={tmp_path}"])
        assert config.data.sets
