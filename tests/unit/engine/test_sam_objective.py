"""SAM's own loss: focal loss and dice by hand, which of the masks is back-propagated, what is shown next."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hqsam.engine.objective import image_features
from hqsam.engine.sam_objective import FOCAL_WEIGHT, forward_sam_loss, is_ambiguous, sam_terms
from hqsam.losses import focal_dice_per_mask
from hqsam.models import Sam
from hqsam.registry import create_model
from hqsam.types import DecoderOutput, Prompts
from tests.helpers import fill_parameters
from tests.unit.engine.test_trainer import make_batch

LOW = 8


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_focal_loss_and_dice_by_hand() -> None:
    """Two pixels of an object with p = 0.9 and 0.5, two of the ground with 0.2 and 0.5."""
    logits = torch.tensor([logit(0.9), logit(0.5), logit(0.2), logit(0.5)], dtype=torch.float64).view(1, 1, 2, 2)
    target = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    loss = focal_dice_per_mask(logits, target)
    inside = 0.25 * (0.1**2 * -math.log(0.9) + 0.5**2 * -math.log(0.5))
    outside = 0.75 * (0.2**2 * -math.log(0.8) + 0.5**2 * -math.log(0.5))
    assert loss.focal.item() == pytest.approx((inside + outside) / 4)
    assert loss.dice.item() == pytest.approx(1 - (2 * 1.4 + 1) / (2.1 + 2 + 1))


def test_focal_loss_without_focus_is_half_the_cross_entropy() -> None:
    logits = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = (torch.rand(3, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    loss = focal_dice_per_mask(logits, target, alpha=0.5, gamma=0.0)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    torch.testing.assert_close(loss.focal, entropy.mean((2, 3)) / 2)


def test_gradients_of_the_focal_loss() -> None:
    logits = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    target = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: tuple(focal_dice_per_mask(x, target)), (logits,))


@pytest.mark.parametrize("shapes", [((1, 1, 4, 4), (1, 1, 8, 8)), ((2, 1, 4, 4), (1, 1, 4, 4)), ((1, 4, 4), (1, 4, 4))])
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected floating logits \(N, M, h, w\)"):
        focal_dice_per_mask(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def disc(*widths: int) -> Tensor:
    """(1, M, LOW, LOW) logits of +-4 that hold so many columns from the left."""
    columns = torch.arange(LOW)
    rows = torch.stack([torch.where(columns < width, 4.0, -4.0).expand(LOW, LOW) for width in widths])
    return rows[None].double()


def truth(width: int) -> Tensor:
    """(1, 1, 4 LOW, 4 LOW) uint8 with as many low-resolution columns."""
    mask = torch.zeros(1, 1, 4 * LOW, 4 * LOW, dtype=torch.uint8)
    mask[..., : 4 * width] = 255
    return mask


def test_of_three_masks_the_best_alone_gets_a_gradient_and_all_three_scores_do() -> None:
    logits = disc(8, 1, 5, 7).requires_grad_()  # the truth has 4 columns: mask 2 is the best of 1, 2 and 3
    iou = torch.tensor([[0.9, 0.8, 0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    terms = sam_terms(DecoderOutput(logits, None, iou), truth(4), torch.tensor([True]), torch.float64)
    terms.total.sum().backward()
    assert logits.grad is not None and iou.grad is not None
    assert (logits.grad[0, 2] != 0).all() and (logits.grad[0, [0, 1, 3]] == 0).all()
    # IoU of 1, 5 and 7 columns with 4: 1/4, 4/5, 4/7; the mean of three squared errors
    errors = iou[0, 1:] - torch.tensor([1 / 4, 4 / 5, 4 / 7])
    torch.testing.assert_close(iou.grad[0], torch.cat([torch.zeros(1), 2 / 3 * errors]).detach())
    best = focal_dice_per_mask(logits[:, 2:3], (truth(4) > 0)[..., ::4, ::4].double())
    expected = FOCAL_WEIGHT * best.focal + best.dice + errors.square().mean()
    torch.testing.assert_close(terms.total, expected[0])
    # what the user sees has the highest predicted score, whatever is true
    assert torch.equal(terms.answer, logits[:, 1:2].detach()) and not terms.answer.requires_grad


def test_several_prompts_have_the_fourth_mask_alone() -> None:
    logits = disc(8, 1, 5, 7).requires_grad_()
    iou = torch.tensor([[0.9, 0.8, 0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    terms = sam_terms(DecoderOutput(logits, None, iou), truth(4), torch.tensor([False]), torch.float64)
    terms.total.sum().backward()
    assert logits.grad is not None and iou.grad is not None
    assert (logits.grad[0, 0] != 0).all() and (logits.grad[0, 1:] == 0).all()
    assert iou.grad[0].tolist() == pytest.approx([2 * (0.9 - 0.5), 0, 0, 0])
    assert torch.equal(terms.answer, logits[:, :1].detach())
    alone = sam_terms(DecoderOutput(logits[:, :1], None, iou[:, :1]), truth(4), None, torch.float64)
    for a, b in zip(terms, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_an_empty_object_and_an_empty_mask() -> None:
    """Nothing is nan: the focal loss and dice are small, and the score that is learned is 0."""
    iou = torch.full((1, 1), 0.5, dtype=torch.float64)
    terms = sam_terms(DecoderOutput(disc(0), None, iou), truth(0), None, torch.float64)
    probability = 1 / (1 + math.exp(4))
    assert terms.dice.item() == pytest.approx(1 - 1 / (64 * probability + 1))
    assert terms.bce.item() == pytest.approx(0.75 * probability**2 * -math.log(1 - probability))
    assert (terms.total - FOCAL_WEIGHT * terms.bce - terms.dice).item() == pytest.approx(0.25)


def test_what_counts_as_one_prompt() -> None:
    point, label = torch.zeros(1, 1, 2), torch.ones(1, 1)
    box, mask = torch.tensor([[1.0, 1, 5, 5]]), torch.zeros(1, 1, LOW, LOW)
    parts = [
        (Prompts.from_parts(point, label), True),
        (Prompts.from_parts(boxes=box), True),
        (Prompts.from_parts(masks=mask), True),
        (Prompts.from_parts(point.expand(1, 2, 2), label.expand(1, 2)), False),
        (Prompts.from_parts(point, label, box), False),
        (Prompts.from_parts(boxes=box, masks=mask), False),
    ]
    assert is_ambiguous(Prompts.cat([prompts for prompts, _ in parts])).tolist() == [single for _, single in parts]


@pytest.fixture
def model() -> Sam:
    model = create_model("sam_test_tiny", device="cpu", dtype=torch.float64)
    fill_parameters(model)
    return model


def test_the_first_round_asks_for_all_masks_and_later_ones_for_one(model: Sam) -> None:
    batch = make_batch(2)
    features = image_features(model, batch)
    output = model.decode(features, batch.prompts, candidates=(0, 1, 2, 3), use_hq=False)
    for first, ambiguous in ((True, torch.tensor([True, True])), (False, None)):
        part = output if first else DecoderOutput(output.sam_logits[:, :1], None, output.iou[:, :1])
        got = forward_sam_loss(model, batch, features, batch.prompts, first=first)
        for a, b in zip(got, sam_terms(part, batch.masks, ambiguous, torch.float64), strict=True):
            torch.testing.assert_close(a, b)
