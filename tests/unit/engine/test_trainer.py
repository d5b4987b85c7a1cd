"""One step against the formulas, the recorder of numbers, and being asked to stop."""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hqsam.data import Batch
from hqsam.engine.config import load_config
from hqsam.engine.distributed import World
from hqsam.engine.objective import forward_loss, image_features
from hqsam.engine.schedule import StepPlan
from hqsam.engine.signals import StopSignals
from hqsam.engine.state import StateFolder
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.trainer import NonFiniteLossError, StepRecorder, Trainer, _Pending, fit
from hqsam.engine.training import trained_parts
from hqsam.losses import select_points
from hqsam.models import Sam, ScoreHead
from hqsam.models.drop_path import drop_paths
from hqsam.registry import create_model
from hqsam.types import Prompts
from tests.helpers import fill_parameters

SIZE, POINTS = 128, 64


def make_batch(count: int = 2, seed: int = 0) -> Batch:
    """Noise with a rectangle prompted by its box; fixed loss points."""
    rng = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.uint8)
    masks[:, :, 30:90, 20:100] = 255
    boxes = torch.tensor([[20.0, 30.0, 99.0, 89.0]]).expand(count, 4)
    return Batch(
        keys=[f"image{k}" for k in range(count)],
        sources=["noise"] * count,
        images=torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=rng, dtype=torch.uint8),
        features=None,
        input_hw=torch.full((count, 2), SIZE),
        masks=masks,
        prompts=Prompts.from_parts(boxes=boxes).with_image_index(torch.arange(count)),
        loss_candidates=torch.rand(count, 3 * POINTS, 2, generator=rng),
        loss_uniform=torch.rand(count, POINTS // 4, 2, generator=rng),
        click_draws=torch.rand(count, 3, generator=rng),
        path_draws=torch.zeros(count, 0),
    )


@pytest.fixture
def model() -> Sam:
    model = create_model("hq_test_tiny", device="cpu", dtype=torch.float64)
    fill_parameters(model)
    return model


REQUIRED = ["output_dir=nowhere", "data.train=[x]", "model.name=hq_test_tiny"]


def make_trainer(model: Sam, *overrides: str) -> Trainer:
    config = load_config(TrainConfig, None, [*REQUIRED, *overrides])
    plan = StepPlan(lambda epoch: range(8), 8, 2, 1, 1, epochs=12)
    return Trainer(model, plan, config, World())


