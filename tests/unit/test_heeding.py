"""Clicks that are heeded, where the mask with HQ alone does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hqsam import SamPredictor, segmentation
from hqsam.answering import Answer
from hqsam.heeding import heed_clicks
from hqsam.postprocess import full_size_masks
from hqsam.registry import build_model, model_spec
from hqsam.types import PAD, Prompts

SIDE = 64  # of the model's frame; logits are 16 cells, 4 pixels each


def _logits(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """(1, 1, 16, 16): 5 within boxes of cells x0, y0, x1, y1 (exclusive), -5 elsewhere."""
    logits = torch.full((1, 1, 16, 16), -5.0)
    for x0, y0, x1, y1 in boxes:
        logits[..., y0:y1, x0:x1] = 5.0
    return logits


def _click(x: float, y: float, label: int) -> Prompts:
    return Prompts.from_parts(torch.tensor([[[x, y]]]), torch.tensor([[label]]))


def test_a_negative_click_removes_what_sam_removes():
    object_, surplus, elsewhere = (1, 1, 6, 6), (8, 8, 11, 11), (13, 2, 15, 4)
    with_hq, sam = _logits(object_, surplus, elsewhere), _logits(object_)
    heeded = heed_clicks(with_hq, sam, _click(37, 37, 0), SIDE)
    assert torch.equal(heeded, _logits(object_, elsewhere))
    assert torch.equal(with_hq, _logits(object_, surplus, elsewhere))  # the argument is left alone


def test_a_positive_click_takes_what_sam_takes():
    heeded = heed_clicks(_logits((1, 1, 6, 6)), _logits((1, 1, 12, 6)), _click(40, 10, 1), SIDE)
    assert torch.equal(heeded, _logits((1, 1, 12, 6)))


def test_only_the_region_around_the_click_changes():
    """Two pieces that touch at a corner are two regions, and what SAM alone leaves out elsewhere stays."""
    with_hq, sam = _logits((2, 2, 4, 4), (4, 4, 6, 6), (8, 2, 14, 8)), _logits((10, 2, 14, 8))
    heeded = heed_clicks(with_hq, sam, _click(9, 9, 0), SIDE)
    assert torch.equal(heeded, _logits((4, 4, 6, 6), (8, 2, 14, 8)))


def test_the_region_takes_sams_own_numbers():
    with_hq = _logits((2, 2, 6, 6))
    sam = torch.linspace(-3, -1, 256).view(1, 1, 16, 16)
    heeded = heed_clicks(with_hq, sam, _click(12, 12, 0), SIDE)
    assert torch.equal(heeded[..., 2:6, 2:6], sam[..., 2:6, 2:6])
    assert torch.equal(heeded[..., 6:, :], with_hq[..., 6:, :])


@pytest.mark.parametrize(
    ("label", "sam"),
    [
        pytest.param(1, _logits(), id="heeded already"),
        pytest.param(0, _logits((1, 1, 6, 6)), id="SAM does not heed it either"),
    ],
)
def test_nothing_to_do_gives_the_same_tensor(label, sam):
    with_hq = _logits((1, 1, 6, 6))
    assert heed_clicks(with_hq, sam, _click(12, 12, label), SIDE) is with_hq


def test_what_is_no_click_changes_nothing():
    """Corners of boxes, points that are ignored, and the filler of batches."""
    box = Prompts.from_parts(boxes=torch.tensor([[8.0, 8.0, 20.0, 20.0]]))
    ignored = _click(12, 12, -1)
    filler = Prompts(torch.tensor([[[12.0, 12.0]]]), torch.tensor([[PAD]]))
    for prompts in (box, ignored, filler):
        with_hq = _logits((1, 1, 6, 6))
        assert heed_clicks(with_hq, _logits(), prompts, SIDE) is with_hq


def test_every_prompt_click_and_mask_for_itself():
    """Two prompts of two clicks with two masks each; only the second mask of the first and one click of the second."""
    surplus, kept = (8, 8, 11, 11), (1, 1, 6, 6)
    full = _logits(kept, surplus)
    with_hq = torch.cat([torch.cat([_logits(kept), full], 1), torch.cat([full, full], 1)])
    sam = torch.cat([torch.cat([_logits(), _logits(kept)], 1), torch.cat([_logits(kept), full], 1)])
    prompts = Prompts.from_parts(
        torch.tensor([[[37.0, 37.0], [12.0, 12.0]]]).expand(2, -1, -1), torch.tensor([[0, 1]]).expand(2, -1)
    )
    heeded = heed_clicks(with_hq, sam, prompts, SIDE)
    first, second = torch.cat([_logits(kept), _logits(kept)], 1), torch.cat([_logits(kept), full], 1)
    assert torch.equal(heeded, torch.cat([first, second]))


def test_a_click_that_is_heeded_already_keeps_what_is_nearer_to_it():
    """The region of the negative click holds the positive one, which SAM's mask would lose."""
    with_hq, sam = _logits((1, 1, 12, 4)), _logits((1, 1, 3, 4))
    prompts = Prompts.from_parts(torch.tensor([[[21.0, 9.0], [45.0, 9.0]]]), torch.tensor([[1, 0]]))  # cells 5 and 11
    heeded = heed_clicks(with_hq, sam, prompts, SIDE)
    assert torch.equal(heeded, _logits((1, 1, 8, 4)))


