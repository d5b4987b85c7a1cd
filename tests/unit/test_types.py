from __future__ import annotations

import pytest
import torch

from hqsam.types import NOT_A_POINT, PAD, Prompts


def test_order_of_tokens():
    points, labels = torch.rand(2, 3, 2), torch.ones(2, 3, dtype=torch.int32)
    alone = Prompts.from_parts(points, labels)
    assert alone.kinds.tolist() == [[1, 1, 1, NOT_A_POINT]] * 2
    assert alone.coords[:, 3].eq(0).all()
    both = Prompts.from_parts(points, labels, torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    assert both.kinds.tolist() == [[1, 1, 1, 2, 3]] * 2
    assert both.coords[0, 3:].tolist() == [[1, 2], [3, 4]]
    assert not both.padded


def test_cat_pads_and_marks():
    a = Prompts.from_parts(boxes=torch.rand(2, 4))
    b = Prompts.from_parts(torch.rand(1, 4, 2), torch.zeros(1, 4), masks=torch.ones(1, 1, 8, 8))
    joined = Prompts.cat([a, b.with_image_index(torch.tensor([3]))])
    assert joined.kinds[0].tolist() == [2, 3, PAD, PAD, PAD] and joined.padded
    assert joined.has_mask.tolist() == [False, False, True]
    assert joined.image_index.tolist() == [0, 0, 3]
    assert len(joined[1:3]) == 2
    assert not Prompts.cat([a, a]).padded


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"points": torch.rand(1, 2, 2)}, "come together"),
        ({"points": torch.rand(2, 2, 2), "labels": torch.ones(2, 2), "boxes": torch.rand(1, 4)}, "number of prompts"),
        ({"points": torch.rand(2, 2), "labels": torch.ones(2, 2)}, "shape"),
        ({"points": torch.rand(2, 2, 2), "labels": torch.ones(2, 3)}, "kinds must have shape"),
        ({"boxes": torch.rand(1, 4), "masks": torch.rand(1, 8, 8)}, r"\(N, 1, h, w\)"),
    ],
)
def test_wrong_parts(arguments, text):
    with pytest.raises((ValueError, IndexError, RuntimeError), match=text):
        Prompts.from_parts(**arguments)


def test_cat_of_nothing():
    with pytest.raises(ValueError, match="no prompts"):
        Prompts.cat([])


def test_trimmed_prompts_say_the_same_with_less():
    box = Prompts.from_parts(boxes=torch.rand(1, 4))
    points = Prompts.from_parts(torch.rand(1, 4, 2), torch.ones(1, 4), masks=torch.ones(1, 1, 8, 8))
    joined = Prompts.cat([box, points])
    alone = joined[:1].trimmed()
    assert torch.equal(alone.coords, box.coords) and torch.equal(alone.kinds, box.kinds)
    assert alone.masks is None and alone.has_mask is None and not alone.padded
    other = joined[1:].trimmed()
    assert torch.equal(other.kinds, points.kinds) and torch.equal(other.masks, points.masks) and other.has_mask is None
    both = joined.trimmed()
    assert both.kinds.shape == (2, 5) and both.padded and both.has_mask.tolist() == [False, True]


def test_trimmed_prompts_without_points():
    masks = Prompts.from_parts(masks=torch.ones(2, 1, 8, 8)).trimmed()
    assert masks.coords.shape == (2, 0, 2) and not masks.padded and masks.masks is not None
    padding = Prompts(torch.zeros(1, 3, 2), torch.full((1, 3), PAD)).trimmed()
    assert padding.kinds.shape == (1, 0) and not padding.padded
    inner = Prompts(torch.zeros(1, 3, 2), torch.tensor([[PAD, 1, PAD]])).trimmed()
    assert inner.kinds.tolist() == [[PAD, 1]] and inner.padded
