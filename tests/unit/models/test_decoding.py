"""Logits of the padding, which no pixel of the image depends on, may be left out."""

from __future__ import annotations

import pytest
import torch

from hqsam.models import Sam
from hqsam.models.decoding import Shown
from hqsam.postprocess import upscale_logits
from hqsam.registry import create_model
from hqsam.types import OUTSIDE_LOGIT, ImageFeatures, Prompts
from tests.helpers import fill_parameters

SIDE, GRID = 128, 8
SIZES = [(128, 128), (128, 70), (65, 128), (64, 128), (128, 1), (17, 33)]


def build(name: str, **options: str) -> Sam:
    return fill_parameters(create_model(name, device="cpu", dtype=torch.float64, **options), 3).eval()


def inputs(count: int, images: int = 1) -> tuple[ImageFeatures, Prompts]:
    generator = torch.Generator().manual_seed(5)
    features = ImageFeatures(*(torch.randn(images, c, GRID, GRID, generator=generator).double() for c in (256, 32)))
    points = torch.rand(count, 1, 2, generator=generator).double() * SIDE
    index = torch.arange(count) % images
    return features, Prompts.from_parts(points, torch.ones(count, 1, dtype=torch.int64), image_index=index)


@pytest.mark.parametrize("input_hw", SIZES)
@pytest.mark.parametrize(
    ("name", "head", "use_hq"),
    [
        ("hq_test_vit", "early+final+mask", True),
        ("hq_test_vit", "token", True),
        ("hq_test_vit", "sam_decoder", True),
        ("hq_test_vit", "early+final+mask", False),
        ("sam_test_vit", None, False),
    ],
)
def test_pixels_of_the_image_stay_what_they_are(
    name: str, head: str | None, use_hq: bool, input_hw: tuple[int, int]
) -> None:
    model = build(name, **({} if head is None else {"head": head}))
    for count, images in ((2, 1), (6, 1), (6, 2)):
        features, prompts = inputs(count, images)
        with torch.no_grad():
            plain = model.decode(features, prompts, candidates=(0, 2), use_hq=use_hq)
            found = model.decode(features, prompts, candidates=(0, 2), use_hq=use_hq, shown=input_hw)
        torch.testing.assert_close(found.iou, plain.iou)
        for ours, whole in zip((found.sam_logits, found.hq_logits), (plain.sam_logits, plain.hq_logits), strict=True):
            assert (ours is None) == (whole is None)
            if ours is not None and whole is not None:
                sizes = input_hw, (50, 60), SIDE
                torch.testing.assert_close(upscale_logits(ours, *sizes), upscale_logits(whole, *sizes))
                right = slice(None), slice(None), *map(slice, Shown.of_input(input_hw, (GRID, GRID)).logits)
                torch.testing.assert_close(ours[right], whole[right])
                rest = ours.clone()
                rest[right] = OUTSIDE_LOGIT
                assert (rest == OUTSIDE_LOGIT).all()


def test_less_is_made_of_a_narrow_image() -> None:
    assert Shown.of_input((1024, 683), (64, 64)) == Shown(cells=(64, 44), logits=(256, 172))
    assert Shown.of_input((1, 1024), (64, 64)) == Shown(cells=(1, 64), logits=(2, 256))
    assert Shown.of_input((1000, 1024), (64, 64)).cells == (64, 64)


def test_prompts_that_score_too_low_and_none_at_all() -> None:
    model = build("hq_test_vit")
    features, prompts = inputs(6)
    with torch.no_grad():
        scores = model.decode(features, prompts).iou[:, 0]
        floor = float(scores.sort().values[2])
        found = model.decode(features, prompts, min_iou=floor, shown=(128, 40))
        none = model.decode(features, prompts[:0], shown=(128, 40))
    assert found.rows is not None and found.rows.tolist() == (scores > floor).nonzero()[:, 0].tolist()
    assert found.hq_logits is not None and found.hq_logits.shape == (3, 1, 32, 32)
    assert none.sam_logits.shape == (0, 1, 32, 32)


@pytest.mark.parametrize("input_hw", [(129, 128), (0, 128), (128, 0)])
def test_sizes_that_cannot_be(input_hw: tuple[int, int]) -> None:
    model = build("hq_test_vit")
    with pytest.raises(ValueError, match="cannot be of size"):
        model.decode(*inputs(1), shown=input_hw)


def test_own_scores_look_at_all_of_a_mask() -> None:
    from hqsam.models import ScoreHead

    model = build("hq_test_vit")
    model.set_score_head(ScoreHead())
    with pytest.raises(ValueError, match="beside `shown`"):
        model.decode(*inputs(1), own_scores=True, shown=(128, 64))