def test_the_pixel_of_the_click_is_heeded_and_not_its_cell_alone():
    """At the border of the region, certain cells of HQ's must not win over SAM's when the mask is upsampled."""
    with_hq, sam = torch.full((1, 1, 16, 16), 20.0), torch.full((1, 1, 16, 16), 0.1)
    sam[..., 2:9] = -1.0
    heeded = heed_clicks(with_hq, sam, _click(34, 34, 0), SIDE)
    full = [
        full_size_masks(logits, (SIDE, SIDE), (SIDE, SIDE), SIDE)[0, 0, 34, 34] for logits in (with_hq, sam, heeded)
    ]
    assert full == [True, False, False]


def test_clicks_at_and_beyond_the_edge():
    with_hq, sam = _logits((12, 12, 16, 16)), _logits()
    for place in (63.9, 64.0, 80.0):
        assert torch.equal(heed_clicks(with_hq, sam, _click(place, place, 0), SIDE), sam)


def test_no_prompts():
    nothing = Prompts(torch.zeros((0, 1, 2)), torch.zeros((0, 1), dtype=torch.int64))
    assert heed_clicks(torch.zeros((0, 1, 16, 16)), torch.zeros((0, 1, 16, 16)), nothing, SIDE).shape == (0, 1, 16, 16)


def _boxes(*boxes: tuple[tuple[int, int, int, int], float], elsewhere: float = -5.0) -> torch.Tensor:
    """(1, 1, 16, 16): values within boxes of cells x0, y0, x1, y1 (exclusive), later ones on top."""
    logits = torch.full((1, 1, 16, 16), elsewhere)
    for (x0, y0, x1, y1), value in boxes:
        logits[..., y0:y1, x0:x1] = value
    return logits


LARGE, SMALL = (0, 0, 16, 10), (12, 12, 14, 15)  # 160 and 6 cells: less than a twentieth of both


def _correction(x: int, y: int, label: int, before: torch.Tensor) -> Prompts:
    """A click into the middle of a cell, with the answer that it corrects."""
    points = torch.tensor([[[4 * x + 1.5, 4 * y + 1.5]]])
    return Prompts.from_parts(points, torch.tensor([[label]]), masks=before)


