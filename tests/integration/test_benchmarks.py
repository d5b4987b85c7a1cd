"""The benchmarks run and report what they should; how fast anything is, no test asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import boundary_ap, curves
from benchmarks.published_boundary import as_dataset, as_results
from benchmarks.published_boundary import boundary_ap as boundary_ap_plainly
from benchmarks.published_train import PublishedTrainer
from benchmarks.rounds import medians
from benchmarks.train import BASE, QUICK_VARIANTS, VARIANTS, add_ratios, available
from benchmarks.train_worker import step_flop
from hqsam.checkpoints import to_memory_names
from hqsam.data import Batch, TrainDataOptions, TrainingSet, collate, open_dataset
from hqsam.engine.trainer import forward_loss
from hqsam.metrics import InstanceScores
from hqsam.registry import build_model, model_spec
from tests.helpers import ROOT, fill_parameters, require_oracle
from tests.integration.training_runs import draw_data
from tests.unit.metrics.instance_cases import random_set


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_quick_run_reports_every_variant(tmp_path: Path) -> None:
    require_oracle("segment_anything_hq")
    done = benchmark("train", "--quick", "--device", "cpu", "--json", str(tmp_path / "train.json"))
    assert done.returncode == 0, done.stderr
    assert "samples/s" in done.stdout and all(name in done.stdout for name in QUICK_VARIANTS)
    result = json.loads((tmp_path / "train.json").read_text("utf-8"))
    rows = result["models"]["test_vit"]
    assert list(rows) == list(QUICK_VARIANTS)
    assert rows[BASE]["ratio"] == 1
    for row in rows.values():
        assert row["samples_per_second"] > 0 and row["steps"] == 2 and 0 <= row["wait_share"] <= 1
        assert row["samples_per_second_rounds"] == [row["samples_per_second"]]
    assert rows["ours"]["views_encoded"] == 0
    assert rows["ours, kept encoder outputs"]["views_encoded"] == 4
    assert result["machine"]["versions"]["torch"] and result["machine"]["threads"] == 1
    assert result["image_sizes"] == {"hq_test_vit": 128}


@pytest.mark.slow
def test_a_quick_run_of_inference(tmp_path: Path) -> None:
    """Both programs load the same file and answer; what is measured is there."""
    require_oracle("segment_anything_hq")
    done = benchmark("inference", "--quick", "--json", str(tmp_path / "inference.json"))
    assert done.returncode == 0, done.stderr
    assert "one more box" in done.stdout and "ours" in done.stdout
    rows = json.loads((tmp_path / "inference.json").read_text("utf-8"))["models"]["vit_tiny"]["box1"]
    assert list(rows) == ["published", "ours"] and rows["published"]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["calls"] == 1 for row in rows.values())


@pytest.mark.slow
def test_a_quick_run_of_curves(tmp_path: Path) -> None:
    done = benchmark("curves", "--quick", "--plots", str(tmp_path), "--json", str(tmp_path / "curves.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "curves.json").read_text("utf-8"))
    assert list(result["curves"]) == [curve.name for curve in curves.CURVES]
    for curve in curves.CURVES:
        points = result["curves"][curve.name]
        assert [point["size"] for point in points] == list(curve.quick) and curve.title in done.stdout
        assert all(point["seconds"] > 0 for point in points)
        assert (tmp_path / f"{curve.name}_s.png").is_file()
    assert result["curves"]["at_once"][1]["returned_mb"] > 0


def test_unknown_names_are_one_line_and_exit_code_2() -> None:
    done = benchmark("train", "--model", "vit_x")
    assert done.returncode == 2 and "vit_x" in done.stderr and "vit_b" in done.stderr
    done = benchmark("inference", "--question", "boxes7")
    assert done.returncode == 2 and "boxes7" in done.stderr and "boxes64" in done.stderr
    done = benchmark("curves", "--curve", "prompts", "--curve", "points")
    assert done.returncode == 2 and "points" in done.stderr and "at_once" in done.stderr
    done = benchmark("curves", "--curve", "side", "--largest", "10")
    assert done.returncode == 2 and "leaves nothing of side" in done.stderr


def training_batch(folder: Path, kinds: dict[str, float]) -> Batch:
    options = TrainDataOptions(mix=kinds, points_per_mask=64)
    data = TrainingSet(open_dataset(draw_data(folder, count=3)), options, 128, seed=1)
    return collate([data[0, index] for index in range(3)])


@pytest.mark.parity
@pytest.mark.parametrize("kinds", [{"box": 1.0}, {"points": 1.0}, {"mask": 1.0}, {"box": 1.0, "points": 1.0}])
def test_the_published_loop_and_ours_do_the_same(tmp_path: Path, kinds: dict[str, float]) -> None:
    """Equal weights give equal loss and gradients, so the two are timed at the same work."""
    require_oracle("segment_anything_hq")
    spec = model_spec("hq_test_vit")
    theirs, ours = PublishedTrainer(spec, torch.device("cpu")), build_model(spec).train()
    fill_parameters(theirs.sam), fill_parameters(theirs.decoder)
    theirs.sam.mask_decoder.load_state_dict(theirs.decoder.state_dict(), strict=False)
    whole = {k: v for k, v in theirs.sam.state_dict().items() if not k.startswith("mask_decoder.")}
    whole |= {f"mask_decoder.{k}": v for k, v in theirs.decoder.state_dict().items()}
    ours.load_state_dict(to_memory_names(whole, hq=True))
    batch = training_batch(tmp_path / "data", {"box": 0.0, "points": 0.0, "mask": 0.0} | kinds)
    losses = forward_loss(ours, batch)
    loss = losses.bce.mean() + losses.dice.mean()
    expected = theirs.loss(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    loss.backward(), expected.backward()
    norms = [
        torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        for parameters in (list(ours.hq_parameters()), theirs.parameters)
    ]
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-3, atol=1e-5)


def test_the_published_loop_trains_the_head_alone(tmp_path: Path) -> None:
    require_oracle("segment_anything_hq")
    theirs = PublishedTrainer(model_spec("hq_test_vit"), torch.device("cpu"))
    assert sum(p.numel() for p in theirs.parameters) == sum(
        p.numel() for p in build_model(model_spec("hq_test_vit")).hq_parameters()
    )
    before = [p.detach().clone() for p in theirs.parameters]
    theirs.train_step(training_batch(tmp_path / "data", {"box": 1.0}))
    assert all(not torch.equal(old, new) for old, new in zip(before, theirs.parameters, strict=True))


def test_the_arithmetic_of_a_step_is_counted() -> None:
    """ViT-B's encoder: the sum over its layers by hand."""
    width, tokens, windows, window, depth = 768, 64**2, 25, 14**2, 12
    dense = 16 * tokens * width**2
    inside = 8 * windows * window * width**2 + 4 * windows * window**2 * width
    across = 8 * tokens * width**2 + 4 * tokens**2 * width
    positions = 4 * width * (8 * windows * window * 14 + 4 * tokens * 64)
    ends = 2 * tokens * (3 * 16**2 * width + width * 256 + 9 * 256**2)
    assert step_flop("hq_vit_b", 1)["encoder"] == depth * dense + 8 * inside + 4 * across + positions + ends
    assert step_flop("hq_test_vit", 4)["decoder"] > 2 * step_flop("hq_test_vit", 1)["decoder"]


