"""Many images with ragged prompts, all candidates, the recommended fusion, number types."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hqsam import Prompt, SamPredictor, segmentation
from hqsam.answering import wanted_answer
from hqsam.encoding import encode_images
from hqsam.engine.evaluation.decoding import decode_boxes, encode_each
from hqsam.refine import asked_again
from hqsam.registry import build_model, model_spec
from hqsam.segmentation import answer_confident_prompts
from hqsam.types import Prompts
from tests.helpers import fill_parameters

BOX = [10.0, 12.0, 40.0, 40.0]


def make_predictor(name="hq_test_vit"):
    return SamPredictor(fill_parameters(build_model(model_spec(name))).eval())


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    sizes = [(48, 80), (64, 64), (100, 50), (31, 47)]
    return [generator.integers(0, 256, (*sizes[i % 4], 3), dtype=np.uint8) for i in range(16)]


def ragged(images):
    """Up to six prompts an image, of every kind; none for some."""
    generator = np.random.default_rng(1)
    everything = []
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        asked = []
        for kind in range(number % 7):
            points, labels = generator.uniform(0, 30, (1 + kind, 2)), generator.integers(0, 2, 1 + kind)
            mask = generator.random((height, width)) < 0.5
            asked.append(
                [
                    Prompt(box=BOX),
                    Prompt(points, labels),
                    Prompt(points, labels, BOX),
                    Prompt(mask=mask),
                    Prompt(points, labels, mask=mask),
                    Prompt(box=BOX, mask=mask),
                ][kind]
            )
        everything.append(asked)
    return everything


@pytest.mark.parametrize("name", ["hq_test_vit", "hq_test_tiny", "sam_test_vit"])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_sixteen_images_equal_one_by_one(name, batch_size, images):
    predictor = make_predictor(name)
    prompts = ragged(images)
    together = predictor.segment(images, prompts, return_logits=True, batch_size=batch_size)
    assert not predictor.is_image_set and len(together) == 16
    for image, asked, result in zip(images, prompts, together, strict=True):
        assert len(result.masks) == len(result.scores) == len(result.logits) == len(asked)
        predictor.set_image(image)
        for row, prompt in enumerate(asked):
            alone = predictor.predict(prompt.points, prompt.labels, prompt.box, prompt.mask, return_logits=True)
            for a, b in zip(result, alone, strict=True):
                assert np.allclose(a[row], b, atol=2e-4)


def test_no_prompts_and_no_images(predictor, images):
    assert predictor.segment([], []) == []
    for options, count in (({}, 1), ({"fusion": "sam"}, 3), ({"candidates": "all"}, 3), ({"fusion": "hq"}, 1)):
        empty, one = predictor.segment(images[:2], [[], Prompt(box=BOX)], **options)
        assert empty.masks.shape == (0, count, 48, 80) and empty.masks.dtype == np.bool_
        assert empty.scores.shape == (0, count) and empty.logits.shape == (0, count, 32, 32)
        assert one.masks.shape == (1, count, 64, 64)


def test_errors_name_the_image(predictor, images):
    with pytest.raises(ValueError, match="2 images and 1 prompt lists"):
        predictor.segment(images[:2], [Prompt(box=BOX)])
    with pytest.raises(ValueError, match=r"image 1: box .* inverted"):
        predictor.segment(images[:2], [Prompt(box=BOX), Prompt(box=[30, 30, 1, 1])])
    with pytest.raises(ValueError, match="image 0: the image must be uint8"):
        predictor.segment([images[0].astype(float)], [Prompt(box=BOX)])
    with pytest.raises(ValueError, match="at least 1"):
        predictor.segment(images[:1], [Prompt(box=BOX)], batch_size=0)


def test_all_candidates_are_sams_with_hq(predictor, images):
    predictor.set_image(images[0])
    masks, scores, logits = predictor.predict(box=BOX, candidates="all")
    assert masks.shape == (3, 48, 80) and scores.shape == (3,) and logits.shape == (3, 32, 32)
    best, score, best_logits = predictor.predict(box=BOX)
    row = int(scores.argmax())
    assert np.array_equal(masks[row], best[0]) and scores[row] == score[0]
    assert np.array_equal(logits[row], best_logits[0])
    hq = predictor.predict(box=BOX, fusion="hq", candidates="all")[2]
    single = predictor.predict(box=BOX, multimask_output=False, candidates="all")[0]
    assert hq.shape == (1, 32, 32) and single.shape == (1, 48, 80)
    output = predictor.model.decode(predictor.get_features().image_features, _in_frame(predictor), candidates=(1, 2, 3))
    assert np.allclose(logits, (output.sam_logits + output.hq_logits)[0].detach().numpy(), atol=1e-4)
    assert predictor.predict(box=[BOX, BOX], candidates="all")[0].shape == (2, 3, 48, 80)
    with pytest.raises(ValueError, match="candidates must be one of"):
        predictor.predict(box=BOX, candidates="three")


def _in_frame(predictor):
    from hqsam.prompts import PromptFrame

    return PromptFrame.of(predictor.model, predictor.original_size).checked(Prompt(box=BOX))


def test_refining_through_the_predictor(predictor):
    """The small object is looked at again, in every way of asking; the logits are those of the first look."""
    image = np.random.default_rng(3).integers(0, 256, (200, 260, 3), dtype=np.uint8)
    box = [20.0, 30.0, 50.0, 60.0]
    predictor.set_image(image)
    plain = predictor.predict(box=box, multimask_output=False, return_logits=True)
    zoomed = predictor.predict(box=box, multimask_output=False, return_logits=True, refine="zoom")
    assert not np.allclose(plain[0], zoomed[0], atol=1e-2)
    assert np.array_equal(plain[1], zoomed[1]) and np.array_equal(plain[2], zoomed[2])
    many = predictor.predict(box=[box, box], multimask_output=False, refine="zoom")
    assert np.array_equal(many[0][1], zoomed[0] > 0)
    kept = predictor.get_features()
    for other in (SamPredictor(predictor.model), SamPredictor(predictor.model)):
        other.load_features(kept, image)
        image_of_caller = image.copy()
        assert np.array_equal(other.predict(box=box, multimask_output=False, refine="zoom")[0], many[0][1])
        assert np.array_equal(image, image_of_caller)
    together = predictor.segment(
        [image, image], [Prompt(box=box), []], multimask_output=False, return_logits=True, refine="zoom"
    )
    assert np.allclose(together[0].masks[0], zoomed[0], atol=2e-4) and len(together[1].masks) == 0


@pytest.mark.parametrize("refine", ["again", "again+again"])
@pytest.mark.parametrize("fusion", ["sam", "hq", "sum"])
def test_asking_again_is_feeding_the_answer_back(predictor, images, fusion, refine):
    predictor.set_image(images[0])
    options = {"multimask_output": False, "return_logits": True, "fusion": fusion}
    first = predictor.predict(box=BOX, **options)
    by_hand = first
    for _ in range(refine.count("again")):
        before, by_hand = by_hand, predictor.predict(box=BOX, mask_input=by_hand[2], **options)
    again = predictor.predict(box=BOX, refine=refine, **options)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(again, by_hand, strict=True))
    assert not np.allclose(again[2], before[2], atol=1e-3)
    together = predictor.segment([images[0]], [[Prompt(box=BOX)] * 2], refine=refine, **options)[0]
    assert np.allclose(together.logits[1], again[2], atol=1e-4)


def test_asking_again_settles_an_ambiguous_point(predictor, images):
    """The best of three is chosen first; with it as a prompt the question is clear, and the single mask the answer."""
    predictor.set_image(images[0])
    point = {"point_coords": [[40, 20]], "point_labels": [1], "return_logits": True}
    best = predictor.predict(**point)
    by_hand = predictor.predict(**point, mask_input=best[2], multimask_output=False)
    again = predictor.predict(**point, refine="again")
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(again, by_hand, strict=True))


def test_asked_again_in_the_place_of_a_mask_prompt_unless_the_answer_is_empty():
    given, answers = torch.full((3, 1, 4, 4), 7.0), torch.full((3, 1, 4, 4), 2.0)
    answers[1] = -1.0
    prompts = Prompts.from_parts(boxes=torch.zeros(3, 4), masks=given)
    prompts = replace(prompts, has_mask=torch.tensor([True, True, False]))
    again = asked_again(prompts, answers)
    assert again.has_mask.tolist() == [True, True, True]
    assert [float(mask.max()) for mask in again.masks] == [2.0, 7.0, 2.0]
    blank = asked_again(Prompts.from_parts(boxes=torch.zeros(3, 4)), answers)
    assert blank.has_mask.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="one mask a prompt"):
        asked_again(prompts, answers.expand(-1, 2, -1, -1))


@pytest.mark.parametrize("refine", ["again", "again+again"])
def test_asked_again_an_empty_sum_is_sams_mask(images, monkeypatch, refine):
    """Of an object of a few pixels HQ may see nothing: then all looks are SAM's. HQ alone says what it says."""
    predictor = make_predictor()
    predictor.set_image(images[0])
    options = {"box": BOX, "multimask_output": False}
    sam, _, sam_logits = predictor.predict(fusion="sam", refine=refine, **options)
    assert sam.any()
    decode = predictor.model.decode

    def doubting(*args, **kwargs):
        output = decode(*args, **kwargs)
        return output if output.hq_logits is None else output._replace(hq_logits=output.hq_logits - 1e4)

    monkeypatch.setattr(predictor.model, "decode", doubting)
    assert not predictor.predict(fusion="sum", refine="none", **options)[0].any()
    assert not predictor.predict(fusion="hq", refine=refine, **options)[0].any()
    masks, _, logits = predictor.predict(fusion="sum", refine=refine, **options)
    # SAM's mask beside an HQ token, nearly that of plain SAM
    assert (masks & sam).sum() > 0.9 * (masks | sam).sum()
    assert np.corrcoef(logits.ravel(), sam_logits.ravel())[0, 1] > 0.99
    together = predictor.segment([images[0]], [[Prompt(box=BOX)] * 2], multimask_output=False, refine=refine)[0]
    assert np.array_equal(together.masks[1], masks)
    (encoded,) = encode_each(predictor.model, images[:1])
    (evaluated,) = decode_boxes(predictor.model, encoded, np.array([BOX]), ("hq", "sum"), refine=refine)
    assert np.array_equal(evaluated["sum"].masks, masks) and not evaluated["hq"].masks.any()


