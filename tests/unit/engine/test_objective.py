"""The loss of SAM's own masks against the rules of SAM's paper, and who gets gradients in which scope."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hqsam.engine.objective import forward_loss, image_features
from hqsam.losses import mask_at, select_points
from hqsam.models import Sam
from hqsam.registry import create_model
from tests.helpers import fill_parameters
from tests.unit.engine.test_trainer import make_batch


@pytest.fixture
def model() -> Sam:
    model = create_model("hq_test_tiny", device="cpu", dtype=torch.float64)
    fill_parameters(model)
    return model


def terms(logits: torch.Tensor, mask: torch.Tensor, candidates: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """BCE + dice of one (1, 1, h, w) map, written out."""
    points = select_points(logits.detach(), candidates[None].double(), uniform[None].double())
    grid = (2 * points - 1)[:, :, None]
    p = F.grid_sample(logits, grid, align_corners=False).flatten()
    t = F.grid_sample(mask[None].double() / 255, grid, align_corners=False).flatten()
    s = p.sigmoid()
    return F.binary_cross_entropy(s, t) + 1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1)


def test_a_trained_decoder_adds_the_loss_of_its_masks_and_scores(model: Sam) -> None:
    batch = make_batch(2)
    batch.masks[1, :, 90:] = 255  # the second object is another one
    frozen = forward_loss(model, batch)
    model.set_trained(["head", "decoder"])
    got = forward_loss(model, batch)
    assert torch.equal(got.bce, frozen.bce) and torch.equal(got.dice, frozen.dice)
    torch.testing.assert_close(frozen.total, frozen.bce + frozen.dice, rtol=0, atol=0)

    output = model.decode(image_features(model, batch), batch.prompts, candidates=(0, 1, 2, 3))
    truth = F.interpolate(batch.masks.double(), scale_factor=0.25, mode="bilinear") > 127.5
    for row in range(2):
        points = batch.loss_candidates[row], batch.loss_uniform[row]
        masks = torch.stack(
            [terms(output.sam_logits[row : row + 1, c : c + 1], batch.masks[row], *points) for c in range(4)]
        )
        inside = output.sam_logits[row] > 0
        overlap, union = (inside & truth[row]).sum((1, 2)), (inside | truth[row]).sum((1, 2))
        score = (output.iou[row] - overlap / union.clamp(min=1)).square().mean()
        expected = frozen.total[row] + masks[0] + masks[1:].min() + score
        torch.testing.assert_close(got.total[row], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_loss_judges_the_sum_that_users_get(model: Sam, share: float) -> None:
    batch = make_batch(2)
    alone, mixed = forward_loss(model, batch), forward_loss(model, batch, sum_share=share)
    output = model.decode(image_features(model, batch), batch.prompts)
    assert output.hq_logits is not None and mixed.answer is None
    for row in range(2):
        logits = (output.sam_logits + output.hq_logits)[row : row + 1]
        judged = terms(logits, batch.masks[row], batch.loss_candidates[row], batch.loss_uniform[row])
        expected = (1 - share) * alone.total[row] + share * judged
        torch.testing.assert_close(mixed.total[row], expected, rtol=1e-9, atol=0)
    assert torch.equal(mixed.bce, alone.bce) and torch.equal(mixed.dice, alone.dice)  # reported as ever: of HQ alone


def test_the_loss_of_the_sum_changes_the_head_alone(model: Sam) -> None:
    model.set_trained(["head"])
    forward_loss(model, make_batch(), sum_share=1.0).total.sum().backward()
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {"head"}


def test_the_loss_of_the_sum_leaves_sams_mask_to_its_own_loss(model: Sam) -> None:
    model.set_trained(["head", "decoder"])
    weight = model.mask_decoder.trunk.hypernetworks[0].layers[0].weight
    gradients = []
    for share in (0.0, 1.0):
        model.zero_grad()
        forward_loss(model, make_batch(), sum_share=share).total.sum().backward()
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("parts", [["head"], ["decoder", "head"]])
def test_gradients_reach_what_is_trained_and_nothing_else(model: Sam, parts: list[str]) -> None:
    model.set_trained(parts)  # type: ignore[arg-type]
    forward_loss(model, make_batch()).total.sum().backward()
    trained = {id(p) for group in model.trained_parameters().values() for p in group}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
        assert parameter.requires_grad == (id(parameter) in trained), name
    assert len(trained) == sum(name.startswith("mask_decoder.head.") for name, _ in model.named_parameters()) or (
        "decoder" in parts
    )


def test_the_answer_is_the_sum_that_a_user_sees(model: Sam) -> None:
    batch = make_batch()
    assert forward_loss(model, batch).answer is None
    answer = forward_loss(model, batch, answer=True).answer
    output = model.decode(image_features(model, batch), batch.prompts)
    assert answer is not None and output.hq_logits is not None and not answer.requires_grad
    torch.testing.assert_close(answer, output.sam_logits + output.hq_logits, rtol=1e-12, atol=1e-12)


def test_unknown_parts_and_plain_models_are_refused(model: Sam) -> None:
    with pytest.raises(ValueError, match="parts must be among"):
        model.set_trained(["neck"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="plain SAM has no HQ head"):
        create_model("sam_test_tiny", device="cpu").set_trained(["head"])


def test_only_trained_parts_leave_eval_mode(model: Sam) -> None:
    model.set_trained(["head"])
    model.train()
    assert model.mask_decoder.head.training and not model.mask_decoder.trunk.training
    model.set_trained(["head", "decoder"])
    assert model.mask_decoder.trunk.training and not model.image_encoder.training


def test_mask_at_reads_the_centres() -> None:
    mask = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8)
    low = mask_at(mask, (2, 4))
    expected = F.interpolate(mask.float(), (2, 4), mode="bilinear", align_corners=False) / 255
    torch.testing.assert_close(low, expected)
    assert torch.equal(mask_at(mask, (8, 8)), mask / 255)