@pytest.mark.parametrize("left", [pytest.param(2.0, id="neither heeds it"), pytest.param(-0.5, id="heeded already")])
@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_a_correction_decides_what_responds_to_it(left, threshold):
    """The object moves by half of what the surplus does, and is certain."""
    before = _boxes((LARGE, 9.0), (SMALL, 4.0))
    after = _boxes((LARGE, 8.0), (SMALL, left))
    after[..., 12, 12] = -3.0  # of the surplus, the cell of the click moved most
    after[..., 14, 13] = 3.9  # this one hardly did
    heeded = heed_clicks(after, after, _correction(12, 12, 0, before), SIDE, threshold)
    expected = after.clone()
    expected[..., 12:15, 12:14] = torch.where(after[..., 12:15, 12:14] < threshold - 1, -3.0, threshold - 1)
    expected[..., 14, 13] = 3.9
    expected[..., 11:14, 11:14] = expected[..., 11:14, 11:14].clamp(max=threshold - 1)
    assert torch.equal(heeded, expected)


def test_a_positive_correction():
    before, after = _boxes((LARGE, 9.0)), _boxes((LARGE, 9.0), (SMALL, -1.0))
    heeded = heed_clicks(after, after, _correction(12, 13, 1, before), SIDE)
    assert ((heeded > 0) == (_boxes((LARGE, 9.0), (SMALL, 1.0), ((11, 12, 14, 15), 1.0)) > 0)).all()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(_boxes((LARGE, 9.0)), _boxes((LARGE, 2.0)), id="all of the object responds"),
        pytest.param(_boxes((LARGE, 9.0)), _boxes((LARGE, 9.0)), id="nothing responds"),
        pytest.param(_boxes((LARGE, 9.0)), _boxes((LARGE, 9.5)), id="the contrary"),
        pytest.param(_boxes((LARGE, 9.0)), _boxes((LARGE, 9.0), ((4, 4, 9, 5), 5.0)), id="certain of the contrary"),
    ],
)
def test_a_response_that_says_nothing_leaves_the_cells_of_the_click(before, after):
    heeded = heed_clicks(after, after, _correction(6, 4, 0, before), SIDE)
    expected = after.clone()
    expected[..., 3:6, 5:8] = -1.0
    assert torch.equal(heeded, expected)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize(
    ("before", "after", "decided"),
    [
        pytest.param(4.0, 3.1, True, id="over a quarter of the response at the click"),
        pytest.param(4.0, 3.15, False, id="below"),
        pytest.param(9.0, 3.9, True, id="not certain"),
        pytest.param(9.0, 4.1, False, id="certain"),
        pytest.param(-0.1, -3.0, False, id="not wrong before"),
        pytest.param(0.1, -3.0, True, id="wrong before"),
        pytest.param(0.5, 3.5, False, id="the contrary"),
    ],
)
def test_which_cells_respond_enough(before, after, decided, threshold):
    """The click's own cell moves by 3.5; the cell in question lies beyond those next to the click."""
    was, now = _boxes((LARGE, 9.0), ((10, 12, 15, 13), 4.0)), _boxes((LARGE, 9.0), ((10, 12, 15, 13), 0.5))
    was[..., 12, 14], now[..., 12, 14] = before, after
    was, now = was + threshold, now + threshold
    heeded = heed_clicks(now, now, _correction(11, 12, 0, was), SIDE, threshold)
    row = heeded[0, 0, 12] - threshold
    assert row[10:14].tolist() == [-1.0] * 4
    assert (row[14] == min(after, -1.0)) if decided else (row[14] - after).abs() < 1e-6


@pytest.mark.parametrize(("cells", "decided"), [(8, 8), (9, 4)])
def test_where_much_responds_a_stronger_response_is_asked_for(cells, decided):
    """A twentieth of the 169 cells before is 8, of those after 7; four respond as strongly as the click's."""
    was, now = _boxes((LARGE, 9.0), ((2, 13, 11, 14), 4.0)), _boxes(((0, 0, 16, 9), 9.0), ((2, 13, 11, 14), 3.8))
    now[..., 13, 2 : 2 + cells] = 3.0
    now[..., 13, 2:6] = 0.5
    heeded = heed_clicks(now, now, _correction(3, 13, 0, was), SIDE)
    assert (heeded[0, 0, 13, 2:11] == -1.0).sum() == decided