def test_what_cannot_be_refined(predictor, images):
    predictor.set_image(images[0])
    for options in ({"candidates": "all"}, {"fusion": "sam"}):
        with pytest.raises(ValueError, match="one mask a prompt, not the 3 candidates"):
            predictor.predict(box=BOX, refine="zoom", **options)
    with pytest.raises(ValueError, match="refine must be one of"):
        predictor.predict(box=BOX, refine="twice")
    blind = SamPredictor(predictor.model)
    blind.load_features(predictor.get_features())
    with pytest.raises(ValueError, match="needs the picture itself"):
        blind.predict(box=BOX, refine="zoom")
    blind.set_image(images[0])
    blind.features = predictor.features.clone()  # put in by hand: of which image, nobody knows
    with pytest.raises(ValueError, match="needs the picture itself"):
        blind.predict(box=BOX, refine="zoom")


@pytest.mark.parametrize("fusion", ["sam", "hq", "sum"])
def test_a_recommended_fusion_is_the_default(images, fusion):
    predictor = make_predictor()
    predictor.set_image(images[0])
    expected = predictor.predict(box=BOX, fusion=fusion)[2]
    predictor.model.default_fusion = fusion
    assert np.array_equal(predictor.predict(box=BOX)[2], expected)
    assert np.array_equal(predictor.predict(box=BOX, fusion=fusion)[2], expected)
    hq = predictor.predict(box=BOX, hq_token_only=True)[2]
    assert np.array_equal(hq, predictor.predict(box=BOX, fusion="hq")[2])
    plain = make_predictor("sam_test_vit").model
    plain.default_fusion = fusion
    assert plain.resolve_fusion() == "sam"


