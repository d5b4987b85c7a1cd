"""What is trained beyond the head, corrections and averages: what moves, what is exported, and exact resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hqsam.checkpoints import convert_checkpoint, load_adapter, load_checkpoint, official_state_dict, read_tensors
from hqsam.checkpoints.reading import read_strings
from hqsam.engine import trainer
from hqsam.engine.objective import forward_loss
from hqsam.engine.trainer import NonFiniteLossError
from hqsam.engine.training import Run, open_run, train
from hqsam.errors import CheckpointError, ConfigError, HqsamError, OutputError
from hqsam.registry import create_model
from tests.integration.training_runs import draw_data, make_config, tensors

EVERYTHING = ["model.trained=hq+decoder", "model.lora_rank=2", "clicks.rounds=2", "loop.ema=0.9", "optim.clip=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("drawn") / "shapes")


def run_steps(run: Run, count: int | None = None) -> None:
    """Steps without validation and without writing anything."""
    for _, batch in zip(range(run.trainer.plan.total_steps if count is None else count), run.loader(), strict=False):
        run.trainer.train_step([batch])


@pytest.mark.parametrize(
    ("options", "moving"),
    [
        (["model.trained=hq+decoder"], ("mask_decoder.",)),
        (["model.lora_rank=2"], ("mask_decoder.head.",)),
        (["clicks.rounds=2"], ("mask_decoder.head.",)),
        (["model.trained=score", "clicks.rounds=1"], ("mask_decoder.score_head.",)),
    ],
)
def test_what_moves(data: Path, tmp_path: Path, options: list[str], moving: tuple[str, ...]) -> None:
    run = open_run(make_config(data, tmp_path, *options, "loop.max_steps=3"))
    model, adapter = run.trainer.model, run.trainer.adapter
    before = tensors(model)
    updates = None if adapter is None else tensors(adapter)
    run_steps(run)
    after = tensors(model)
    # Of the three masks of an ambiguous prompt the best alone is trained: in three steps not each has its turn.
    ambiguous = tuple(f"mask_decoder.trunk.hypernetworks.{k}." for k in (1, 2, 3))
    expected = {key for key in before if key.startswith(moving)}
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved <= expected and {key for key in expected - moved if not key.startswith(ambiguous)} == set()
    if adapter is not None and updates is not None:
        assert all(not torch.equal(updates[key], tensor) for key, tensor in tensors(adapter).items())


def test_gradients_of_all_rounds_meet_in_full_precision(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast the encoder's outputs are bfloat16; a sum of many gradients in that would lose digits."""
    given: list[torch.dtype] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        given.extend(part.dtype for part in options["features"])
        return forward_loss(*arguments, **options)

    monkeypatch.setattr(trainer, "forward_loss", spy)
    run = open_run(make_config(data, tmp_path, "model.lora_rank=2", "clicks.rounds=1", "loop.amp=bf16"))
    run_steps(run, 1)
    assert set(given) == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in run.trainer.parameters)


@pytest.mark.parametrize("name", ["hq_vit_tiny", "hq_vit_b"])
@pytest.mark.slow
def test_sam_keeps_every_bit_in_models_of_full_width(data: Path, tmp_path: Path, name: str) -> None:
    options = [f"model.name={name}", "model.image_size=256", "loop.max_steps=2", "data.points.points_per_mask=512"]
    run = open_run(make_config(data, tmp_path, *options))
    before = tensors(run.trainer.model)
    run_steps(run)
    moved = {key for key, tensor in tensors(run.trainer.model).items() if not torch.equal(before[key], tensor)}
    assert moved == {key for key in before if key.startswith("mask_decoder.head.")}


def test_a_stop_in_the_middle_of_everything_changes_no_bit(data: Path, tmp_path: Path) -> None:
    options = [*EVERYTHING, "loop.max_steps=6"]
    whole = open_run(make_config(data, tmp_path / "whole", *options))
    run_steps(whole)
    first = open_run(make_config(data, tmp_path / "parts", *options))
    run_steps(first, 4)
    first.states.save(first.trainer)
    second = open_run(make_config(data, tmp_path / "parts", *options))
    assert second.trainer.step == 4
    run_steps(second)
    for a, b in zip(whole.trainer.parameters, second.trainer.parameters, strict=True):
        assert torch.equal(a, b)
    assert whole.trainer.average is not None and second.trainer.average is not None
    for a, b in zip(whole.trainer.average.values, second.trainer.average.values, strict=True):
        assert torch.equal(a, b)
    rates = {group["name"]: group["lr"] for group in second.trainer.optimizer.param_groups}
    assert rates == pytest.approx({"head": 1e-3, "decoder": 1e-4, "lora": 1e-3})


