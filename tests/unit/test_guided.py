"""Upsampling along the edges of the picture: the fit by an independent one, the rule, the predictor's ways to it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from hqsam import Prompt, SamPredictor
from hqsam.answering import wanted_answer
from hqsam.geometry import resized_hw
from hqsam.guided import CERTAIN, EPSILON, LEAST, RADIUS, ImageGuide, _on_grid, guided_masks
from hqsam.heeding import heed_clicks
from hqsam.postprocess import full_size_masks
from hqsam.registry import build_model, model_spec
from hqsam.types import Prompts
from tests.helpers import fill_parameters

SIDE, GRID = 64, 16
BOX = [10.0, 12.0, 40.0, 40.0]


def photograph(hw, seed=0):
    """Smooth colours with a little noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(0, 255, (4, 5, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, hw[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def logits_of(hw, grid=GRID, seed=1, count=1):
    """(count, 1, grid, grid): random blobs with edges as soft as a decoder's."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(0, 6, (count, 5, 5)).astype(np.float32)
    return torch.from_numpy(np.stack([cv2.resize(one, (grid, grid)) for one in coarse]))[:, None]


def edge_between_cells(*shape):
    """A picture that changes within a cell, and logits whose zero is a pixel or two before it."""
    image = np.full((64, 64, 3), 40, np.uint8)
    image[:, 34:] = 200
    logits = torch.full((*shape, GRID, GRID), 3.0)
    logits[..., 8] = -1.5
    logits[..., 9:] = -3.0
    return image, logits


def bring(logits, image, *, side=SIDE, threshold=0.0):
    guide = ImageGuide(image, resized_hw(*image.shape[:2], side), side, logits.shape[-1])
    return guided_masks(logits, guide, threshold=threshold)


def plain(logits, image, *, side=SIDE, threshold=0.0):
    hw = image.shape[:2]
    return full_size_masks(logits, resized_hw(*hw, side), hw, side, threshold=threshold)


@pytest.mark.parametrize("hw", [(64, 64), (40, 64), (64, 43)])
def test_coefficients_are_those_of_least_squares_in_each_window(hw):
    """Ridge regression of probability on colour by numpy, window by window, and the mean of the fits around a cell."""
    image = photograph(hw)
    logits = logits_of(hw)[:, 0]
    got = ImageGuide(image, hw, SIDE, GRID).coefficients(logits)[0].double().numpy()
    bottom, right = -hw[0] % 4, -hw[1] % 4
    whole = np.pad(image.astype(float), [(0, bottom), (0, right), (0, 0)], constant_values=np.nan)
    colours = np.nanmean(whole.reshape(whole.shape[0] // 4, 4, -1, 4, 3), axis=(1, 3)) / 255
    gh, gw = colours.shape[:2]
    inside = 1 / (1 + np.exp(-logits[0].double().numpy()))

    def window(y, x):
        return (slice(max(0, y - RADIUS), y + RADIUS + 1), slice(max(0, x - RADIUS), x + RADIUS + 1))

    fits = np.empty((gh, gw, 6))
    for y in range(gh):
        for x in range(gw):
            c, p = colours[window(y, x)].reshape(-1, 3), inside[:gh, :gw][window(y, x)].ravel()
            centred, joint = c - c.mean(0), (c - c.mean(0)).T @ (p - p.mean()) / len(p)
            slopes = np.linalg.solve(centred.T @ centred / len(p) + EPSILON * np.eye(3), joint)
            fits[y, x] = *slopes, p.mean() - slopes @ c.mean(0), slopes @ joint, p.var()
    means = np.array([[fits[window(y, x)].reshape(-1, 6).mean(0) for x in range(gw)] for y in range(gh)])
    expected = np.stack([*means.transpose(2, 0, 1)[:4], means[..., 4] / (means[..., 5] + LEAST)])
    assert np.abs(got[:, :gh, :gw] - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(got[:, gh - 1, :gw], got[:, -1, :gw]) and np.array_equal(got[:, :, -1], got[:, :, gw - 1])


@pytest.mark.parametrize("hw", [(64, 64), (30, 47), (200, 130), (1, 90), (300, 2)])
def test_colours_of_a_cell_are_those_of_the_pixels_that_it_shows(hw):
    """By sampling each pixel of the input a hundredfold from the original; parts of pixels count as parts."""
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    input_hw = resized_hw(*hw, SIDE)
    got = _on_grid(image, input_hw, SIDE // GRID)
    if input_hw[0] <= hw[0] and input_hw[1] <= hw[1]:
        image = cv2.resize(image, input_hw[::-1], interpolation=cv2.INTER_AREA)
    places = [
        np.minimum(((np.arange(100 * n) + 0.5) / 100 * len_ / n).astype(int), len_ - 1)
        for n, len_ in zip(input_hw, image.shape, strict=False)
    ]
    fine = image[places[0]][:, places[1]] / 255.0
    for y, x in [(0, 0), (got.shape[1] - 1, got.shape[2] - 1), (got.shape[1] // 2, got.shape[2] // 3)]:
        block = fine[400 * y : 400 * (y + 1), 400 * x : 400 * (x + 1)]
        assert np.abs(got[:, y, x] - block.mean((0, 1))).max() < 0.02


def test_an_edge_of_the_picture_between_two_cells():
    """The bilinear mask ends a pixel or two before the picture's edge inside a cell, the guided one at it."""
    image, logits = edge_between_cells(1, 1)
    ends = np.arange(64) < 34
    assert not np.array_equal(plain(logits, image)[0, 0, 30].numpy(), ends)
    assert np.array_equal(bring(logits, image)[0, 0, 30].numpy(), ends)


@pytest.mark.parametrize("hw", [(64, 64), (40, 64), (150, 97), (31, 20), (1, 60), (300, 2)])
def test_masks_are_the_logits_above_the_threshold(hw):
    """Strips, all of them or where a mask can be, and whole pictures at once: one answer."""
    image, logits = photograph(hw), logits_of(hw, count=5).view(1, 5, GRID, GRID)
    for threshold in (0.0, 1.5, -7.0, 6.0):
        as_logits = bring(logits, image, threshold=None)
        masks = bring(logits, image, threshold=threshold)
        assert masks.shape == (1, 5, *hw) and masks.dtype == torch.bool and as_logits.dtype == torch.float32
        assert torch.equal(masks, as_logits > threshold)
    double = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # no products then: the way of a GPU
    try:
        whole = bring(logits, image, threshold=None)
        assert torch.equal(whole > 0, bring(logits, image))
    finally:
        torch.set_float32_matmul_precision(double)
    assert (whole - as_logits).abs().max() < 1e-3
    assert torch.equal(whole > 0, as_logits > 0)


def test_what_the_decoder_is_certain_of_stays():
    image, logits = photograph((96, 128)), logits_of((96, 128), count=3)
    before, after = (way(logits, image, threshold=None) for way in (plain, bring))
    certain = before.abs() >= CERTAIN + 1e-3
    assert certain.any() and torch.allclose(after[certain], before[certain], atol=1e-4)
    assert after[before.abs() < CERTAIN - 1e-3].abs().max() <= CERTAIN + 1e-3
    assert not torch.equal(after > 0, before > 0)


@pytest.mark.parametrize("shape", ["nothing", "one cell", "a line", "a hole"])
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_picture_of_one_colour_says_nothing_about_edges(shape, noise):
    """Where there is no edge the mask is the bilinear one, however thin it is: nothing is averaged away."""
    image = np.clip(np.random.default_rng(0).normal(120, noise, (64, 64, 3)), 0, 255).astype(np.uint8)
    logits = torch.full((1, 1, GRID, GRID), -4.5)
    if shape == "one cell":
        logits[..., 5, 7] = 3.0
    elif shape == "a line":
        logits[..., 5, :] = 2.0
    elif shape == "a hole":
        logits[..., 2:14, 2:14] = 4.5
        logits[..., 6:9, 6:9] = -4.5
    before, after = plain(logits, image), bring(logits, image)
    if noise == 0:
        assert torch.equal(before, after)
    else:
        assert before.sum() == 0 or (before & after).sum() > 0.8 * (before | after).sum()


def test_a_heeded_click_stays_heeded_where_the_picture_says_nothing():
    logits, sam = torch.full((1, 1, GRID, GRID), 4.0), torch.full((1, 1, GRID, GRID), 4.0)
    sam[..., 6:9, 6:9] = -3.0
    click = Prompts.from_parts(torch.tensor([[[30.0, 30.0]]]), torch.tensor([[0]]))
    heeded = heed_clicks(logits, sam, click, SIDE, 0.0)
    image = np.full((64, 64, 3), 90, np.uint8)
    assert not plain(heeded, image)[0, 0, 30, 30] and not bring(heeded, image)[0, 0, 30, 30]


def test_masks_stay_bilinear_beside_a_click():
    """On an edge of the picture too, and around the clicks of each mask alone."""
    image, logits = edge_between_cells(2, 2)
    coords = torch.tensor([[[33.0, 30.0], [70.0, -3.0]], [[33.0, 2.0], [0.0, 0.0]]])
    prompts = Prompts.from_parts(coords, torch.tensor([[1, 0], [0, -1]]))
    guide = ImageGuide(image, (64, 64), SIDE, GRID)
    free, held = guided_masks(logits, guide), guided_masks(logits, guide, prompts=prompts)
    before = plain(logits, image)
    for row, column in ((0, 30), (1, 2)):
        assert torch.equal(held[row, :, column], before[row, :, column])
        assert not torch.equal(free[row, :, column], before[row, :, column])
        assert torch.equal(held[row, :, 55], free[row, :, 55])
    none = Prompts.from_parts(boxes=torch.tensor([[20.0, 20.0, 40.0, 40.0]] * 2))
    assert torch.equal(guided_masks(logits, guide, prompts=none), free)


def test_what_is_not_finite_spreads_no_farther_than_in_the_bilinear_steps():
    image, logits = photograph((64, 64)), logits_of((64, 64))
    for value in (float("nan"), float("inf"), -float("inf")):
        broken = logits.clone()
        broken[..., 8, 8] = value
        before, after = (way(broken, image, threshold=None) for way in (plain, bring))
        assert torch.equal(before.isnan(), after.isnan())


def test_an_image_of_the_caller(recwarn):
    """Read-only, mirrored, or with a default device that is another: the same masks, and no warning."""
    image, logits = photograph((50, 64)), logits_of((50, 64))
    expected = bring(logits, image)
    readonly = image.copy()
    readonly.flags.writeable = False
    assert torch.equal(bring(logits, readonly), expected)
    assert torch.equal(bring(logits, image[:, ::-1].copy()[:, ::-1]), expected)
    with torch.device("meta"):
        guide = ImageGuide(image, resized_hw(50, 64, SIDE), SIDE, GRID)
    assert torch.equal(guided_masks(logits, guide), expected)
    assert not recwarn.list


def test_types_of_logits_and_none():
    image, logits = photograph((50, 64)), logits_of((50, 64), count=2)
    expected = bring(logits, image)
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        assert (bring(logits.to(kind), image) != expected).float().mean() < 0.02
    assert bring(logits[:0], image).shape == (0, 1, 50, 64)


def make_predictor(name="hq_test_vit"):
    return SamPredictor(fill_parameters(build_model(model_spec(name))).eval())


@pytest.fixture(scope="module")
def predictor():
    predictor = make_predictor()
    predictor.set_image(photograph((70, 100), seed=5))
    return predictor


def test_every_way_of_asking(predictor):
    """One box, many, tensors, many images, and by hand; logits to be fed back and scores stay as they are."""
    image = predictor._known_image().pixels
    masks, scores, low = predictor.predict(box=BOX, multimask_output=False, upsampling="guided")
    before = predictor.predict(box=BOX, multimask_output=False)
    assert not np.array_equal(masks, before[0])
    assert np.array_equal(scores, before[1]) and np.array_equal(low, before[2])
    by_hand = bring(torch.from_numpy(low)[None], image, side=predictor.model.image_size)
    assert np.array_equal(masks, by_hand[0].numpy())
    logits = predictor.predict(box=BOX, multimask_output=False, upsampling="guided", return_logits=True)[0]
    assert np.array_equal(logits > 0, masks)
    many = predictor.predict(box=[BOX, BOX], multimask_output=False, upsampling="guided")[0]
    assert np.array_equal(many[1], masks)
    boxes = torch.from_numpy(predictor.transform.apply_boxes(np.array([BOX]), predictor.original_size))
    tensors = predictor.predict_torch(None, None, boxes.float(), multimask_output=False, upsampling="guided")
    assert np.array_equal(tensors[0][0].numpy(), masks)
    together = predictor.segment([image] * 2, [Prompt(box=BOX)] * 2, multimask_output=False, upsampling="guided")
    assert np.array_equal(together[1].masks[0], masks)
    three = predictor.predict(box=BOX, candidates="all", upsampling="guided")
    assert np.array_equal(
        three[0], bring(torch.from_numpy(three[2])[None], image, side=predictor.model.image_size)[0].numpy()
    )


@pytest.mark.parametrize("kind", ["bfloat16", "autocast"])
def test_in_half_precision(kind):
    predictor = make_predictor()
    if kind == "bfloat16":
        predictor.model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        predictor.set_image(photograph((70, 100), seed=5))
        masks, _, low = predictor.predict(box=BOX, multimask_output=False, upsampling="guided", refine="again")
        x, y = (int(BOX[0] + BOX[2]) // 2, int(BOX[1] + BOX[3]) // 2)
        click = {"point_coords": [[x, y]], "point_labels": [int(not masks[0, y, x])], "mask_input": low}
        heeded, _, _ = predictor.predict(
            box=BOX, **click, multimask_output=False, upsampling="guided", heed_clicks=True
        )
    by_hand = bring(torch.from_numpy(low)[None], predictor._known_image().pixels, side=predictor.model.image_size)
    assert np.array_equal(masks, by_hand[0].numpy()) and low.dtype == np.float32
    assert heeded[0, y, x] != masks[0, y, x]


def test_the_models_default_is_for_hq_masks_of_a_known_image(predictor, monkeypatch):
    guided = {f: ask(predictor, fusion=f, upsampling="guided") for f in ("sam", "hq", "sum")}
    bilinear = {f: ask(predictor, fusion=f) for f in ("sam", "hq", "sum")}
    assert all(not np.array_equal(guided[f], bilinear[f]) for f in guided)
    monkeypatch.setattr(predictor.model, "default_upsampling", "guided")
    assert np.array_equal(ask(predictor, fusion="sam"), bilinear["sam"])
    assert all(np.array_equal(ask(predictor, fusion=f), guided[f]) for f in ("hq", "sum"))
    assert np.array_equal(ask(predictor, upsampling="bilinear"), bilinear["sum"])
    blind = SamPredictor(predictor.model)
    blind.load_features(predictor.get_features())
    assert np.array_equal(ask(blind), bilinear["sum"])
    with pytest.raises(ValueError, match="upsampling='guided' needs the picture itself"):
        ask(blind, upsampling="guided")
    pixels = predictor._known_image().pixels
    resized = predictor.transform.apply_image(pixels)
    blind.set_torch_image(torch.from_numpy(resized).permute(2, 0, 1)[None], pixels.shape[:2])
    assert np.array_equal(ask(blind), bilinear["sum"])
    blind.load_features(predictor.get_features(), predictor._known_image().pixels)
    assert np.array_equal(ask(blind), guided["sum"])


def ask(predictor, **options):
    return predictor.predict(box=BOX, multimask_output=False, **options)[0]


def test_unknown_ones_are_refused(predictor):
    with pytest.raises(ValueError, match="upsampling must be one of"):
        ask(predictor, upsampling="cubic")
    with pytest.raises(ValueError, match="upsampling must be one of"):
        wanted_answer(predictor.model, multimask=True, return_logits=False, upsampling="sharp")


def test_beside_a_zoom():
    """Both passes follow the picture: inside the crop the second, outside it the first."""
    predictor = make_predictor()
    image = photograph((200, 260), seed=3)
    predictor.set_image(image)
    box = [20.0, 30.0, 60.0, 70.0]
    options = {"box": box, "multimask_output": False}
    zoomed = predictor.predict(refine="zoom", **options)[0]
    both = predictor.predict(refine="zoom", upsampling="guided", **options)[0]
    logits = predictor.predict(refine="zoom", upsampling="guided", return_logits=True, **options)[0]
    assert np.array_equal(logits > 0, both) and not np.array_equal(both, zoomed)
    alone = predictor.predict(refine="none", upsampling="guided", **options)[0]
    changed = np.argwhere((both != alone)[0])
    assert len(changed) and changed.max(0)[1] < 200  # the crop is around the box
