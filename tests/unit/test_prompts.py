"""Masks as prompts, and prompts as objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hqsam import Prompt, SamPredictor
from hqsam.prompts import MASK_LOGIT, PromptFrame, as_prompts, mask_to_logits
from hqsam.registry import build_model, model_spec
from tests.helpers import fill_parameters

FRAME = PromptFrame((48, 80), 128, (32, 32))


@pytest.fixture(scope="module")
def predictor():
    predictor = SamPredictor(fill_parameters(build_model(model_spec("hq_test_vit"))).eval())
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    return predictor


def test_a_mask_becomes_logits_in_the_models_frame():
    mask = np.zeros((48, 80), bool)
    mask[:, :40] = True  # left half: the resized image fills 19 of 32 rows
    logits = mask_to_logits(mask, (32, 32))
    assert logits.shape == (1, 32, 32) and logits.dtype == torch.float32
    assert torch.allclose(logits[0, :19, :15], torch.tensor(MASK_LOGIT))
    assert torch.allclose(logits[0, :19, 17:], torch.tensor(-MASK_LOGIT))
    assert torch.all(logits[0, 19:] == -MASK_LOGIT)  # padding is outside


def test_soft_edges_lie_between():
    mask = np.zeros((64, 64), bool)
    mask[:, :33] = True  # an edge in the middle of a logit
    edge = mask_to_logits(mask, (32, 32))[0, 5]
    assert MASK_LOGIT > edge[16] > -MASK_LOGIT and edge[15] > edge[16] > edge[17]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2000, 3)])
def test_any_size(shape):
    assert mask_to_logits(np.ones(shape, np.uint8), (32, 32)).max() == pytest.approx(MASK_LOGIT)


def test_kinds_of_masks_say_the_same(predictor):
    mask = np.zeros((48, 80), bool)
    mask[10:40, 20:60] = True
    expected = predictor.predict(mask_input=mask, multimask_output=False)[2]
    for same in (mask.astype(np.uint8), mask.astype(np.uint8) * 255, mask.tolist()):
        assert np.array_equal(predictor.predict(mask_input=same, multimask_output=False)[2], expected)
    as_logits = mask_to_logits(mask, (32, 32)).numpy()
    assert np.array_equal(predictor.predict(mask_input=as_logits, multimask_output=False)[2], expected)


def test_a_mask_for_each_of_many_boxes(predictor):
    masks = np.zeros((3, 48, 80), bool)
    masks[0, 5:20, 5:20] = masks[1, 20:45, 30:70] = masks[2, :, 60:] = True
    boxes = np.array([[5, 5, 19, 19], [30, 20, 69, 44], [60, 0, 79, 47]])
    together = predictor.predict(box=boxes, mask_input=masks, return_logits=True)
    for row in range(3):
        alone = predictor.predict(box=boxes[row], mask_input=masks[row], return_logits=True)
        assert np.allclose(together[0][row], alone[0], atol=1e-4)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.zeros((48, 80), bool), "no pixel inside"),
        (np.ones((80, 48), bool), r"shape \(48, 80\) as a bool mask of the image, got \(80, 48\)"),
        (np.ones((1, 48, 80), np.uint8), r"shape \(48, 80\) as a uint8 mask"),
        (np.ones((48, 80), np.int64), "bool or uint8 mask of the image, got int64"),
        (np.ones((48, 80), np.float32), r"shape \(1, 32, 32\) as logits"),
    ],
)
def test_wrong_masks(predictor, mask, text):
    with pytest.raises(ValueError, match=text):
        predictor.predict(mask_input=mask)


def test_parts_come_together():
    prompts = FRAME.checked(Prompt([[4, 4]], [1], [2, 2, 30, 30], np.ones((48, 80), bool)))
    assert prompts.kinds.tolist() == [[1, 2, 3]] and prompts.masks.shape == (1, 1, 32, 32)
    assert prompts.coords.dtype == torch.float32
    assert FRAME.checked(Prompt([[4, 4]], [1])).kinds.tolist() == [[1, -1]]


def test_wrong_prompt_objects():
    with pytest.raises(ValueError, match="one object"):
        FRAME.checked(Prompt(box=[[2, 2, 30, 30]]))
    with pytest.raises(ValueError, match="no prompt given"):
        FRAME.checked(Prompt())
    with pytest.raises(ValueError, match="a Prompt or a list of them, got dict"):
        as_prompts([{"box": [1, 2, 3, 4]}])