def test_a_recommended_refinement_is_the_default_of_hq_masks(images):
    """Of single masks, and not of plain SAM's."""
    predictor = make_predictor()
    predictor.set_image(images[0])
    plain, again = ({f: logits_of(predictor, f, how) for f in ("sam", "hq", "sum")} for how in ("none", "again"))
    several = predictor.predict(box=BOX, candidates="all")[2]
    predictor.model.default_refine = "again"
    assert np.array_equal(logits_of(predictor, "sam"), plain["sam"])
    assert all(np.array_equal(logits_of(predictor, f), again[f]) for f in ("hq", "sum"))
    assert np.array_equal(logits_of(predictor, "sum", "none"), plain["sum"])
    assert np.array_equal(predictor.predict(box=BOX, candidates="all")[2], several)


def logits_of(predictor, fusion, refine=None):
    return predictor.predict(box=BOX, multimask_output=False, fusion=fusion, refine=refine)[2]


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "autocast"])
def test_number_types_of_the_results(images, kind):
    predictor = make_predictor()
    predictor.set_image(images[0])
    reference = predictor.predict(box=BOX, return_logits=True)
    if kind != "autocast":
        predictor.model.to(getattr(torch, kind))
    with torch.autocast("cpu", torch.bfloat16) if kind == "autocast" else nullcontext():
        predictor.set_image(images[0])
        masks, scores, logits = predictor.predict(box=BOX)
        values = predictor.predict(box=BOX, return_logits=True)
        many = predictor.segment(images[:2], [Prompt(box=BOX)] * 2)
    assert masks.dtype == np.bool_ and scores.dtype == logits.dtype == np.float32
    assert values[0].dtype == np.float32 and many[1].scores.dtype == np.float32
    scale = np.abs(reference[0]).max()
    assert np.abs(values[0] - reference[0]).max() <= 0.1 * scale and np.abs(scores - reference[1]).max() <= 0.1