def test_the_exported_file_carries_every_changed_tensor(data: Path, tmp_path: Path) -> None:
    """With averages and an adapter: the file is the average, merged; the adapter beside it gives the same."""
    config = make_config(data, tmp_path, *EVERYTHING, "loop.max_steps=3", f"data.val=[{data}]")
    base = official_state_dict(open_run(make_config(data, tmp_path / "base", *EVERYTHING)).trainer.model)
    assert train(config)
    exported = read_tensors(tmp_path / "model.safetensors")
    model = create_model("hq_test_tiny", tmp_path / "model.safetensors", device="cpu")

    run = open_run(config)
    trainer = run.trainer
    assert trainer.step == 3 and trainer.adapter is not None
    with trainer.averaged(), trainer.adapter.merged():
        expected = {key: tensor.clone() for key, tensor in official_state_dict(trainer.model).items()}
    changed = {key for key in base if not torch.equal(base[key], expected[key])}
    layers = {key for key in base if key.endswith((".attn.qkv.weight", ".attn.proj.weight")) and "image" in key}
    assert changed == {key for key in base if key.startswith("mask_decoder.")} | layers
    assert all(torch.equal(exported[key], tensor) for key, tensor in expected.items())

    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        merged = model.image_encoder(image)
        unmerged = create_model("hq_test_tiny", device="cpu")
        unmerged.image_encoder.load_state_dict(trainer.model.image_encoder.state_dict())
        load_adapter(unmerged, tmp_path / "lora.safetensors")
        for a, b in zip(merged, unmerged.image_encoder(image), strict=True):
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()

    best = read_tensors(tmp_path / "checkpoints" / "best.safetensors")
    assert all(torch.equal(best[key], tensor) for key, tensor in expected.items())  # three steps: the only validation
    with pytest.raises(CheckpointError, match="encoder adapter, which would be lost"):
        load_checkpoint(model, next((tmp_path / "checkpoints").glob("step_*.pt")))


def test_a_decoder_state_is_a_checkpoint_of_decoder_and_head(data: Path, tmp_path: Path) -> None:
    config = make_config(data, tmp_path, "model.trained=hq+decoder", "loop.max_steps=2", f"data.val=[{data}]")
    assert train(config)
    trained = official_state_dict(open_run(config).trainer.model, "hq_decoder")
    for file in (next((tmp_path / "checkpoints").glob("step_*.pt")), tmp_path / "checkpoints" / "best.safetensors"):
        model = create_model("hq_test_tiny", device="cpu")
        load_checkpoint(model, file)
        own = official_state_dict(model, "hq_decoder")
        assert all(torch.equal(own[key], tensor) for key, tensor in trained.items()), file


@pytest.mark.parametrize("option", ["model.trained=hq+decoder", "model.lora_rank=4"])
def test_a_state_of_another_scope_is_refused_even_by_name(data: Path, tmp_path: Path, option: str) -> None:
    first = open_run(make_config(data, tmp_path))
    state = first.states.save(first.trainer)
    for resume in ("auto", state):
        with pytest.raises(ConfigError, match="state of another model"):
            open_run(make_config(data, tmp_path, option, f"resume={resume}"))


def test_states_from_before_a_setting_existed_go_on(data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path))
    path = run.states.save(run.trainer)
    state = torch.load(path, weights_only=True)
    for key in ("model.trained", "model.lora_rank", "clicks.rounds", "loop.ema", "optim.lora_factor"):
        del state["config"][key]
    del state["lora"], state["ema"], state["optimizer"]["param_groups"][0]["name"]
    torch.save(state, path)
    resumed = open_run(make_config(data, tmp_path))
    run_steps(resumed, 1)
    assert resumed.trainer.step == 1
    with pytest.raises(ConfigError, match=r"clicks.rounds was 0, is 1"):
        open_run(make_config(data, tmp_path, "clicks.rounds=1"))
    taken = open_run(make_config(data, tmp_path, "loop.ema=0.5", f"resume={path}")).trainer
    assert taken.average is not None
    assert all(torch.equal(a, b) for a, b in zip(taken.average.values, taken.parameters, strict=True))


def test_kept_features_cannot_train_an_adapter(data: Path, tmp_path: Path) -> None:
    options = ["model.lora_rank=2", "data.views=1", f"data.keep_features={tmp_path / 'kept'}"]
    with pytest.raises(ConfigError, match=r"cannot be kept: set data.keep_features=null"):
        open_run(make_config(data, tmp_path, *options))


