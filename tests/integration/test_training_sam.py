"""SAM's own recipe as a run: what moves, what a stop and more processes change (nothing), what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hqsam.checkpoints import inspect_checkpoint, official_state_dict, read_tensors
from hqsam.engine.distributed import World, join_world
from hqsam.engine.objective import image_features
from hqsam.engine.training import Run, open_run, train
from hqsam.errors import ConfigError
from hqsam.models.drop_path import drop_paths
from hqsam.registry import create_model
from tests.integration.forked import start_group
from tests.integration.training_runs import draw_data, make_config, tensors

SAM = [
    "model.name=sam_test_vit",
    "model.trained=decoder+prompt+encoder",
    "data.prompts.mix={box: 1, points: 1}",
    "data.prompts.num_points=1",
    "data.prompts.box_jitter=0.1",
    "data.prompts.prompts_per_image=2",
    "clicks.rounds=2",
    "clicks.mask_only=2",
    "optim.name=adamw",
    "optim.weight_decay=0.1",
    "optim.layer_decay=0.8",
]
FROZEN_ENCODER = "optim.layer_decay=1"
PREFIXES = {"decoder": "mask_decoder.", "prompt": "prompt_encoder.", "encoder": "image_encoder."}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("drawn") / "shapes", 4)


def run_steps(run: Run, count: int) -> list[torch.Tensor]:
    batches = zip(range(count), run.loader(), strict=False)
    return [run.trainer.train_step([batch]) for _, batch in batches]


@pytest.mark.parametrize("parts", ["encoder", "prompt", "decoder", "prompt+encoder", "decoder+prompt+encoder"])
@pytest.mark.parametrize("name", ["sam_test_vit", "sam_test_tiny"])
def test_what_is_not_trained_keeps_every_bit(data: Path, tmp_path: Path, name: str, parts: str) -> None:
    options = [f"model.name={name}", f"model.trained={parts}", "loop.max_steps=2"]
    if "encoder" not in parts:
        options.append(FROZEN_ENCODER)
    run = open_run(make_config(data, tmp_path, *SAM, *options))
    model = run.trainer.model
    before = tensors(model)
    run_steps(run, 2)
    moved = {key for key, tensor in tensors(model).items() if not torch.equal(before[key], tensor)}
    trained = tuple(PREFIXES[part] for part in parts.split("+"))
    parameters = {key for key, _ in model.named_parameters() if key.startswith(trained)}
    # Two steps give not each of the three masks its turn, and not each kind of prompt.
    assert moved <= parameters
    left = {k for k in parameters - moved if not k.startswith(("mask_decoder.hypernetworks", "prompt_encoder.point"))}
    assert left == set()
    training = {part for part, module in model.part_modules().items() if module.training}
    assert training == set(parts.split("+"))
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_an_hq_model_may_train_parts_of_sam_too(data: Path, tmp_path: Path) -> None:
    options = ["model.trained=hq+prompt+encoder", "clicks.rounds=1", "clicks.mask_only=1", f"data.val=[{data}]"]
    config = make_config(data, tmp_path, *options, "loop.max_steps=1")
    assert train(config)
    run = open_run(config)
    best = read_tensors(tmp_path / "checkpoints" / "best.safetensors")
    own = official_state_dict(run.trainer.model)
    assert all(torch.equal(best[key], tensor) for key, tensor in own.items())
    assert {group["name"].split(".")[0] for group in run.trainer.optimizer.param_groups} == {
        "head",
        "prompt",
        "encoder",
    }


def test_a_stop_changes_no_bit(data: Path, tmp_path: Path) -> None:
    options = [*SAM, "loop.max_steps=3", "loop.ema=0.9", "model.drop_path=0.5"]
    whole = open_run(make_config(data, tmp_path / "whole", *options))
    run_steps(whole, 3)
    first = open_run(make_config(data, tmp_path / "parts", *options))
    run_steps(first, 2)
    first.states.save(first.trainer)
    second = open_run(make_config(data, tmp_path / "parts", *options))
    assert second.trainer.step == 2
    run_steps(second, 1)
    for a, b in zip(whole.trainer.parameters, second.trainer.parameters, strict=True):
        assert torch.equal(a, b)
    groups = [run.trainer.optimizer.state_dict()["param_groups"] for run in (whole, second)]
    assert groups[0] == groups[1]
    assert torch.equal(*(run.trainer.average.values[0] for run in (whole, second)))  # type: ignore[union-attr]


def test_chunks_of_prompts_change_nothing(data: Path, tmp_path: Path) -> None:
    options = [*SAM, "loop.dtype=float64", "loop.max_steps=1"]
    runs = [open_run(make_config(data, tmp_path / c, *options, f"loop.prompt_chunk={c}")) for c in ("null", "3", "1")]
    totals = [run_steps(run, 1)[0] for run in runs]
    for run, other in zip(runs[1:], totals[1:], strict=True):
        torch.testing.assert_close(other, totals[0], rtol=1e-9, atol=0)
        for a, b in zip(run.trainer.parameters, runs[0].trainer.parameters, strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-12)


def two_steps(data: Path, folder: Path, batch_size: int, world: World) -> dict[str, Any]:
    options = [*SAM, "model.name=sam_test_tiny", "model.drop_path=0.5", "loop.dtype=float64", "loop.max_steps=2"]
    options.append("data.prompts.prompts_per_image=1")
    run = open_run(make_config(data, folder, *options, f"loop.batch_size={batch_size}"), world)
    totals = run_steps(run, 2)
    return {"totals": torch.stack(totals), "weights": [parameter.detach() for parameter in run.trainer.parameters]}


def in_process(rank: int, data: Path, folder: Path) -> None:
    with join_world("cpu") as world:
        torch.save(two_steps(data, folder, 1, world), folder / f"rank{rank}.pt")


def test_two_processes_are_one(data: Path, tmp_path: Path) -> None:
    """With stochastic depth and batch norms, which elsewhere depend on how images are spread over processes."""
    start_group(in_process, 2, data, tmp_path)
    one = two_steps(data, tmp_path / "one", 2, World())
    for rank in range(2):
        got = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(got["totals"], one["totals"], rtol=1e-9, atol=0)
        for a, b in zip(got["weights"], one["weights"], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_whole_run_and_what_it_leaves(data: Path, tmp_path: Path) -> None:
    """Frozen encoder with kept outputs; the log, the report and files that every loader takes."""
    options = [
        "model.trained=decoder+prompt",
        FROZEN_ENCODER,
        "data.views=1",
        f"data.keep_features={tmp_path / 'kept'}",
    ]
    config = make_config(
        data, tmp_path / "run", *SAM, *options, "loop.max_steps=2", "data.val_synthetic=2", "loop.panels=1"
    )
    assert train(config)
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (mean,) = (entry for entry in entries if entry.get("val") == "mean")
    assert set(mean) == {"step", "val", "sam_miou", "sam_mbiou"}
    step = next(entry for entry in entries if entry["step"] == 1)
    assert "bce" not in step and step["loss"] >= 20 * step["focal"] + step["dice"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "| step | SAM mIoU | SAM mBIoU |\n|---:|---:|---:|" in report and "validated on 2 generated scenes" in report
    assert ", dice" in report and "focal" in report and "HQ mIoU" not in report

    trained = official_state_dict(open_run(config).trainer.model)
    state = next((tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    for file in (tmp_path / "run" / "model.safetensors", best, state):
        info = inspect_checkpoint(file)
        assert (info.has_sam, info.has_hq, info.variant) == (True, False, "test_vit"), file
        loaded = official_state_dict(create_model("sam_test_vit", file, device="cpu"))
        assert all(torch.equal(loaded[key], tensor) for key, tensor in trained.items()), file
    again = open_run(
        make_config(data, tmp_path / "again", *SAM, f"model.checkpoint={state}", "model.random_weights=false")
    )
    assert again.trainer.step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["model.trained=hq"],
            r"sam_test_vit is plain SAM and has no HQ head to train; use an hq_ name, or name parts",
        ),
        (["model.trained=decoder+neck"], r"'neck' is unknown or twice there; parts, joined by \+, are hq, decoder"),
        (["model.trained=decoder+decoder"], "'decoder' is unknown or twice there"),
        (["model.trained="], "'' is unknown"),
        (["model.name=hq_test_vit"], "leaves out the head of hq_test_vit: add hq, or train the sam_ model"),
        (["data.keep_features=kept", "data.views=1"], "cannot be kept: set data.keep_features=null"),
        (["model.lora_rank=2"], "leave encoder out of model.trained"),
        (
            ["model.trained=decoder", "model.drop_path=0.1", FROZEN_ENCODER],
            "drop_path=0.1 is for a trained encoder, which .* leaves out; set model.drop_path=0",
        ),
        (["model.trained=decoder", "optim.layer_decay=0.5"], "layer_decay=0.5 is for a trained encoder"),
        (["model.head=token"], "model.head=token is for an HQ head, and sam_test_vit is plain SAM"),
        (["optim.name=adam"], "weight_decay=0.1 needs optim.name=adamw"),
        (["model.random_weights=false"], "all of sam_test_vit would be random; give SAM's file to go on from, or"),
        (["clicks.rounds=1"], "clicks: mask_only=2 puts a round between two clicks"),
        (
            ["clicks.rounds=0", "clicks.mask_only=0"],
            "nothing here trains the single mask: set clicks.rounds, or points",
        ),
        (["data.synthetic=2", "data.synthetic_kinds=[cloud]"], "'cloud' is no kind to train on; there are blob, "),
        (["data.synthetic=2", "data.synthetic_kinds=[blob,snail]"], "'snail' is no kind to train on; there are "),
        (["data.synthetic_kinds=[blob]"], "set data.synthetic or data.val_synthetic"),
        (["loss.sum_share=0.5"], "is for the HQ head, which model.trained=decoder"),
        (["clicks.feed_mask=false"], "clicks: a round of mask_only without feed_mask"),
    ],
)
def test_settings_that_contradict_each_other(data: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_run(make_config(data, tmp_path, *SAM, *options))
    assert not list(tmp_path.iterdir())


def test_a_state_of_another_optimizer_is_refused(data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path, *SAM))
    run.states.save(run.trainer)
    with pytest.raises(ConfigError, match=r"state of another model: optim.name=adamw"):
        open_run(make_config(data, tmp_path, *SAM, "optim.name=adam", "optim.weight_decay=0"))
    with pytest.raises(ConfigError, match=r"optim.weight_decay was 0.1, is 0.2"):
        open_run(make_config(data, tmp_path, *SAM, "optim.weight_decay=0.2"))


def test_rates_fall_towards_the_input_and_norms_do_not_decay(data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path, *SAM, "optim.encoder_factor=0.5"))
    groups = {group["name"]: group for group in run.trainer.optimizer.param_groups}
    assert groups["encoder.5"]["factor"] == 0.5 and groups["encoder.0"]["factor"] == pytest.approx(0.5 * 0.8**5)
    assert {name.endswith(".plain"): group["weight_decay"] for name, group in groups.items()} == {True: 0.0, False: 0.1}
    held = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in run.trainer.model.parameters())
    plain = [p for name, group in groups.items() if name.endswith(".plain") for p in group["params"]]
    backbone = run.trainer.model.image_encoder.backbone
    assert any(p is backbone.pos_embed for p in plain)  # type: ignore[union-attr]


def test_stochastic_depth_leaves_branches_out_for_single_images(data: Path, tmp_path: Path) -> None:
    run = open_run(make_config(data, tmp_path, *SAM, "model.drop_path=0.9"))
    model = run.trainer.model
    batch = next(iter(run.loader()))
    assert batch.path_draws.shape == (2, 8) == (2, len(drop_paths(model.image_encoder)))
    usual = image_features(model, batch).image_embedding
    assert torch.equal(usual, create_like(model, batch))
    batch.path_draws[0] = 0.0  # all that can be left out is, but for the first block, whose rate is 0
    batch.path_draws[1] = 1.0
    changed = image_features(model, batch, trained=True).image_embedding
    assert not torch.allclose(changed, usual, rtol=0.01, atol=0.01)
    assert [path.rate for path in drop_paths(model.image_encoder)[::2]] == pytest.approx([0, 0.3, 0.6, 0.9])
    assert all(path.draws is None for path in drop_paths(model.image_encoder))


def create_like(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    """The embedding of the same weights without stochastic depth."""
    plain = create_model("sam_test_vit", device="cpu")
    plain.load_state_dict(model.state_dict())
    plain.train(model.training)  # the encoder's path and its libraries depend on it
    return image_features(plain, batch).image_embedding


def test_batch_norms_of_nothing_are_settled_once(data: Path, tmp_path: Path) -> None:
    options = [*SAM, "model.name=sam_test_tiny"]
    run = open_run(make_config(data, tmp_path / "a", *options, "loop.max_steps=1"))
    images = torch.cat([batch.images for batch in run.loader() if batch.images is not None])
    encoder = run.trainer.model.image_encoder
    norm = encoder.backbone.patch_embed.conv1  # type: ignore[union-attr]
    with torch.no_grad():
        inputs = norm.conv(run.trainer.model.preprocess_canvas(images))  # type: ignore[operator,union-attr]
    torch.testing.assert_close(norm.bn.running_mean, inputs.mean((0, 2, 3)))  # type: ignore[union-attr]
    torch.testing.assert_close(norm.bn.running_var, inputs.var((0, 2, 3)))  # type: ignore[union-attr]
    run_steps(run, 1)
    run.states.save(run.trainer)
    again = open_run(make_config(data, tmp_path / "a", *options, "loop.max_steps=2"))
    run_steps(again, 1)
    for a, b in zip(again.trainer.model.buffers(), run.trainer.model.buffers(), strict=True):
        assert torch.equal(a, b)
    given = ["model.name=sam_vit_tiny.embedded", "model.image_size=128"]
    embedded = open_run(make_config(data, tmp_path / "b", *SAM, *given, "loop.max_steps=1")).trainer.model
    assert all((m.running_mean == 0).all() for m in embedded.modules() if isinstance(m, torch.nn.BatchNorm2d))
