from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hqsam.answering import Answer
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.segmentation import answer_prompts
from hqsam.text import (
    Detections,
    ProjectionInfo,
    TextProjection,
    TextPrompter,
    load_clip,
    load_prompter,
    save_projection,
    segment_detections,
    segment_tokens,
)
from hqsam.text.prompting import choose_box
from hqsam.types import NOT_A_POINT, ImageFeatures, Prompts
from tests.helpers import fill_parameters
from tests.unit.text.tiny_text_models import build_clip_folder

BOXES = np.array([[5, 5, 30, 30], [20, 10, 55, 35], [0, 0, 59, 39]], np.float32)
FOUND = Detections(BOXES, np.array([0.9, 0.8, 0.7], np.float32), np.array([1, 0, 1]))


@pytest.fixture(scope="module", params=["hq_test_tiny", "sam_test_vit"])
def predictor(request: pytest.FixtureRequest) -> SamPredictor:
    model = create_model(request.param, device="cpu")
    fill_parameters(model)
    predictor = SamPredictor(model)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return predictor


def test_boxes_give_the_masks_of_predict(predictor: SamPredictor) -> None:
    found = segment_detections(predictor, FOUND)
    masks, scores, _ = predictor.predict(box=BOXES, multimask_output=False)
    np.testing.assert_array_equal(found.masks, masks[:, 0])
    np.testing.assert_array_equal(found.scores, scores[:, 0])
    np.testing.assert_array_equal(found.phrase_index, [1, 0, 1])
    assert found.detections is FOUND


def test_multimask_answers_with_the_best_scored(predictor: SamPredictor) -> None:
    found = segment_detections(predictor, FOUND, multimask=True, fusion="sam")
    masks, scores, _ = predictor.predict(box=BOXES, multimask_output=True, fusion="sam")
    np.testing.assert_array_equal(found.scores, scores.max(axis=1))
    np.testing.assert_array_equal(found.masks[1], masks[1, scores[1].argmax()])


def test_no_boxes_give_no_masks(predictor: SamPredictor) -> None:
    for points, labels in ((None, None), ([[3, 3]], [1])):
        found = segment_detections(predictor, FOUND.rows(slice(0)), points, labels)
        assert found.masks.shape == (0, 40, 60)
        assert found.masks.dtype == bool
        assert found.scores.shape == found.phrase_index.shape == (0,)


def test_points_choose_a_box_and_correct_it(predictor: SamPredictor) -> None:
    points, labels = np.array([[50, 20], [25, 12]]), np.array([1, 0])
    found = segment_detections(predictor, FOUND, points, labels)
    masks, _, _ = predictor.predict(points[None], labels[None], BOXES[1:2], multimask_output=False)
    np.testing.assert_array_equal(found.masks, masks[:, 0])
    assert found.detections is not None
    assert found.detections.scores.tolist() == pytest.approx([0.8])
    assert found.phrase_index.tolist() == [0]


@pytest.mark.parametrize(
    ("points", "labels", "row"),
    [
        ([[10, 10]], [1], 0),  # in the first and the third: the better one
        ([[50, 20]], [1], 1),
        ([[50, 20], [10, 30]], [1, 1], 2),  # the third holds both
        ([[2, 38]], [1], 2),
        ([[50, 20]], [0], 0),  # a background point chooses nothing
        ([[59.5, 39.5]], [1], 0),  # in no box
    ],
)
def test_choice_of_the_box(points: list[list[float]], labels: list[int], row: int) -> None:
    assert choose_box(FOUND, np.array(points), np.array(labels)) == row


