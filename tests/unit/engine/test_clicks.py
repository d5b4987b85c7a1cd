"""Corrections: where the click falls, what it says, and that the prompts are those of a user who clicks there."""

from __future__ import annotations

import pytest
import torch

from hqsam.engine.clicks import Rounds, correction_clicks, with_click, with_not_a_point
from hqsam.models import Sam
from hqsam.registry import create_model
from hqsam.types import NEGATIVE, PAD, POSITIVE, Prompts
from tests.helpers import fill_parameters

SIDE, LOW = 128, 32


def truth(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """uint8 masks with a rectangle (x0, y0, x1, y1) each; four numbers of -1: nothing."""
    masks = torch.zeros(len(boxes), 1, SIDE, SIDE, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[:, y0:y1, x0:x1] = 255
    return masks


def logits(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """Answers that are those rectangles."""
    low = torch.nn.functional.avg_pool2d(truth(*boxes).float(), SIDE // LOW)
    return low / 25.5 - 5


@pytest.mark.parametrize("draw", [0.0, 0.31, 0.77, 0.9999999])
def test_a_missed_part_is_clicked_positive_and_a_wrong_one_negative(draw: float) -> None:
    masks = truth((32, 32, 96, 64), (32, 32, 64, 64))
    answers = logits((32, 32, 64, 64), (32, 32, 96, 64))  # misses the right half; takes too much on the right
    coords, kinds = correction_clicks(answers, masks, torch.full((2,), draw))
    assert kinds.tolist() == [[POSITIVE], [NEGATIVE]]
    x, y = coords[:, 0].unbind(-1)
    assert ((x >= 64) & (x < 96) & (y >= 32) & (y < 64)).all()


def test_clicks_are_uniform_over_the_error() -> None:
    """8 x 8 low-resolution pixels are wrong: each is drawn equally often, in reading order of the number drawn."""
    count = 640
    masks = truth(*[(32, 32, 64, 64)] * count)
    draws = (torch.arange(count) + 0.5) / count
    coords, kinds = correction_clicks(torch.full((count, 1, LOW, LOW), -1.0), masks, draws)
    places, counts = coords[:, 0].unique(dim=0, return_counts=True)
    assert len(places) == 64 and (counts == 10).all() and (kinds == POSITIVE).all()
    assert places.min() == 33.5 and places.max() == 61.5  # centres of pixels four input pixels wide


def test_nothing_wrong_is_a_click_on_the_object_and_nothing_at_all_is_padding() -> None:
    masks = truth((32, 32, 64, 64), (-1, -1, -1, -1))
    coords, kinds = correction_clicks(logits((32, 32, 64, 64), (-1, -1, -1, -1)), masks, torch.tensor([0.5, 0.5]))
    assert kinds.tolist() == [[POSITIVE], [PAD]]
    assert ((coords[0] >= 32) & (coords[0] < 64)).all()


def test_float_and_byte_masks_agree() -> None:
    masks, answers, draws = truth((32, 32, 96, 64)), logits((32, 32, 64, 64)), torch.tensor([0.4])
    for a, b in zip(
        correction_clicks(answers, masks, draws), correction_clicks(answers, masks.float() / 255, draws), strict=True
    ):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def model() -> Sam:
    model = create_model("hq_test_tiny", device="cpu", dtype=torch.float64)
    fill_parameters(model)
    return model


@torch.no_grad()
def test_corrected_prompts_are_those_of_the_predictor(model: Sam) -> None:
    """A box, ten points and a mask as first prompts, two clicks more: as if a user had given all of it at once."""
    generator = torch.Generator().manual_seed(0)
    box = torch.tensor([[20.0, 30.0, 90.0, 80.0]])
    points = torch.rand(1, 10, 2, generator=generator) * SIDE
    mask = torch.randn(1, 1, LOW, LOW, generator=generator)
    first = Prompts.cat(
        [Prompts.from_parts(boxes=box), Prompts.from_parts(points, torch.ones(1, 10)), Prompts.from_parts(masks=mask)]
    )
    clicks = torch.rand(2, 3, 1, 2, generator=generator) * SIDE
    kinds = torch.tensor([[[1], [0], [1]], [[0], [0], [1]]])
    answer = torch.randn(3, 1, LOW, LOW, generator=generator)
    got = with_not_a_point(first)
    for place, kind in zip(clicks, kinds, strict=True):
        got = with_click(got, place, kind, answer)
    assert got.coords.shape[1] == 10 + 1 + 1 + 2

    image = torch.randn(1, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    features = model.image_encoder(image)
    together = model.decode(features, got)
    pairs, labels = clicks[:, :, 0].transpose(0, 1), kinds[:, :, 0].transpose(0, 1)  # (3, 2, 2), (3, 2)
    with_ones = torch.cat([torch.ones(1, 10), labels[1:2]], 1)
    plain = [
        Prompts.from_parts(pairs[:1], labels[:1], box, answer[:1]),
        Prompts.from_parts(torch.cat([points, pairs[1:2]], 1), with_ones, None, answer[1:2]),
        Prompts.from_parts(pairs[2:], labels[2:], None, answer[2:]),
    ]
    for row, prompt in enumerate(plain):
        alone = model.decode(features, prompt)
        for a, b in zip(alone[:3], together[:3], strict=True):  # what there is without a score head
            assert a is not None and b is not None
            torch.testing.assert_close(a[0], b[row], rtol=0, atol=1e-9)


def test_masks_stay_where_answers_are_not_fed() -> None:
    mask = torch.randn(1, 1, LOW, LOW)
    prompts = with_not_a_point(Prompts.from_parts(masks=mask))
    clicked = with_click(prompts, torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int64), None)
    assert clicked.masks is not None and torch.equal(clicked.masks, mask)


def test_the_eleven_rounds_of_sam() -> None:
    """Eight clicks, of which none is lost; a round without one at the drawn place, another at the end."""
    rounds = Rounds(8, 2)
    assert (rounds.count, rounds.num_draws) == (10, 10)
    count = 700
    masks = truth(*[(32, 32, 96, 64)] * count)
    prompts = with_not_a_point(Prompts.from_parts(boxes=torch.tensor([[32.0, 32, 95, 63]]).expand(count, 4)))
    first = prompts.coords.shape[1]
    draws = torch.full((count, rounds.num_draws), 0.5)
    draws[:, -1] = (torch.arange(count) + 0.5) / count
    counts = []
    for turn in range(1, rounds.count + 1):
        answer = torch.full((count, 1, LOW, LOW), -1.0 - turn)  # nothing found: every click is positive
        before, prompts = prompts, rounds.ask_again(prompts, turn, answer, masks, draws)
        assert prompts.masks is answer and prompts.has_mask is None
        assert torch.equal(prompts.coords[:, : before.coords.shape[1]], before.coords)
        assert torch.equal(prompts.kinds[:, : before.kinds.shape[1]], before.kinds)
        counts.append((prompts.kinds[:, first:] == POSITIVE).sum(dim=1))
    number = torch.stack(counts, dim=1)  # (count, 10) clicks so far
    added = number.diff(dim=1, prepend=torch.zeros(count, 1, dtype=torch.int64))
    assert (number[:, -1] == 8).all() and (added[:, -1] == 0).all()
    assert (added[:, 0] == 1).all() and (added[:, -2] == 1).all()  # between two clicks
    places, often = (added[:, :-1] == 0).nonzero()[:, 1].unique(return_counts=True)
    assert places.tolist() == [1, 2, 3, 4, 5, 6, 7] and (often == 100).all()


def test_one_round_without_a_click_is_the_last() -> None:
    rounds, masks = Rounds(1, 1), truth((32, 32, 96, 64))
    draws = torch.tensor([[0.5]])
    prompts = with_not_a_point(Prompts.from_parts(boxes=torch.tensor([[32.0, 32, 95, 63]])))
    answer = torch.full((1, 1, LOW, LOW), -1.0)
    clicked = rounds.ask_again(prompts, 1, answer, masks, draws)
    assert clicked.kinds[0, -1] == POSITIVE
    last = rounds.ask_again(clicked, 2, answer - 1, masks, draws)
    assert torch.equal(last.kinds, clicked.kinds) and torch.equal(last.masks, answer - 1)


@pytest.mark.parametrize("draw", [0.0, 0.9999999403953552])
def test_the_place_of_the_inner_round_has_bounds(draw: float) -> None:
    rounds, masks, draws = Rounds(2, 2), truth((32, 32, 96, 64)), torch.tensor([[0.5, 0.5, 0.5, draw]])
    prompts = with_not_a_point(Prompts.from_parts(boxes=torch.tensor([[32.0, 32, 95, 63]])))
    for turn in (1, 2, 3):
        prompts = rounds.ask_again(prompts, turn, torch.full((1, 1, LOW, LOW), -1.0), masks, draws)
    assert prompts.kinds[0, -3:].tolist() == [POSITIVE, PAD, POSITIVE]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0), "rounds >= 0"),
        ((8, 3), "mask_only 0, 1 or 2"),
        ((8, 1, False), "would ask the same question again"),
        ((1, 2), "between two clicks, but rounds is 1"),
    ],
)
def test_rounds_that_cannot_be(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rounds(*arguments)
