"""Training runs of a few steps: what moves, what stays, and that an interrupted run continues exactly."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hqsam.checkpoints import load_checkpoint
from hqsam.data import Batch
from hqsam.engine.state import StateFolder
from hqsam.engine.training import main, open_run, train
from hqsam.errors import CheckpointError, ConfigError, DataError, HqsamError
from hqsam.registry import create_model
from tests.integration.training_runs import draw_data, make_config, tensors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("drawn") / "shapes")


@pytest.mark.parametrize("name", ["hq_test_tiny", "hq_test_vit"])
def test_every_hq_tensor_moves_and_no_bit_of_sam(data: Path, tmp_path: Path, name: str) -> None:
    run = open_run(make_config(data, tmp_path, f"model.name={name}", "loop.max_steps=3"))
    before = tensors(run.trainer.model)
    for batch in run.loader():
        run.trainer.train_step([batch])
    after = tensors(run.trainer.model)
    heads = {key for key in before if ".head." in key}
    assert len(heads) == len(list(run.trainer.model.hq_parameters()))
    assert {key for key in before if not torch.equal(before[key], after[key])} == heads


def test_the_optimizer_holds_the_head_alone(data: Path, tmp_path: Path) -> None:
    trainer = open_run(make_config(data, tmp_path)).trainer
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.model.hq_parameters()}
    assert held == {id(p) for p in trainer.model.parameters() if p.requires_grad}


@pytest.mark.parametrize("stop", [5, 8])
def test_ten_steps_equal_a_part_and_its_resumption(data: Path, tmp_path: Path, stop: int) -> None:
    """10 images in steps of 2 are 5 steps an epoch: one stop is at the border, one within the second epoch."""
    whole = open_run(make_config(data, tmp_path / "whole"))
    for batch in whole.loader():
        whole.trainer.train_step([batch])
    first = open_run(make_config(data, tmp_path / "parts"))
    for _, batch in zip(range(stop), first.loader(), strict=False):
        first.trainer.train_step([batch])
    first.states.save(first.trainer, best=12.5)
    second = open_run(make_config(data, tmp_path / "parts"))
    assert (second.trainer.step, second.best) == (stop, 12.5)
    for batch in second.loader():
        second.trainer.train_step([batch])
    assert second.trainer.step == whole.trainer.step == 10
    for a, b in zip(whole.trainer.parameters, second.trainer.parameters, strict=True):
        assert torch.equal(a, b)
    moments = [run.trainer.optimizer.state_dict()["state"] for run in (whole, second)]
    for index, values in moments[0].items():
        assert all(torch.equal(value, moments[1][index][key]) for key, value in values.items())


def test_workers_do_not_change_the_samples(data: Path, tmp_path: Path) -> None:
    runs = [open_run(make_config(data, tmp_path, "loop.max_steps=6", f"data.workers={n}")) for n in (0, 2)]
    for one, other in zip(*(run.loader() for run in runs), strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)
        assert torch.equal(one.prompts.coords, other.prompts.coords)
        assert torch.equal(one.loss_candidates, other.loss_candidates)


def test_accumulation_equals_one_large_batch(data: Path, tmp_path: Path) -> None:
    settings = ["loop.dtype=float64", "loop.max_steps=2"]
    large = open_run(make_config(data, tmp_path, *settings, "loop.batch_size=4"))
    small = open_run(make_config(data, tmp_path, *settings, "loop.batch_size=1", "loop.accumulate=4"))
    for batch in large.loader():
        large.trainer.train_step([batch])
    batches = list(small.loader())
    for start in (0, 4):
        small.trainer.train_step(batches[start : start + 4])
    for a, b in zip(large.trainer.parameters, small.trainer.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_kept_features_give_the_same_training(data: Path, tmp_path: Path) -> None:
    """Half precision on disk is the only difference."""
    options = ["data.views=1", "loop.max_steps=3"]
    plain = open_run(make_config(data, tmp_path / "plain", *options))
    kept = open_run(make_config(data, tmp_path / "kept", *options, f"data.keep_features={tmp_path / 'features'}"))
    assert kept.encode() == 6
    assert kept.encode() == 0
    for one, other in zip(plain.loader(), kept.loader(), strict=True):
        assert other.images is None and other.features is not None
        assert torch.equal(one.masks, other.masks) and torch.equal(one.prompts.coords, other.prompts.coords)
        losses = [run.trainer.train_step([batch])[:2] for run, batch in ((plain, one), (kept, other))]
        torch.testing.assert_close(losses[0], losses[1], rtol=2e-3, atol=0)


def test_kept_features_of_another_encoder_are_refused(data: Path, tmp_path: Path) -> None:
    keep = ["data.views=1", "loop.max_steps=1", f"data.keep_features={tmp_path / 'features'}"]
    open_run(make_config(data, tmp_path / "a", *keep)).encode()
    with pytest.raises(DataError, match="features of another"):
        open_run(make_config(data, tmp_path / "b", *keep, "seed=7"))


def test_a_whole_run_leaves_its_folder(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["loop.max_steps=4", "loop.save_every=2", "loop.val_every=2", f"data.val=[{data}]", "loop.panels=1"]
    config = make_config(data, folder, *options, "data.val_per_source=3", "loop.keep_last=1")
    assert train(config)
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "log.jsonl", "tensorboard", "checkpoints", "report.md", "plots", "model.safetensors",
    }  # fmt: skip
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step_0000004.pt", "best.safetensors"}
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4]
    assert [entry["step"] for entry in entries if entry.get("val") == "mean"] == [2, 4]
    assert all(entry["loss"] == pytest.approx(entry["bce"] + entry["dice"]) for entry in entries if "loss" in entry)
    text = (folder / "report.md").read_text()
    assert "SAM+HQ mBIoU" in text and "shapes" in text and "predictor" in text
    merged = create_model("hq_test_tiny", folder / "model.safetensors", device="cpu")
    assert merged.head_state == "trained"
    again = open_run(make_config(data, folder, *options, "data.val_per_source=3", "loop.keep_last=1"))
    for a, b in zip(merged.hq_parameters(), again.trainer.parameters, strict=True):
        assert torch.equal(a, b)


def test_the_best_head_can_be_loaded_into_its_sam(data: Path, tmp_path: Path) -> None:
    options = ["loop.max_steps=2", f"data.val=[{data}]", "data.val_per_source=2"]
    config = make_config(data, tmp_path, *options)
    assert train(config)
    run = open_run(config)
    sam = create_model("hq_test_tiny", tmp_path / "model.safetensors", device="cpu")
    load_checkpoint(sam, tmp_path / "checkpoints" / "best.safetensors")
    for a, b in zip(sam.hq_parameters(), run.trainer.parameters, strict=True):
        assert torch.equal(a, b)


class _StopAfter:
    """A loader that sends a signal to its own process while a batch is fetched."""

    def __init__(self, batches: list[Batch], number: int) -> None:
        self.batches = batches
        self.number = number

    def __iter__(self) -> Iterator[Batch]:
        for position, batch in enumerate(self.batches):
            if position == self.number:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def test_a_signal_finishes_the_step_and_saves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hqsam.engine import training

    config = make_config(data, tmp_path, "loop.max_steps=6")
    loader = training.Run.loader
    handlers = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(training.Run, "loader", lambda run: _StopAfter(list(loader(run)), 2))
    assert not train(config)
    assert signal.getsignal(signal.SIGTERM) is handlers
    monkeypatch.undo()
    assert [path.name for path in StateFolder(tmp_path, open_run(config).world, config).files()] == ["step_0000003.pt"]
    assert not (tmp_path / "model.safetensors").exists()
    assert train(config)
    whole = open_run(make_config(data, tmp_path / "whole", "loop.max_steps=6"))
    for batch in whole.loader():
        whole.trainer.train_step([batch])
    for a, b in zip(open_run(config).trainer.parameters, whole.trainer.parameters, strict=True):
        assert torch.equal(a, b)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_fewer_images_than_a_step_are_repeated_with_other_draws(data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path, "loop.batch_size=14", "loop.max_steps=2"))
    assert run.trainer.plan.steps_per_epoch == 1
    for batch in run.loader():
        twice = {key for key in batch.keys if batch.keys.count(key) > 1}
        assert len(batch.keys) == 14 and len(set(batch.keys)) == 10 and len(twice) == 4
        assert len({tuple(points.flatten()[:4].tolist()) for points in batch.loss_uniform}) == 14


def test_other_images_are_not_the_same_run(tmp_path: Path) -> None:
    images = draw_data(tmp_path / "shapes")
    run = open_run(make_config(images, tmp_path / "run"))
    run.states.save(run.trainer)
    (images / "images" / "09.png").rename(images / "images" / "10.png")
    (images / "masks" / "09.png").rename(images / "masks" / "10.png")
    with pytest.raises(ConfigError, match="the list of training images was"):
        open_run(make_config(images, tmp_path / "run"))


def test_a_complete_run_is_not_done_again(data: Path, tmp_path: Path) -> None:
    config = make_config(data, tmp_path, "loop.max_steps=2")
    assert train(config)
    (tmp_path / "model.safetensors").unlink()
    assert train(config)
    assert (tmp_path / "model.safetensors").exists()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    from hqsam.engine.config import config_to_yaml

    images = draw_data(tmp_path / "shapes", count=2)
    (images / "images" / "01.png").write_bytes(b"not an image")
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(make_config(images, tmp_path / "run", f"data.workers={workers}", "data.check=off")))
    assert main([str(path)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "01.png" in error[0] and "Traceback" not in error[0]


def test_a_non_finite_loss_names_step_and_samples(data: Path, tmp_path: Path) -> None:
    config = make_config(data, tmp_path, "optim.lr=1e30", "loop.max_steps=8", "loop.save_every=1")
    with pytest.raises(HqsamError, match=r"not finite at step \d+") as caught:
        train(config)
    assert "shapes/" in str(caught.value) or "gradient is not" in str(caught.value)
    assert StateFolder(tmp_path, open_run(make_config(data, tmp_path / "x")).world, config).files()


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("seed=43", "seed was 42, is 43"),
        ("loop.batch_size=1", "global batch was 2, is 1"),
        ("data.prompts.num_points=5", "data.prompts.num_points was 10, is 5"),
    ],
)
def test_a_resume_that_would_not_be_exact_is_refused(
    data: Path, tmp_path: Path, override: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_run(make_config(data, tmp_path))
    state = first.states.save(first.trainer)
    with pytest.raises(ConfigError, match=text) as caught:
        open_run(make_config(data, tmp_path, override))
    assert "resume=none" in str(caught.value)
    open_run(make_config(data, tmp_path, override, f"resume={state}"))
    assert "the new value" in caplog.text


def test_harmless_changes_resume(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = open_run(make_config(data, tmp_path))
    first.states.save(first.trainer)
    open_run(make_config(data, tmp_path, "loop.max_steps=20", "data.workers=1", "loop.log_every=3"))
    assert "the new value" not in caplog.text
    open_run(make_config(data, tmp_path, "optim.lr=0.5"))
    assert "optim.lr was 0.001" in caplog.text


def test_unusable_states(data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path))
    state = run.states.save(run.trainer)
    state.write_bytes(state.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cannot read the training state .*step_0000000.pt"):
        open_run(make_config(data, tmp_path))
    with pytest.raises(CheckpointError, match="there is no file"):
        open_run(make_config(data, tmp_path, "resume=missing.pt"))
    torch.save({"a": 1}, state)
    with pytest.raises(CheckpointError, match="is not a training state"):
        open_run(make_config(data, tmp_path))
    assert open_run(make_config(data, tmp_path, "resume=none")).trainer.step == 0


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.name=hq_tset_tiny", "did you mean hq_test_tiny"),
        ("model.name=sam_test_tiny", "plain SAM and has no HQ head to train"),
        ("model.random_weights=false", "model.checkpoint is null"),
        ("data.train=[]", "nothing to train on"),
        ("data.train=[nowhere]", "nowhere"),
        ("data.weights={other: 1}", "other"),
        ("loop.encode_only=true", "data.keep_features, which is null"),
        ("optim.rl=1", "did you mean optim.lr"),
        ("device=tpu", "device must be"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    data: Path, tmp_path: Path, override: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from hqsam.engine.config import config_to_yaml

    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(make_config(data, tmp_path / "run")))
    assert main([str(path), override]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "torchrun" in text and "data.augment.jitter" in text and "optim.lr" in text
    assert main([]) == 2
