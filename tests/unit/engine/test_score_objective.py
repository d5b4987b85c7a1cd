from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hqsam.engine.objective import forward_loss
from hqsam.engine.score_objective import score_terms, true_scores
from hqsam.metrics import boundary_iou, mask_iou
from hqsam.metrics.correlation import pearson
from hqsam.models import Sam, ScoreHead
from hqsam.registry import create_model
from hqsam.types import Prompts
from tests.helpers import fill_parameters
from tests.unit.engine.test_trainer import make_batch, make_trainer


@pytest.fixture
def model() -> Sam:
    model = create_model("hq_test_tiny", device="cpu")
    fill_parameters(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.set_score_head(ScoreHead())
    model.set_trained(["score"])
    return model


def test_true_scores_are_those_of_the_picture_without_its_padding() -> None:
    rng = np.random.default_rng(0)
    masks = torch.zeros(2, 1, 128, 128, dtype=torch.uint8)
    masks[:, :, 20:96, 30:128] = 255
    logits = torch.from_numpy(rng.normal(size=(2, 3, 32, 32)).astype(np.float32))
    logits[:, 0] = torch.nn.functional.avg_pool2d(masks[:, 0].float(), 4) - 128
    valid = torch.tensor([[1.0, 1.0], [0.75, 0.5]])
    found = true_scores(logits, masks, valid)
    assert found[:, 0].tolist() == [[1, 1], [1, 1]]
    truth = (torch.nn.functional.avg_pool2d(masks[:, 0].float(), 4) > 128).numpy()
    for row, (height, width) in enumerate([(32, 32), (24, 16)]):
        for k in range(3):
            pair = (logits[row, k, :height, :width] > 0).numpy(), truth[row, :height, :width]
            assert found[row, k].tolist() == pytest.approx([mask_iou(*pair), boundary_iou(*pair)])


def test_what_is_outside_the_picture_does_not_count() -> None:
    masks = torch.zeros(1, 1, 128, 128, dtype=torch.uint8)
    masks[:, :, :64] = 255
    inside = torch.full((1, 1, 32, 32), 5.0)
    assert true_scores(inside, masks, torch.tensor([[0.5, 1.0]])).tolist() == [[[1, 1]]]
    assert true_scores(inside, masks, torch.tensor([[1.0, 1.0]]))[0, 0, 0] == 0.5
    empty = -inside
    assert true_scores(empty, masks, torch.tensor([[1.0, 1.0]])).tolist() == [[[0, 0]]]
    assert true_scores(empty, 0 * masks, torch.tensor([[1.0, 1.0]])).tolist() == [[[1, 1]]]


def test_the_loss_is_the_squared_error_of_every_score(model: Sam) -> None:
    batch = make_batch(5)  # more than are decoded together
    terms = score_terms(model, batch, answer=True)
    hq = forward_loss(model, batch, answer=True)
    torch.testing.assert_close(terms.bce, hq.bce, rtol=1e-5, atol=1e-6)
    assert terms.answer is not None and hq.answer is not None
    torch.testing.assert_close(terms.answer, hq.answer, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        features = model.image_encoder(model.preprocess_canvas(batch.images, batch.input_hw))  # type: ignore[arg-type]
        output = model.decode(features, batch.prompts, candidates=(0, 1, 2, 3), own_scores=True)
    assert output.hq_logits is not None and output.own_scores is not None
    share = torch.ones(5, 2)
    sums = true_scores(output.sam_logits + output.hq_logits, batch.masks, share)  # (5, 4, 2)
    alone = true_scores(output.hq_logits, batch.masks, share)  # (5, 1, 2)
    expected = torch.stack([sums, alone.expand(-1, 4, -1)], dim=1)
    error = (output.own_scores - expected).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(terms.total.detach(), error, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_score_head_alone(model: Sam) -> None:
    score_terms(model, make_batch()).total.sum().backward()
    for name, parameter in model.named_parameters():
        mine = name.startswith("mask_decoder.score_head.")
        assert (parameter.grad is not None) == mine and parameter.requires_grad == mine, name


def test_training_makes_a_score_that_goes_with_the_truth(model: Sam) -> None:
    """Boxes that fit more or less: the random masks agree with the rectangle more or less."""
    batch = make_batch(8)
    rng = torch.Generator().manual_seed(1)
    corners = torch.rand(8, 2, generator=rng) * 60
    boxes = torch.cat([corners, corners + 20 + 40 * torch.rand(8, 2, generator=rng)], dim=1)
    batch.masks.zero_()
    for k in range(8):
        batch.masks[k, :, : 16 * k + 4] = 255
    with torch.no_grad():
        features = model.image_encoder(model.preprocess_canvas(batch.images, batch.input_hw))  # type: ignore[arg-type]
    prompts = Prompts.from_parts(boxes=boxes).with_image_index(torch.arange(8))
    batch = replace(batch, prompts=prompts, features=features)
    trainer = make_trainer(model, "model.trained=score", "optim.lr=0.01")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = float(trainer.train_step([batch])[6])
    for _ in range(25):
        last = float(trainer.train_step([batch])[6])
    assert last < first / 4
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("mask_decoder.score_head.") for name in moved)
    with torch.no_grad():
        output = model.decode(features, batch.prompts, own_scores=True)
    assert output.own_scores is not None and output.hq_logits is not None
    truth = true_scores(output.sam_logits + output.hq_logits, batch.masks, torch.ones(8, 2))[:, 0]
    value = pearson(output.own_scores[:, 0, 0, 0].tolist(), truth[:, 0].tolist())
    assert value is not None and value > 0.8
    assert (output.own_scores[:, 0, 0, 1] - truth[:, 1]).abs().max() < 0.2