def test_clicks_do_not_depend_on_the_batch(data: Path, tmp_path: Path) -> None:
    """Their random numbers come with the sample: accumulation gives the same weights as one large batch."""
    options = ["loop.dtype=float64", "loop.max_steps=2", "clicks.rounds=2", "data.prompts.prompts_per_image=2"]
    large = open_run(make_config(data, tmp_path / "a", *options, "loop.batch_size=4"))
    small = open_run(make_config(data, tmp_path / "b", *options, "loop.batch_size=1", "loop.accumulate=4"))
    run_steps(large)
    batches = list(small.loader())
    for start in (0, 4):
        small.trainer.train_step(batches[start : start + 4])
    for a, b in zip(large.trainer.parameters, small.trainer.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_the_batch_of_a_loss_that_is_not_finite_is_kept(data: Path, tmp_path: Path) -> None:
    config = make_config(data, tmp_path, "optim.lr=1e30", "loop.max_steps=8")
    with pytest.raises(HqsamError, match="not finite at step") as caught:
        train(config)
    (file,) = tmp_path.glob("failed_step_*_rank0.pt")
    assert str(file) in str(caught.value)
    step = int(file.name.split("_")[2])
    (batch,) = torch.load(file, weights_only=True)
    run = open_run(make_config(data, tmp_path / "again"))
    original = list(run.loader())[step - 1]
    assert batch["keys"] == original.keys
    assert torch.equal(batch["images"], original.images) and torch.equal(batch["masks"], original.masks)
    assert torch.equal(batch["prompts"]["coords"], original.prompts.coords)


def test_a_batch_that_cannot_be_kept_hides_no_loss(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(run: Run, step: int) -> Path:
        raise OutputError("cannot write the batch: No space left on device")

    monkeypatch.setattr(Run, "keep_batch", full)
    with pytest.raises(NonFiniteLossError, match=r"not finite at step(.|\n)*not kept: cannot write the batch"):
        train(make_config(data, tmp_path, "optim.lr=1e30", "loop.max_steps=8"))


def test_another_input_size_trains_and_is_exported_with_it(data: Path, tmp_path: Path) -> None:
    config = make_config(data, tmp_path, "model.image_size=192", "loop.max_steps=1")
    assert train(config)
    run = open_run(config)
    assert run.trainer.model.image_size == 192 and next(iter(run.loader()), None) is None
    with pytest.raises(ConfigError, match=r"model.image_size was 192, is 128"):
        open_run(make_config(data, tmp_path, "model.image_size=128"))


def test_a_trained_score_head_is_exported_and_resumed(data: Path, tmp_path: Path) -> None:
    options = ["model.trained=score", "data.prompts.min_points=1", "loop.max_steps=4"]
    whole = open_run(make_config(data, tmp_path / "whole", *options))
    run_steps(whole)
    whole.export()
    first = open_run(make_config(data, tmp_path / "parts", *options))
    run_steps(first, 2)
    first.states.save(first.trainer)
    second = open_run(make_config(data, tmp_path / "parts", *options))
    assert second.trainer.step == 2
    run_steps(second)
    for a, b in zip(whole.trainer.parameters, second.trainer.parameters, strict=True):
        assert torch.equal(a, b)
    model = create_model("hq_test_tiny", tmp_path / "whole" / "model.safetensors", device="cpu")
    assert model.score_head is not None and model.default_score is None
    expected = official_state_dict(whole.trainer.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in official_state_dict(model).items())


@pytest.mark.parametrize("trained", ["hq", "score"])
def test_the_exported_file_recommends_what_validation_measured(data: Path, tmp_path: Path, trained: str) -> None:
    """What the start recommended, without the fusion where the masks change; of a start that says nothing, nothing."""
    first = open_run(make_config(data, tmp_path / "first"))
    first.export()
    start = tmp_path / "first" / "model.safetensors"
    assert not {name for name in read_strings(start) if name.startswith("recommended")}
    recommended = {"recommended_refine": "again", "recommended_heed_clicks": "yes", "recommended_upsampling": "guided"}
    convert_checkpoint(start, tmp_path / "a.safetensors", metadata={**recommended, "recommended_fusion": "hq"})
    options = [f"model.checkpoint={tmp_path / 'a.safetensors'}", f"model.trained={trained}"]
    run = open_run(make_config(data, tmp_path / "second", *options))
    run.export()
    stated = read_strings(tmp_path / "second" / "model.safetensors")
    expected = {**recommended, **({"recommended_fusion": "hq"} if trained == "score" else {})}
    assert {name: text for name, text in stated.items() if name.startswith("recommended")} == expected
    assert run.trainer.model.default_upsampling == "guided"


def test_a_score_head_does_not_outlive_the_masks_that_it_knows(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(make_config(data, tmp_path / "score", "model.trained=score"))
    run.export()
    file = f"model.checkpoint={tmp_path / 'score' / 'model.safetensors'}"
    again = open_run(make_config(data, tmp_path / "hq", file))
    assert again.trainer.model.score_head is None and "the score head of" in caplog.text
    on = open_run(make_config(data, tmp_path / "on", file, "model.trained=score"))
    assert on.trainer.model.score_head is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.lora_rank=2"], "freezes everything else"),
        (["data.prompts.min_points=11"], "min_points must be within"),
    ],
)
def test_what_a_score_head_cannot_be_trained_with(data: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_run(make_config(data, tmp_path, "model.trained=score", *options))