def test_each_prompt_is_held_against_its_own_mask():
    was = torch.cat([_boxes((LARGE, 9.0)), _boxes((LARGE, 9.0), (SMALL, 4.0))])
    now = _boxes((LARGE, 9.0), (SMALL, 1.0)).repeat(2, 1, 1, 1)
    both = replace(_correction(12, 12, 0, was[:1])[[0, 0]], masks=was)
    heeded = heed_clicks(now, -now, both, SIDE)
    assert torch.equal(heeded[0, 0, 12:15, 12:14], -now[0, 0, 12:15, 12:14])  # by SAM: its mask has nothing there
    assert (heeded[1, 0, 12:15, 12:14] == -1.0).all()


def test_clicks_of_other_prompts_and_clicks_that_agree_take_nothing_away():
    """Both are nearer to a part of the surplus."""
    was, now = _boxes((LARGE, 9.0), (SMALL, 4.0)), _boxes((LARGE, 9.0), (SMALL, 1.0))
    expected = torch.where(_boxes((SMALL, 1.0), ((11, 11, 14, 14), 1.0)) > 0, now.clamp(max=-1.0), now)
    first, other = (_correction(12, y, label, was) for y, label in ((12, 0), (14, 1)))
    both = replace(
        first[[0, 0]], coords=torch.cat([first.coords, other.coords]), kinds=torch.cat([first.kinds, other.kinds])
    )
    assert torch.equal(heed_clicks(now.repeat(2, 1, 1, 1), now.repeat(2, 1, 1, 1), both, SIDE)[:1], expected)
    points = torch.tensor([[[4 * 12 + 1.5, 4 * 12 + 1.5], [4 * 15 + 1.5, 4 * 14 + 1.5]]])
    agreeing = Prompts.from_parts(points, torch.tensor([[0, 0]]), masks=was)
    assert torch.equal(heed_clicks(now, now, agreeing, SIDE), expected)


def test_a_threshold_that_is_not_zero():
    """What is above zero and not above it is outside already."""
    was, now = _boxes((LARGE, 9.0), (SMALL, 0.3)), _boxes((LARGE, 9.0), (SMALL, 0.2))
    click = _correction(12, 12, 0, was)
    assert heed_clicks(now, now, click, SIDE, 0.5) is now
    assert heed_clicks(now, now, click, SIDE, 0.0) is not now


def test_following_sam_leaves_a_correction_its_cells():
    """The mask prompt has the positive click right; its region by SAM holds the negative one."""
    was, now = _boxes(((4, 4, 6, 6), 3.0), ((9, 4, 10, 5), 3.0)), _boxes(((4, 4, 6, 6), 2.0))
    sam = _boxes((LARGE, 8.0))
    points = torch.tensor([[[4 * 4 + 1.5, 4 * 4 + 1.5], [4 * 9 + 1.5, 4 * 4 + 1.5]]])
    heeded = heed_clicks(now, sam, Prompts.from_parts(points, torch.tensor([[0, 1]]), masks=was), SIDE)[0, 0]
    assert (heeded[3:6, 3:6] < 0).all() and heeded[4, 4] == -1.0
    assert heeded[4, 6] < 0 and heeded[4, 7:].min() == 8.0


def test_a_correction_keeps_what_is_nearer_to_a_click_that_says_the_contrary():
    before, after = _boxes((LARGE, 9.0), (SMALL, 4.0)), _boxes((LARGE, 9.0), (SMALL, 1.0))
    points = torch.tensor([[[4 * 12 + 1.5, 4 * 12 + 1.5], [4 * 12 + 1.5, 4 * 14 + 1.5]]])
    prompts = Prompts.from_parts(points, torch.tensor([[0, 1]]), masks=before)
    kept = heed_clicks(after, after, prompts, SIDE)[0, 0, 12:15, 12:14]
    assert kept.tolist() == [[-1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]]