def test_medians_and_ratios() -> None:
    rows = {BASE: medians([{"samples_per_second": v, "peak_mb": None} for v in (1.0, 9.0, 2.0)])}
    rows["ours, 4 prompts an image"] = medians([{"samples_per_second": v, "peak_mb": None} for v in (6.0, 5.0, 1.0)])
    assert rows[BASE]["samples_per_second"] == 2 and rows[BASE]["samples_per_second_rounds"] == [1, 9, 2]
    facts = {
        "flop": {"hq_vit_b": {"1": {"encoder": 10, "decoder": 2}, "4": {"encoder": 10, "decoder": 6}}},
        "matrix_rates": {"float32": 100.0},
    }
    add_ratios(rows, [variant for variant in VARIANTS if variant.name in rows], facts, "vit_b")
    assert [row["ratio"] for row in rows.values()] == [1, 2.5]
    assert [row["matrix_share"] for row in rows.values()] == [0.24, 0.2]
    assert rows[BASE]["recipe_hours"] == 531_000 / 2 / 3600


def test_what_a_machine_cannot_do_is_left_out() -> None:
    gpu = {"machine": {"device": "cuda"}, "bf16_units": True}
    old_cpu = {"machine": {"device": "cpu"}, "bf16_units": False}
    assert not any(available(variant, gpu) for variant in VARIANTS if "allocator" in variant.name)
    assert not any(available(variant, old_cpu) for variant in VARIANTS if "bf16" in variant.name)
    assert all(available(variant, gpu) for variant in VARIANTS if "bf16" in variant.name)


def test_boundary_ap_gives_the_published_methods_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    result = boundary_ap.run(6, 4, 2)
    assert 0 < result["numbers"]["ap_b"] < 100
    assert list(result["variants"]) == ["published method", "ours", "ours, AP and both boundary APs"]
    for row in result["variants"].values():
        assert len(row["cpu_seconds_rounds"]) == 2 and row["ratio"] > 0
    json.dumps(result, allow_nan=False)
    monkeypatch.setattr(boundary_ap, "_ours", lambda *_: {"ap_b": 50.0})
    with pytest.raises(ValueError, match="the published method gives"):
        boundary_ap.run(6, 4, 1)


def test_boundary_ap_is_the_published_methods_on_random_sets() -> None:
    """Crowds, masks without a pixel, masks that touch the border, equal scores; both ring widths."""
    for seed in range(25):
        truth, records = random_set(seed)
        results = as_results(sorted(records, key=lambda record: record.image), "sum")
        if not results:  # pycocotools cannot be given an empty list
            continue
        scores = InstanceScores({"set": truth})
        scores.merge([records])
        found = scores.compute()["set"]["sum"]
        for name, ratio in (("ap_b", 0.02), ("ap_b_strict", 0.01)):
            expected = boundary_ap_plainly(as_dataset(truth), [dict(result) for result in results], ratio)
            names = [f"{name}{suffix}" for suffix in ("", "50", "75", "s", "m", "l")]
            assert [found.get(key, -1.0) for key in names] == [-1.0 if v == -1 else 100.0 * v for v in expected], seed
