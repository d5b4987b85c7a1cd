"""Full-size models through the predictor, float32, on photographs, against the published packages."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from hqsam import SamPredictor
from hqsam.images import read_image
from hqsam.registry import model_spec
from tests.helpers import ROOT, require_oracle
from tests.parity.oracles import build_pair, relative

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@cache
def photographs() -> dict[str, np.ndarray]:
    wide = read_image(ROOT / "data" / "samples" / "coffee.jpg")
    side = min(wide.shape[:2])
    return {"wide": wide, "square": np.ascontiguousarray(wide[:side, :side])}


# The square picture, which is not padded, goes through the small encoder alone: padding is the same for all.
CASES = [
    ("hq_vit_tiny", "wide"),
    ("hq_vit_tiny", "square"),
    ("sam_vit_tiny", "wide"),
    ("hq_vit_b", "wide"),
    ("sam_vit_b", "wide"),
]


@pytest.fixture(scope="module")
def predictors(request):
    spec = model_spec(request.param)
    oracle, ours = build_pair(spec)
    package = require_oracle("segment_anything" if request.param == "sam_vit_b" else "segment_anything_hq")
    return package.SamPredictor(oracle), SamPredictor(ours)


@pytest.mark.parametrize(("predictors", "shape"), CASES, indirect=["predictors"])
def test_predictor(predictors, shape):
    theirs, ours = predictors
    image = photographs()[shape]
    height, width = image.shape[:2]
    theirs.set_image(image)
    ours.set_image(image)
    assert (theirs.features - ours.features).abs().max() <= 5e-5
    hq = ours.model.has_hq
    if hq:
        assert (theirs.interm_features[0] - ours.interm_features[0]).abs().max() <= 5e-5
    points = np.array([[0.5 * width, 0.5 * height], [0.1 * width, 0.9 * height]])
    prompts = [
        {"point_coords": points, "point_labels": np.array([1, 0])},
        {"box": np.array([0.1 * width, 0.2 * height, 0.8 * width, 0.9 * height])},
        {"point_coords": points, "point_labels": np.array([1, 1]), "box": np.array([5, 5, width - 9.0, height - 9.0])},
    ]
    for prompt in prompts:
        for options in _options(hq):
            expected = theirs.predict(**prompt, **options)
            actual = ours.predict(**prompt, **options)
            _compare(expected, actual)
    fed_back = {**prompts[0], "mask_input": expected[2][:1]}
    _compare(theirs.predict(**fed_back), ours.predict(**fed_back))


def _options(hq: bool) -> list[dict[str, bool]]:
    if hq:
        return [{"multimask_output": True}, {"multimask_output": False, "hq_token_only": True}]
    return [{"multimask_output": True}, {"multimask_output": False}]


def _compare(expected, actual):
    masks, iou, logits = expected
    assert masks.shape == actual[0].shape and masks.dtype == actual[0].dtype == np.bool_
    assert (masks == actual[0]).mean() >= 0.9999
    assert np.abs(iou - actual[1]).max() <= 1e-5
    assert relative(torch.from_numpy(logits), torch.from_numpy(actual[2])) <= 5e-4
