"""Prompts whose masks would be dropped get none: what is left is what there was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hqsam.models import Sam
from hqsam.registry import build_model, model_spec
from hqsam.types import DecoderOutput, ImageFeatures, Prompts
from tests.helpers import fill_parameters

MODELS = {
    "plain": (model_spec("sam_test_vit"), False),
    "hq": (model_spec("hq_test_vit"), True),
    "hq, its SAM alone": (model_spec("hq_test_vit"), False),
    "a copy of SAM's token": (replace(model_spec("hq_test_vit"), head="sam_token"), True),
}


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> tuple[Sam, bool, ImageFeatures, Prompts]:
    """A model, whether HQ takes part, and eleven points on two images."""
    spec, use_hq = MODELS[request.param]
    model = build_model(spec).double().eval()
    fill_parameters(model, seed=3)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 128, 128, generator=generator).double()
    with torch.no_grad():
        features = model.image_encoder(images)
    points = 128 * torch.rand(11, 1, 2, generator=generator)
    prompts = Prompts.from_parts(points, torch.ones(11, 1, dtype=torch.int64))
    return model, use_hq, features, prompts.with_image_index(torch.arange(11) % 2)


def decode(case: tuple[Sam, bool, ImageFeatures, Prompts], min_iou: float | None, chunk: int = 4) -> DecoderOutput:
    model, use_hq, features, prompts = case
    with torch.no_grad():
        return model.decode(features, prompts, candidates=(1, 2, 3), use_hq=use_hq, min_iou=min_iou, chunk_size=chunk)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_what_is_left_is_what_there_was(case: tuple[Sam, bool, ImageFeatures, Prompts], chunk: int) -> None:
    everything = decode(case, None)
    assert everything.rows is None
    best = everything.iou.amax(dim=1)
    middle = float(best.sort().values[5:7].mean())
    left = decode(case, middle, chunk)
    assert left.rows is not None and 0 < len(left.rows) < 11
    assert torch.equal(left.rows, (best > middle).nonzero()[:, 0])
    torch.testing.assert_close(left.iou, everything.iou[left.rows], rtol=0, atol=1e-10)
    torch.testing.assert_close(left.sam_logits, everything.sam_logits[left.rows], rtol=0, atol=1e-9)
    assert (left.hq_logits is None) == (everything.hq_logits is None)
    if left.hq_logits is not None and everything.hq_logits is not None:
        torch.testing.assert_close(left.hq_logits, everything.hq_logits[left.rows], rtol=0, atol=1e-9)


def test_nothing_or_everything_may_be_left(case: tuple[Sam, bool, ImageFeatures, Prompts]) -> None:
    nothing, everything = decode(case, 1e9), decode(case, -1e9)
    assert nothing.rows is not None and len(nothing.rows) == 0
    assert nothing.sam_logits.shape == (0, 3, 32, 32) and nothing.iou.shape == (0, 3)
    assert everything.rows is not None and everything.rows.tolist() == list(range(11))


def test_no_prompts_and_no_candidates(case: tuple[Sam, bool, ImageFeatures, Prompts]) -> None:
    model, use_hq, features, prompts = case
    with torch.no_grad():
        none = model.decode(features, prompts[:0], candidates=(0,), use_hq=use_hq, min_iou=0.5)
        assert none.rows is not None and len(none.rows) == 0
        with pytest.raises(ValueError, match="min_iou is about candidates"):
            model.decode(features, prompts, candidates=(), use_hq=use_hq, min_iou=0.5)
