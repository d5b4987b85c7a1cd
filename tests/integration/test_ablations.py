"""Heads of every kind through training and export, and whole ablations of a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hqsam.checkpoints import inspect_checkpoint, load_checkpoint, official_state_dict
from hqsam.cli import main
from hqsam.engine.ablations import running
from hqsam.engine.ablations.config import AblationConfig, plan_variants
from hqsam.engine.ablations.program import ablate
from hqsam.engine.ablations.running import training_seconds
from hqsam.engine.config import load_config
from hqsam.engine.training import finish, open_run
from hqsam.errors import ConfigError, DataError
from hqsam.registry import create_model
from hqsam.types import Prompts
from tests.integration.training_runs import draw_data, make_config, tensors

HEADS = ["early+final", "final+mask", "early+mask", "token", "sam_token", "sam_decoder"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("drawn") / "shapes", 5)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_trains_is_exported_and_answers_as_before(head: str, data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path, f"model.head={head}", "loop.max_steps=2"))
    before = tensors(run.trainer.model)
    assert finish(run)
    model = run.trainer.model.eval()
    moved = {name for name, tensor in tensors(model).items() if not torch.equal(before[name], tensor)}
    assert moved == {name for name in before if name.startswith("mask_decoder.head.")}
    assert sum(p.numel() for p in run.trainer.parameters) == sum(before[name].numel() for name in moved)

    exported = tmp_path / "model.safetensors"
    assert inspect_checkpoint(exported).head == head
    assert inspect_checkpoint(next((tmp_path / "checkpoints").glob("step_*.pt"))).head == head
    loaded = create_model("hq_test_tiny", exported, device="cpu")
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    prompts = Prompts.from_parts(boxes=torch.tensor([[10.0, 10, 60, 70]]))
    with torch.no_grad():
        one, other = (m.decode(m.image_encoder(images), prompts) for m in (model, loaded))
        assert torch.equal(one.sam_logits, other.sam_logits) and torch.equal(one.iou, other.iou)
        assert one.hq_logits is not None and torch.equal(one.hq_logits, other.hq_logits)


def test_a_part_of_the_head_and_the_decoder_train_together(data: Path, tmp_path: Path) -> None:
    scope = ["model.head=final+mask", "model.trained=hq+decoder"]
    run = open_run(
        make_config(data, tmp_path, *scope, "loop.max_steps=1", f"data.val=[{data}]", "data.val_per_source=1")
    )
    assert finish(run)
    best = tmp_path / "checkpoints" / "best.safetensors"
    assert (inspect_checkpoint(best).layout, inspect_checkpoint(best).head) == ("hq_decoder", "final+mask")
    model = create_model("hq_test_tiny", device="cpu", head="final+mask")
    load_checkpoint(model, best)
    expected = official_state_dict(run.trainer.model, "hq_decoder")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in official_state_dict(model, "hq_decoder").items())


def test_a_state_of_another_head_is_refused(data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path, "model.head=token"))
    state = run.states.save(run.trainer)
    for resume in ("auto", state):
        with pytest.raises(ConfigError, match=r"state of another model: model.head=token"):
            open_run(make_config(data, tmp_path, f"resume={resume}"))
    with pytest.raises(ConfigError, match="model: head must be features joined by"):
        open_run(make_config(data, tmp_path / "new", "model.head=middle"))


def configure(data: Path, output: Path, *overrides: str) -> AblationConfig:
    path = output / "ablation.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"""
output_dir: {output / "out"}
train:
  device: cpu
  model: {{name: hq_test_tiny, random_weights: true}}
  data: {{train: [{data}], keep_features: {output / "kept"}, views: 1, workers: 0}}
  loop: {{batch_size: 2, max_steps: 2, log_every: 1}}
variants:
  SAM's token: [model.head=sam_token]
  "full, 3 images": [data.max_images=3]
evaluations:
  drawn: ['data.sets=[{data}]', data.max_per_source=3, data.workers=0]