class NoFloat64(TorchDispatchMode):
    """Stands in for devices without float64: none may be made, whatever the input's number type."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, result)):
            assert not (isinstance(value, torch.Tensor) and value.dtype == torch.float64), func
        return result


def test_no_float64_on_the_device(predictor, images):
    mask = np.ones((48, 80), bool)
    with NoFloat64():
        predictor.set_image(images[0])
        predictor.predict(np.array([[3.0, 4.0]]), np.array([1]), np.array(BOX), mask)
        predictor.predict(box=[BOX, BOX], mask_input=np.zeros((2, 1, 32, 32)), candidates="all")
        predictor.load_features(predictor.get_features())
        predictor.segment(images[:2], [[Prompt(box=BOX)], [Prompt([[1, 2]], [0])]])


def test_ready_made_tokens(predictor, images):
    """Sparse tokens of another origin join the prompt's own; filler changes nothing."""
    from hqsam.types import Prompts

    predictor.set_image(images[0])
    features = predictor.get_features().image_features
    prompts = _in_frame(predictor)
    tokens = torch.randn(1, 2, 256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        without, with_tokens, filled = (
            predictor.model.decode(features, p).sam_logits
            for p in (prompts, prompts.with_tokens(tokens), Prompts.cat([prompts, prompts.with_tokens(tokens)]))
        )
    assert not torch.allclose(without, with_tokens, atol=1e-3)
    assert torch.allclose(filled[0], without[0], atol=1e-4) and torch.allclose(filled[1], with_tokens[0], atol=1e-4)
    for wrong in (torch.zeros(1, 256), torch.zeros(2, 1, 256)):
        with pytest.raises(ValueError, match="tokens"):
            prompts.with_tokens(wrong)


@pytest.mark.parametrize(("fusion", "multimask"), [("sum", False), ("sum", True), ("sam", True)])
def test_many_prompts_are_answered_in_groups(predictor, images, fusion, multimask, monkeypatch):
    predictor.set_image(images[0])
    generator = np.random.default_rng(2)
    corners = np.sort(generator.uniform(1, 47, (23, 2, 2)), axis=1).reshape(23, 4)
    options = {"fusion": fusion, "multimask_output": multimask, "candidates": "all", "return_logits": True}
    whole = predictor.predict(box=corners, refine="none", **options)
    monkeypatch.setattr(segmentation, "GROUP", 5)
    for ours, theirs in zip(predictor.predict(box=corners, refine="none", **options), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    mixed = Prompts.from_parts(boxes=torch.from_numpy(corners).float(), image_index=torch.arange(23) % 2)
    features, _ = encode_images(predictor.model, images[:2])
    answer = wanted_answer(predictor.model, multimask=multimask, return_logits=False, fusion=fusion, candidates="all")
    answer = replace(answer, refine="none")
    logits, scores, rows = answer_confident_prompts(predictor.model, features, mixed, answer)
    assert rows is None and len(logits) == len(scores) == 23
    floor = float(scores.amax(1).median())
    some, their_scores, rows = answer_confident_prompts(predictor.model, features, mixed, answer, min_iou=floor)
    assert rows is not None and rows.tolist() == (scores.amax(1) > floor).nonzero()[:, 0].tolist()
    torch.testing.assert_close(some, logits[rows], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(their_scores, scores[rows], atol=1e-4, rtol=1e-4)