def test_clicks_that_the_mask_prompt_has_right_go_by_sam():
    object_, surplus = (1, 1, 6, 6), (8, 8, 11, 11)
    with_hq, sam = _logits(object_, surplus), _logits(object_)
    prompts = _correction(9, 9, 0, _logits(object_))
    assert torch.equal(heed_clicks(with_hq, sam, prompts, SIDE), _logits(object_))
    neither = heed_clicks(with_hq, with_hq, prompts, SIDE)  # then the cells of the click are decided
    assert torch.equal(neither, torch.where(_logits((8, 8, 11, 11)) > 0, -1.0, with_hq))


def test_prompts_without_a_mask_in_a_batch_with_masks():
    before, after = _boxes((LARGE, 9.0), (SMALL, 4.0)), _boxes((LARGE, 9.0), (SMALL, 1.0))
    both = _correction(12, 12, 0, before)[[0, 0]]
    both = replace(both, has_mask=torch.tensor([True, False]))
    heeded = heed_clicks(after.repeat(2, 1, 1, 1), after.repeat(2, 1, 1, 1), both, SIDE)
    assert heeded[0, 0, 14, 12] == -1.0 and torch.equal(heeded[1:], after)


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(3)
    model = build_model(model_spec("hq_test_tiny")).eval()
    model.head_state = "trained"
    predictor = SamPredictor(model)
    predictor.set_image(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    return predictor


@pytest.mark.parametrize("fusion", ["sum", "hq"])
def test_the_predictor_heeds_by_sams_mask_of_the_same_pass(predictor, fusion):
    """With random weights the masks disagree widely, so that the mask with HQ refuses some of many clicks."""
    changed = 0
    for x in range(2, 64, 6):
        prompt = {"point_coords": [[x, 20], [30, x * 0.7]], "point_labels": [0, 1], "multimask_output": False}
        plain = {name: predictor.predict(**prompt, fusion=name)[2] for name in ("sum", "hq")}
        heeded = predictor.predict(**prompt, fusion=fusion, heed_clicks=True)[2]
        differs = plain[fusion] != heeded
        changed += differs.any()
        assert np.allclose(heeded[differs], (plain["sum"] - plain["hq"])[differs], atol=1e-5)
    assert changed


@pytest.mark.parametrize("upsampling", ["bilinear", "guided"])
@pytest.mark.parametrize("refine", ["none", "again+again"])
@pytest.mark.parametrize("fusion", ["sum", "hq"])
def test_a_correction_of_the_predictors_answer_is_always_heeded(predictor, fusion, refine, upsampling):
    """Wherever it is put, and whatever random weights make of it."""
    options = {"fusion": fusion, "refine": refine, "upsampling": upsampling, "multimask_output": False}
    prompt = {"box": [5, 5, 55, 42], **options}
    masks, _, logits = predictor.predict(**prompt)
    assert masks.any() and not masks.all()
    for y, x in np.random.default_rng(0).integers((0, 0), masks.shape[1:], (12, 2)):
        click = {"point_coords": [[x, y]], "point_labels": [int(not masks[0, y, x])], "mask_input": logits}
        heeded = predictor.predict(**prompt, **click, heed_clicks=True)[0]
        assert heeded[0, y, x] != masks[0, y, x]


def test_each_of_three_sums_heeds_its_own_summand(predictor):
    prompt = {"point_coords": [[20, 20], [40, 30]], "point_labels": [0, 1], "candidates": "all"}
    plain, heeded = (predictor.predict(**prompt, heed_clicks=heed)[2] for heed in (False, True))
    sam = plain - predictor.predict(**prompt, fusion="hq")[2]
    differs = plain != heeded
    assert plain.shape == heeded.shape == (3, 32, 32) and differs.any()
    assert np.allclose(heeded[differs], sam[differs], atol=1e-5)


def test_plain_sam_and_boxes_stay_what_they_are(predictor):
    for prompt in ({"point_coords": [[20, 20]], "point_labels": [0], "fusion": "sam"}, {"box": [5, 5, 40, 30]}):
        plain = predictor.predict(**prompt, multimask_output=False)
        heeded = predictor.predict(**prompt, multimask_output=False, heed_clicks=True)
        assert all(np.array_equal(a, b) for a, b in zip(plain, heeded, strict=True))


@pytest.mark.parametrize("refine", ["again", "again+again"])
@pytest.mark.parametrize(("fusion", "heed"), [("sum", True), ("hq", True), ("sum", False), ("sam", True)])
def test_a_second_look_does_not_take_back(predictor, monkeypatch, fusion, heed, refine):
    """SAM's own mask may be inside in its second answer where it was not in the first one."""
    object_, surplus = (1, 1, 6, 6), (8, 8, 11, 11)
    first, second = _logits(object_), _logits(object_, surplus)
    if refine == "again+again":  # the last look takes back what the one before it did
        first = second
        answers = [_logits(object_), second]
    else:
        answers = [second]
    expected = _logits(object_) if heed and fusion != "sam" else second
    monkeypatch.setattr(segmentation, "answer_confident_prompts", lambda *_: (answers.pop(0), torch.ones(1, 1), None))
    answer = Answer(False, False, fusion, "best", refine=refine, heed_clicks=heed)
    click = _click(9.5 * predictor.model.image_size / 16, 9.5 * predictor.model.image_size / 16, 0)
    logits, _ = segmentation.ask_again(predictor.model, predictor.get_features(), click, first, answer)
    assert torch.equal(logits, expected) and not answers


def test_the_models_default(predictor, monkeypatch):
    """It is for masks that HQ takes part in, and gives way to a zoom that was asked for."""
    prompt = {"point_coords": [[50, 20], [30, 35]], "point_labels": [0, 1], "multimask_output": False}

    def logits(**options):
        return predictor.predict(**prompt, **options)[2]

    plain, heeded = (logits(heed_clicks=heed) for heed in (False, True))
    sam, zoomed = logits(fusion="sam"), logits(refine="zoom")
    assert not np.array_equal(plain, heeded) and np.array_equal(logits(), plain)
    monkeypatch.setattr(predictor.model, "default_heed_clicks", True)
    assert np.array_equal(logits(), heeded) and np.array_equal(logits(heed_clicks=False), plain)
    assert np.array_equal(logits(fusion="sam"), sam) and np.array_equal(logits(refine="zoom"), zoomed)
    monkeypatch.setattr(predictor.model, "default_refine", "zoom")
    assert np.array_equal(logits(), heeded)


def test_heeding_is_not_for_crops(predictor, monkeypatch):
    """One that the weights recommend gives way, one that was asked for is refused."""
    prompt = {"point_coords": [[20, 20]], "point_labels": [0], "multimask_output": False, "heed_clicks": True}
    expected = {name: predictor.predict(**prompt, refine=name)[2] for name in ("none", "again", "again+again")}
    for recommended, left in (("zoom", "none"), ("again+zoom", "again"), ("again+again+zoom", "again+again")):
        monkeypatch.setattr(predictor.model, "default_refine", recommended)
        assert np.array_equal(predictor.predict(**prompt)[2], expected[left])
    with pytest.raises(ValueError, match="pass refine='again'"):
        predictor.predict([[20, 20]], [0], multimask_output=False, refine="again+zoom", heed_clicks=True)
    for unknown in ("twice", "again+again+again", "zoom+again"):
        with pytest.raises(ValueError, match="refine must be one of"):
            predictor.predict([[20, 20]], [0], refine=unknown)


def test_many_clicks_take_no_copies_of_the_masks():
    """Values at the clicks are read where they are: 2000 clicks on one mask of 4 MB would make 8 GB."""
    with_hq = torch.full((1, 1, 1024, 1024), 5.0)
    prompts = Prompts.from_parts(torch.rand(1, 2000, 2) * 1024, torch.ones(1, 2000, dtype=torch.int64))
    assert heed_clicks(with_hq, -with_hq, prompts, 1024) is with_hq