def test_a_token_takes_part_like_any_other(predictor: SamPredictor) -> None:
    """SAM's own "not a point" vector, given as a text token, does what SAM does with it."""
    model = predictor.model
    token = model.prompt_encoder.not_a_point.weight.detach()[None]
    found = segment_tokens(predictor, token)
    prompts = Prompts(torch.zeros(1, 1, 2), torch.full((1, 1), NOT_A_POINT), padded=False)
    assert predictor.features is not None
    assert predictor.interm_features is not None
    features = ImageFeatures(predictor.features, predictor.interm_features[0].permute(0, 3, 1, 2))
    answer = Answer(multimask=False, return_logits=False, fusion=model.resolve_fusion(None), candidates="best")
    _, scores = answer_prompts(model, features, prompts, answer)
    np.testing.assert_allclose(found.scores, scores[:, 0].numpy(), atol=1e-6)
    assert found.masks.shape == (1, 40, 60)
    assert found.detections is None


def test_tokens_are_answered_one_by_one(predictor: SamPredictor) -> None:
    tokens = torch.randn(6, 1, 256, generator=torch.Generator().manual_seed(0))
    together = segment_tokens(predictor, tokens)
    for row in range(6):
        alone = segment_tokens(predictor, tokens[row : row + 1])
        np.testing.assert_allclose(together.scores[row], alone.scores[0], atol=1e-5)
        assert (together.masks[row] == alone.masks[0]).mean() > 0.999
    assert together.phrase_index.tolist() == list(range(6))


def test_points_go_in_together_with_the_token(predictor: SamPredictor) -> None:
    token = torch.randn(1, 1, 256, generator=torch.Generator().manual_seed(0))
    with_both = segment_tokens(predictor, token, [[10, 10]], [1]).scores
    text_alone = segment_tokens(predictor, token).scores
    point_alone = predictor.predict([[10, 10]], [1], multimask_output=False)[1]
    assert abs(with_both - text_alone) > 1e-6
    assert abs(with_both - point_alone) > 1e-6


@pytest.mark.parametrize("shape", [(0, 1, 256), (1, 2, 256), (1, 256), (1, 1, 255)])
def test_wrong_tokens(predictor: SamPredictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(N, 1, 256\)"):
        segment_tokens(predictor, torch.zeros(shape))


def test_wrong_points(predictor: SamPredictor) -> None:
    tokens = torch.zeros(2, 1, 256)
    with pytest.raises(ValueError, match="points go with one text, got 2"):
        segment_tokens(predictor, tokens, [[3, 3]], [1])
    for points, labels in (([[3, 3]], None), (None, [1])):
        with pytest.raises(ValueError, match="pass both or neither"):
            segment_tokens(predictor, tokens[:1], points, labels)
        with pytest.raises(ValueError, match="pass both or neither"):
            segment_detections(predictor, FOUND, points, labels)
    for points, labels in (([[3, 3]], [2]), ([3, 3], [1]), ([[3, np.nan]], [1]), ([[3, 3]], [1, 1])):
        with pytest.raises(ValueError, match=r"point|label"):
            segment_detections(predictor, FOUND, points, labels)
        with pytest.raises(ValueError, match=r"point|label"):
            segment_tokens(predictor, tokens[:1], points, labels)


def test_an_image_is_needed() -> None:
    predictor = SamPredictor(create_model("sam_test_tiny", device="cpu"))
    for call in (
        lambda: segment_tokens(predictor, torch.zeros(1, 1, 256)),
        lambda: segment_detections(predictor, FOUND),
        lambda: segment_detections(predictor, FOUND.rows(slice(0))),
    ):
        with pytest.raises(RuntimeError, match="no image is set"):
            call()


def test_a_prompter_is_loaded_with_the_clip_of_its_file(tmp_path: Path) -> None:
    name = build_clip_folder(tmp_path / "clip")
    path = tmp_path / "p.safetensors"
    projection = TextProjection(24)
    save_projection(projection, path, ProjectionInfo(clip=name, sam="hq_test_tiny", template="a photo of {}"))
    prompter, info = load_prompter(path)
    assert info.clip == name
    expected = projection(load_clip(name).encode_text(["a photo of a dog", "a photo of cats"]))
    torch.testing.assert_close(prompter.tokens(["a dog", "cats"]), expected.detach()[:, None])
    with pytest.raises(ValueError, match=r"takes embeddings of 25 numbers, CLIP .* gives 24"):
        TextPrompter(TextProjection(25), prompter.clip)