"""
    )
    return load_config(AblationConfig, path, overrides)


def read(config: AblationConfig) -> dict[str, Any]:
    return json.loads((Path(config.output_dir) / "table.json").read_text())


def never(*args: object, **kwargs: object) -> object:
    raise AssertionError("this was done already")


@pytest.mark.slow
def test_a_whole_ablation(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(data, tmp_path)
    first = ablate(config, only=["full, 3 images"])
    assert first is not None and "Not finished: SAM's token." in first
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    table = ablate(config)
    assert table is not None and (tmp_path / "out" / "table.md").read_text() == table

    token, full = read(config)["variants"]
    assert read(config)["missing"] == []
    assert (token["name"], full["name"]) == ("SAM's token", "full, 3 images")
    assert (token["training"]["parameters"], full["training"]["parameters"]) == (140_064, 317_440)
    assert (token["training"]["images"], full["training"]["images"]) == (5, 3)
    shared = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.safetensors")}
    assert 2 <= len(kept) <= 3 and kept.items() < shared.items() and len(shared) <= 5  # views of images
    for row, folder in ((token, "sam_s_token"), (full, "full_3_images")):
        scores = json.loads((tmp_path / "out" / folder / "drawn" / "results.json").read_text())
        assert row["evaluations"]["drawn"]["mean"] == scores["mean"]
        mean = scores["mean"]
        cells = [f"{mean[column]['miou']:.1f} / {mean[column]['mbiou']:.1f}" for column in ("sam", "hq", "sum")]
        line = next(line for line in table.splitlines() if line.startswith(f"| {row['name']} |"))
        facts = row["training"]
        start = [row["name"], facts["head"], f"{facts['parameters']:,}", str(facts["images"]), "4"]
        assert line.strip("| ").split(" | ") == [*start, f"{facts['seconds']:.0f}", *cells]

    monkeypatch.setattr(running, "open_run", never)  # again: nothing is trained or evaluated
    with monkeypatch.context() as patch:
        patch.setattr(running, "run_evaluation", never)
        assert ablate(config) == table
    changed = configure(data, tmp_path, "evaluations.drawn=['data.sets=[" + str(data) + "]', data.max_per_source=2]")
    assert ablate(changed) not in (None, table)  # evaluated again, from the same weights
    with pytest.raises(ConfigError, match=r"with other settings:\n  optim.lr was 0.001, is 0.01\nset them back"):
        ablate(configure(data, tmp_path, "train.optim.lr=0.01"))


def test_an_interrupted_variant_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(running, "finish", lambda run: False)
        assert ablate(config, only=["SAM's token"]) is None
    assert not (tmp_path / "out" / "table.md").exists()
    with pytest.raises(ConfigError, match=r"with other settings:\n  optim.lr was 0.001, is 0.01\n"):
        ablate(configure(data, tmp_path, "train.optim.lr=0.01"), only=["SAM's token"])
    with monkeypatch.context() as patch:
        patch.setattr(running, "run_evaluation", never)
        with pytest.raises(AssertionError):
            ablate(config, only=["SAM's token"])
    variant = plan_variants(config)[0]
    result = json.loads((variant.folder / "result.json").read_text())
    assert "training" in result and "drawn" not in result.get("evaluations", {})
    assert ablate(config, only=["SAM's token"])


def test_a_damaged_result_is_named(data: Path, tmp_path: Path) -> None:
    config = configure(data, tmp_path)
    path = plan_variants(config)[0].folder / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"training": ')
    with pytest.raises(DataError, match=r"result.json cannot be read .*delete it"):
        ablate(config)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"result.json is not the result of a variant; delete it"):
        ablate(config)


def test_seconds_are_those_of_the_steps(tmp_path: Path) -> None:
    entries = [{"step": 2, "step_seconds": 1.5}, {"step": 2, "val": "mean"}, {"step": 5, "step_seconds": 2.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert training_seconds(tmp_path) == 2 * 1.5 + 3 * 2.0


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(data, tmp_path)
    arguments = ["ablate", str(tmp_path / "ablation.yaml"), "train.loop.max_steps=1"]
    assert main([*arguments, "--only", "full, 3 images"]) == 0
    assert capsys.readouterr().out.startswith("# Ablations of hq_test_tiny\n")
    assert main([*arguments, "--only", "nothing"]) == 2
    assert capsys.readouterr().err == "error: no variant 'nothing'; there are \"SAM's token\", 'full, 3 images'\n"
    assert main(["ablate", str(tmp_path / "ablation.yaml"), "train.loop.steps=1"]) == 2
    assert "unknown key train.loop.steps" in capsys.readouterr().err
    assert main(["ablate"]) == 2