def test_loss_and_gradients_are_the_published_formulas(model: Sam) -> None:
    batch = make_batch()
    logits = model.decode(image_features(model, batch), batch.prompts, candidates=(0, 1, 2, 3)).hq_logits
    assert logits is not None
    points = select_points(logits.detach(), batch.loss_candidates.double(), batch.loss_uniform.double())
    grid = (2 * points - 1)[:, :, None]
    p = F.grid_sample(logits, grid, align_corners=False)[:, 0, :, 0]
    t = F.grid_sample(batch.masks.double() / 255, grid, align_corners=False)[:, 0, :, 0]
    s = p.sigmoid()
    bce = -(t * s.log() + (1 - t) * (1 - s).log()).mean(1)
    dice = 1 - (2 * (s * t).sum(1) + 1) / (s.sum(1) + t.sum(1) + 1)
    losses = forward_loss(model, batch)
    torch.testing.assert_close(losses.bce, bce, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses.dice, dice, rtol=1e-9, atol=1e-12)

    expected = torch.autograd.grad((bce + dice).mean(), list(model.hq_parameters()))
    trainer = make_trainer(model)
    totals = trainer.train_step([batch])
    assert totals[2] == 2 and totals[3] == 0 and totals[5] == 1
    for parameter, gradient in zip(trainer.parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(totals[4], torch.stack([g.norm() for g in expected]).norm(), rtol=1e-8, atol=0)


def test_images_encoded_one_by_one_are_a_batch(model: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hqsam.engine.objective._LARGE_IMAGE", SIZE)
    batch = make_batch(3)
    assert batch.images is not None
    expected = model.image_encoder(model.preprocess_canvas(batch.images, batch.input_hw))
    for part, whole in zip(image_features(model, batch), expected, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-9)


def mixed_batch() -> Batch:
    """Three images of two, no and three prompts of several kinds."""
    batch = make_batch(5)
    box, points = batch.prompts[:1], Prompts.from_parts(torch.tensor([[[50.0, 60.0], [90, 80]]]), torch.ones(1, 2))
    drawn = Prompts.from_parts(masks=torch.ones(1, 1, SIZE // 4, SIZE // 4))
    prompts = Prompts.cat([box, drawn, points, box, box]).with_image_index(torch.tensor([0, 0, 2, 2, 2]))
    assert batch.images is not None
    names = ["a", "b", "c"]
    return replace(
        batch,
        keys=names,
        sources=names,
        images=batch.images[:3],
        input_hw=batch.input_hw[:3],
        path_draws=batch.path_draws[:3],
        prompts=prompts,
    )


def test_parts_by_image_have_the_losses_of_the_batch(model: Sam) -> None:
    batch = mixed_batch()
    parts = list(batch.by_image())
    assert [(part.keys, part.sources, len(part.masks)) for part in parts] == [(["a"], ["a"], 2), (["c"], ["c"], 3)]
    together = forward_loss(model, batch).total
    torch.testing.assert_close(torch.cat([forward_loss(model, part).total for part in parts]), together)


@pytest.mark.parametrize(
    ("trained", "kept", "options"),
    [
        ("hq", False, ["clicks.rounds=1", "loss.sum_share=0.5"]),
        ("hq", True, ["clicks.rounds=1", "loop.prompt_chunk=1"]),
        ("hq+decoder+encoder", False, ["clicks.rounds=1", "loss.sum_share=0.5", "model.drop_path=0.5"]),
        ("score", True, ["clicks.rounds=1"]),
    ],
)
def test_a_step_image_by_image_is_the_step_of_the_batch(
    model: Sam, monkeypatch: pytest.MonkeyPatch, trained: str, kept: bool, options: list[str]
) -> None:
    batch = mixed_batch()
    if kept:
        batch = replace(batch, images=None, features=image_features(model, batch))
    if trained == "score":
        model.set_score_head(ScoreHead())
        fill_parameters(model)
        model.double()
    config = load_config(TrainConfig, None, [*REQUIRED, f"model.trained={trained}", *options])
    model.set_trained(trained_parts(config, has_hq=True))
    if config.model.drop_path:
        model.image_encoder.set_drop_path(config.model.drop_path)
        rates = torch.tensor([path.rate for path in drop_paths(model.image_encoder)])
        batch = replace(batch, path_draws=torch.rand(3, len(rates), generator=torch.Generator().manual_seed(1)))
        dropped = batch.path_draws[:, rates > 0] < rates[rates > 0]
        assert dropped.any() and not dropped.all()
    model.train()
    monkeypatch.setattr("hqsam.engine.objective._LARGE_IMAGE", SIZE)
    one, other = (make_trainer(copy.deepcopy(model), f"model.trained={trained}", *options) for _ in range(2))
    calls: list[int] = []
    backward = Trainer.backward
    monkeypatch.setattr(Trainer, "backward", lambda self, part: calls.append(len(part.masks)) or backward(self, part))
    apart = one.train_step([batch])
    monkeypatch.setattr(Batch, "by_image", lambda self: iter([self]))
    together = other.train_step([batch])
    assert calls == [2, 3, 5]  # masks of the two images that have prompts, then of the batch
    torch.testing.assert_close(apart, together, rtol=1e-9, atol=1e-12)
    for parameter, expected in zip(one.parameters, other.parameters, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-7, atol=1e-11)


def test_small_inputs_go_as_a_batch(model: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "by_image", lambda self: pytest.fail("taken apart"))
    make_trainer(model).train_step([mixed_batch()])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_minimises_the_configured_loss(model: Sam, share: float) -> None:
    batch = mixed_batch()
    expected = forward_loss(model, batch, sum_share=share).total.sum()
    totals = make_trainer(model, f"loss.sum_share={share}").train_step([batch])
    torch.testing.assert_close(totals[6], expected.detach(), rtol=1e-9, atol=0)


def test_prompts_out_of_order_are_not_taken_apart() -> None:
    batch = mixed_batch()
    index = torch.tensor([2, 2, 2, 0, 0])
    with pytest.raises(ValueError, match="in the order of their images"):
        next(replace(batch, prompts=batch.prompts.with_image_index(index)).by_image())
    with pytest.raises(ValueError, match="3 images need prompts with an image_index"):
        next(replace(batch, prompts=replace(batch.prompts, image_index=None)).by_image())


def test_adam_moves_by_the_scheduled_rate(model: Sam) -> None:
    """The first step of Adam is the rate times the sign of the gradient, where the gradient is not tiny."""
    trainer = make_trainer(model, "optim.lr=0.01", "optim.warmup_steps=1")
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    trainer.train_step([make_batch()])
    for old, parameter in zip(before, trainer.parameters, strict=True):
        assert parameter.grad is not None
        clear = parameter.grad.abs() > 1e-4
        torch.testing.assert_close((old - parameter)[clear], 0.005 * parameter.grad.sign()[clear], rtol=1e-3, atol=0)


def test_clipping_limits_the_gradient_and_reports_it_unclipped(model: Sam) -> None:
    trainer = make_trainer(model, "optim.clip=0.001")
    totals = trainer.train_step([make_batch()])
    assert totals[4] > 0.001
    norm = torch.stack([p.grad.norm() for p in trainer.parameters if p.grad is not None]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.001, dtype=norm.dtype), rtol=1e-2, atol=0)


def test_kept_features_replace_the_encoder(model: Sam) -> None:
    batch = make_batch()
    features = image_features(model, batch)
    kept = replace(batch, images=None, features=features)
    assert torch.equal(forward_loss(model, batch).bce, forward_loss(model, kept).bce)
    assert not features.image_embedding.requires_grad
    with pytest.raises(ValueError, match="images or encoder features"):
        image_features(model, replace(batch, images=None))


def test_padding_is_zero_where_the_image_ends(model: Sam) -> None:
    """With the predictor's padding the grey of the canvas must not reach the encoder."""
    batch = make_batch(1)
    assert batch.images is not None
    images = batch.images.clone()
    images[:, :, 80:] = 255
    cut = torch.tensor([[80, SIZE]])
    one = image_features(model, replace(batch, input_hw=cut))
    other = image_features(model, replace(batch, images=images, input_hw=cut))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_nothing_cannot_be_trained() -> None:
    model = create_model("sam_test_tiny", device="cpu")
    model.set_trained([])
    with pytest.raises(ValueError, match="nothing of hq_test_tiny is trained"):
        make_trainer(model)


def pending(step: int, totals: list[float]) -> _Pending:
    return _Pending(step, torch.tensor(totals), [f"a{step}", f"b{step}"], 1e-3, 2, 0.5, 0.1)


def test_recorder_settles_many_steps_at_once() -> None:
    recorder = StepRecorder(World())
    recorder.add(pending(1, [2.0, 1.0, 2.0, 0.0, 3.0, 1.0, 3.0]))
    recorder.add(pending(2, [4.0, 1.0, 4.0, 1.0, 3.0, 1.0, 6.0]))
    results, stop = recorder.settle()
    assert stop and [(r.step, r.loss, r.bce, r.dice) for r in results] == [(1, 1.5, 1.0, 0.5), (2, 1.5, 1.0, 0.25)]
    assert recorder.settle() == ([], False)


@pytest.mark.parametrize(
    ("totals", "text"),
    [
        ([float("nan"), 1.0, 2.0, 0.0, 1.0, 0.0, float("nan")], "samples: a2, b2"),
        ([1.0, float("inf"), 2.0, 0.0, 1.0, 0.0, float("inf")], "samples: a2, b2"),
        ([1.0, 1.0, 2.0, 0.0, float("nan"), 1.0, 2.0], "the gradient is not"),
    ],
)
def test_recorder_names_the_first_bad_step(totals: list[float], text: str) -> None:
    recorder = StepRecorder(World())
    recorder.add(pending(1, [1.0, 1.0, 2.0, 0.0, 1.0, 1.0, 2.0]))
    recorder.add(pending(2, totals))
    recorder.add(pending(3, [float("nan")] * 7))
    with pytest.raises(NonFiniteLossError, match=f"at step 2; .*{text}"):
        recorder.settle()


def test_signals_are_remembered_and_handlers_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert not signals.received
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received and signals.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_outside_the_main_thread_are_left_alone() -> None:
    seen: list[bool] = []

    def work() -> None:
        with StopSignals() as signals:
            seen.append(signals.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_failed_write_leaves_the_old_states(model: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(model)
    states = StateFolder(tmp_path, World(), trainer.config)
    first = states.save(trainer)
    content = first.read_bytes()

    def full_disk(value: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    trainer.step = 1
    with pytest.raises(OSError, match="No space"):
        states.save(trainer)
    assert states.files() == [first] and first.read_bytes() == content
    assert states.find("auto") == first and states.find("none") is None


def test_leftovers_of_a_killed_process_are_removed(model: Sam, tmp_path: Path) -> None:
    trainer = make_trainer(model, "loop.keep_last=2")
    states = StateFolder(tmp_path, World(), trainer.config)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / f".step_0000009.pt.{0:032x}.tmp").write_bytes(b"half")
    assert states.find("auto") is None
    for step in (8, 9, 10, 100):
        trainer.step = step
        states.save(trainer)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_0000010.pt", "step_0000100.pt"]


def test_a_run_that_begins_again_keeps_its_own_states(model: Sam, tmp_path: Path) -> None:
    trainer = make_trainer(model, "loop.keep_last=2")
    states = StateFolder(tmp_path, World(), trainer.config)
    for trainer.step in (6, 8):
        states.save(trainer)
    trainer.step = 0  # resume=none in the same folder
    assert states.find("none") is None and len(states.files()) == 2
    for trainer.step in (2, 4, 6):
        path = states.save(trainer)
        assert states.find("auto") == path
    assert [file.name for file in states.files()] == ["step_0000004.pt", "step_0000006.pt"]


def test_seconds_of_steps_hold_the_device_and_not_what_is_saved(model: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for the device comes when numbers are fetched, after the step that it counts for began."""
    now, seconds = [0.0], []
    settle = StepRecorder.settle

    def passing(amount: float, result: Any = None) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            now[0] += amount
            return result(*arguments) if callable(result) else result

        return act

    monkeypatch.setattr("hqsam.engine.trainer.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(StepRecorder, "settle", passing(1, settle))
    log = SimpleNamespace(steps=lambda results: seconds.extend(result.seconds for result in results))
    validator = SimpleNamespace(best=None, catch_up=passing(10, True), run=passing(100, True))
    trainer = make_trainer(model, "loop.save_every=1", "loop.val_every=2")
    done = fit(trainer, [make_batch()] * 4, log, SimpleNamespace(save=passing(1000)), validator)  # type: ignore[arg-type]
    assert done and seconds == [0, 1, 1, 1]
