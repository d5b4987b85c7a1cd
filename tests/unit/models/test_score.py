"""The score head: what it may depend on, what it must leave alone, and what happens at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hqsam import SamPredictor, create_model
from hqsam.models import Sam, ScoreHead, select_masks
from hqsam.models.score import mask_statistics
from hqsam.types import DecoderOutput, ImageFeatures, Prompts
from tests.helpers import fill_parameters

ALL = (0, 1, 2, 3)


def with_head(seed: int = 3, dtype: torch.dtype | None = None) -> Sam:
    model = create_model("hq_test_tiny", device="cpu", dtype=dtype)
    fill_parameters(model, seed)
    head = ScoreHead()
    fill_parameters(head, seed)
    model.set_score_head(head)
    return model


@pytest.fixture(scope="module")
def model() -> Sam:
    return with_head()


@pytest.fixture(scope="module")
def features(model: Sam) -> ImageFeatures:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found: ImageFeatures = model.image_encoder(torch.randn(2, 3, 128, 128, generator=generator))
    return found


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    boxes = torch.tensor([[5.0, 5.0, 60.0, 70.0], [20.0, 30.0, 100.0, 90.0], [0.0, 0.0, 127.0, 127.0]])
    return Prompts.from_parts(boxes=boxes).with_image_index(torch.tensor([0, 1, 1]))


@torch.no_grad()
def test_scores_are_numbers_within_0_and_1_for_every_mask(
    model: Sam, features: ImageFeatures, prompts: Prompts
) -> None:
    output = model.decode(features, prompts, candidates=ALL, own_scores=True)
    assert output.own_scores is not None and output.own_scores.shape == (3, 2, 4, 2)
    assert output.own_scores.min() >= 0 and output.own_scores.max() <= 1
    assert output.own_scores.std() > 0.01
    nothing = model.decode(features, prompts[:0], candidates=ALL, own_scores=True)
    assert nothing.own_scores is not None and nothing.own_scores.shape == (0, 2, 4, 2)


@torch.no_grad()
def test_masks_are_the_same_bits_with_and_without_a_score_head(
    model: Sam, features: ImageFeatures, prompts: Prompts
) -> None:
    plain = create_model("hq_test_tiny", device="cpu")
    fill_parameters(plain, 3)
    before = plain.decode(features, prompts, candidates=ALL)
    for own in (False, True):
        after = model.decode(features, prompts, candidates=ALL, own_scores=own)
        assert all(torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True))
        assert (after.own_scores is not None) == own


@torch.no_grad()
def test_a_mask_has_one_score_whatever_is_decoded_with_it(
    model: Sam, features: ImageFeatures, prompts: Prompts
) -> None:
    together = model.decode(features, prompts, candidates=ALL, own_scores=True).own_scores
    assert together is not None
    for candidates in ((0,), (1, 2, 3)):
        part = model.decode(features, prompts, candidates=candidates, own_scores=True).own_scores
        torch.testing.assert_close(part, together[:, :, list(candidates)], rtol=0, atol=2e-5)
    alone = model.decode(features, prompts, candidates=ALL, own_scores=True, chunk_size=1).own_scores
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_fresh_head_repeats_sams_score(model: Sam, features: ImageFeatures, prompts: Prompts) -> None:
    fresh = create_model("hq_test_tiny", device="cpu")
    fill_parameters(fresh, 3)
    fresh.set_score_head(ScoreHead())
    output = fresh.decode(features, prompts, candidates=ALL, own_scores=True)
    expected = output.iou.clamp(0.02, 0.98)[:, None, :, None].expand(-1, 2, -1, 2)
    torch.testing.assert_close(output.own_scores, expected, rtol=0, atol=1e-6)


def test_no_gradient_leaves_the_head(features: ImageFeatures, prompts: Prompts) -> None:
    model = with_head()
    model.requires_grad_(True)
    output = model.decode(features, prompts, own_scores=True)
    assert output.own_scores is not None
    output.own_scores.sum().backward()
    got = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in model.named_parameters() if name.startswith("mask_decoder.score_head.")}


@pytest.mark.parametrize("value", [-40.0, 40.0, 0.0])
def test_empty_and_full_masks_have_finite_statistics(value: float) -> None:
    found = mask_statistics(torch.full((2, 3, 16, 16), value))
    assert found.shape == (2, 3, 9) and found.isfinite().all()
    assert found.min() >= 0 and found.max() <= 1
    if value == 40:
        assert (found[..., [0, 1, 3, 4, 5]] > 0.999).all()
    if value == -40:
        assert (found[..., [0, 1, 2, 3, 4, 5]] < 1e-6).all()


def test_statistics_by_hand() -> None:
    logits = torch.full((8, 8), -2.0)
    logits[2:6, 2:6] = 2.0
    p = torch.tensor(2.0).sigmoid().item()
    found = mask_statistics(logits).tolist()
    assert found[0] == pytest.approx(16 * p / (16 + 48 * (1 - p)), abs=1e-5)
    assert found[1] == pytest.approx(p, abs=1e-5)
    assert found[2] == pytest.approx(48 * (1 - p) / 16, abs=1e-5)
    assert found[3:6] == pytest.approx([1, 0, 0.5], abs=1e-5)


@torch.no_grad()
def test_scores_in_bfloat16(features: ImageFeatures, prompts: Prompts) -> None:
    model = with_head(dtype=torch.bfloat16)
    output = model.decode(features, prompts, own_scores=True)
    assert output.own_scores is not None and output.own_scores.isfinite().all()
    exact = with_head().decode(features, prompts, own_scores=True).own_scores
    assert exact is not None
    assert (output.own_scores - exact).abs().max() < 0.1


def output(own: list[float]) -> DecoderOutput:
    """Three candidates whose own IoU is given; SAM likes the first; boundary IoU goes the other way."""
    sam = torch.arange(3.0)[None, :, None, None].expand(1, 3, 4, 4)
    iou = torch.tensor([own])
    return DecoderOutput(
        sam,
        torch.full((1, 1, 4, 4), 10.0),
        torch.tensor([[0.9, 0.5, 0.4]]),
        torch.stack([torch.stack([iou, 1 - iou], dim=-1), torch.stack([iou / 2, iou / 4], dim=-1)], dim=1),
    )


def test_the_best_sum_is_chosen_by_the_score_that_is_asked_for() -> None:
    made = output([0.1, 0.3, 0.8])
    for source, row, value in (("sam", 0, 0.9), ("own", 2, 0.8), ("own_boundary", 0, 0.9)):
        logits, scores = select_masks(made, multimask=True, fusion="sum", score=source)  # type: ignore[arg-type]
        assert logits.shape == (1, 1, 4, 4) and (logits == 10 + row).all()
        assert scores.tolist() == [[pytest.approx(value)]]
    _, every = select_masks(made, multimask=True, fusion="sum", candidates="all", score="own")
    assert every[0].tolist() == pytest.approx([0.1, 0.3, 0.8])
    logits, score = select_masks(made, multimask=True, fusion="hq", score="own")  # beside SAM's best, the first
    assert (logits == 10).all() and score.tolist() == [[pytest.approx(0.05)]]


def test_scores_that_cannot_be(model: Sam, features: ImageFeatures, prompts: Prompts) -> None:
    plain = create_model("hq_test_tiny", device="cpu")
    fill_parameters(plain, 3)
    with pytest.raises(ValueError, match="needs a score head"):
        plain.resolve_score("own")
    with pytest.raises(ValueError, match="score must be one of"):
        plain.resolve_score("best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has SAM's score alone"):
        model.resolve_score("own", "sam")
    with pytest.raises(ValueError, match="at least one candidate"):
        model.decode(features, prompts, candidates=(), own_scores=True)
    with pytest.raises(ValueError, match="need a score head"):
        plain.decode(features, prompts, own_scores=True)
    with pytest.raises(ValueError, match="own_scores=True"):
        select_masks(output([0.1, 0.2, 0.3])._replace(own_scores=None), multimask=True, fusion="sum", score="own")
    with pytest.raises(ValueError, match="no HQ head"):
        create_model("sam_test_tiny", device="cpu").set_score_head(ScoreHead())
    with pytest.raises(ValueError, match="no score head to train"):
        plain.set_trained(["score"])


def test_the_default_is_sams_score_unless_the_model_has_another(model: Sam) -> None:
    assert model.resolve_score() == "sam"
    recommended = with_head()
    recommended.default_score = "own"
    assert recommended.resolve_score() == "own" and recommended.resolve_score("sam") == "sam"
    assert recommended.resolve_score(None, "sam") == "sam"
    recommended.set_score_head(None)
    assert recommended.resolve_score() == "sam"


def test_the_predictor_gives_the_score_that_is_asked_for(model: Sam) -> None:
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    predictor = SamPredictor(model)
    predictor.set_image(image)
    box = np.array([10.0, 10.0, 60.0, 50.0])
    found = {
        source: predictor.predict(box=box, multimask_output=False, score=source)
        for source in ("sam", "own", "own_boundary")
    }
    masks, _, logits = found["sam"]
    assert all(np.array_equal(each[0], masks) and np.array_equal(each[2], logits) for each in found.values())
    assert len({float(each[1][0]) for each in found.values()}) == 3
    default = predictor.predict(box=box, multimask_output=False)
    assert all(np.array_equal(a, b) for a, b in zip(default, found["sam"], strict=True))
    from hqsam import Prompt

    (result,) = predictor.segment([image], [Prompt(box=box)], multimask_output=False, score="own")
    assert result.scores[0, 0] == pytest.approx(found["own"][1][0], abs=1e-5)
    with pytest.raises(ValueError, match="score must be one of"):
        predictor.predict(box=box, score="hq")  # type: ignore[arg-type]
