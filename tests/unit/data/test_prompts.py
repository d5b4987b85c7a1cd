from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hqsam.data.prompts import PromptRule, noisy_mask
from hqsam.types import Prompts

S = 256
BOX_KINDS, NO_TOKENS = [2, 3], []


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rectangle(y0: int, x0: int, y1: int, x1: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((S, S), np.uint8)
    mask[y0 : y1 + 1, x0 : x1 + 1] = value
    return mask


def only(kind: str, **options: object) -> PromptRule:
    return PromptRule(mix={kind: 1.0}, **options)  # type: ignore[arg-type]


def kind_of(prompts: Prompts, row: int) -> str:
    tokens = [k for k in prompts.kinds[row].tolist() if k != -2]
    if tokens == BOX_KINDS:
        return "box"
    if tokens == NO_TOKENS:
        assert prompts.mask_flags()[row]
        return "mask"
    assert tokens == [1] * 10 + [-1]
    return "points"


def test_box_is_tight_with_inclusive_pixels() -> None:
    prompts = only("box").draw(rectangle(10, 20, 30, 50)[None], rng())
    assert prompts.coords.tolist() == [[[20, 10], [50, 30]]]
    assert prompts.kinds.tolist() == [[2, 3]]
    assert prompts.masks is None


def test_box_ignores_soft_pixels_up_to_128() -> None:
    mask = rectangle(10, 20, 30, 50, 128)
    mask[12:20, 25:30] = 129
    assert only("box").draw(mask[None], rng()).coords.tolist() == [[[25, 12], [29, 19]]]


def test_points_are_different_pixels_of_the_object_in_xy() -> None:
    mask = rectangle(100, 7, 101, 15)  # wide and low: swapped axes would leave it
    prompts = only("points").draw(mask[None], rng())
    points = prompts.coords[0, :10].long()
    assert (mask[points[:, 1], points[:, 0]] > 128).all()
    assert len({tuple(p) for p in points.tolist()}) == 10
    assert prompts.kinds[0].tolist() == [1] * 10 + [-1]


def test_points_are_spread_over_the_whole_object() -> None:
    mask = rectangle(50, 50, 149, 149)
    points = torch.cat([only("points").draw(mask[None], rng(k)).coords[0, :10] for k in range(100)])
    assert points.mean(0).sub(99.5).abs().max() < 4
    assert points.min() <= 52
    assert points.max() >= 147


@pytest.mark.parametrize("kind", ["points", "mask"])
def test_small_objects_get_a_box_for_themselves_alone(kind: str) -> None:
    masks = np.stack([rectangle(5, 5, 5, 13), rectangle(5, 5, 6, 9), rectangle(0, 0, 0, 0)])  # 9, 10 and 1 pixels
    prompts = only(kind).draw(masks, rng())
    assert [kind_of(prompts, k) for k in range(3)] == ["box", kind, "box"]
    assert prompts.coords[2, :2].tolist() == [[0, 0], [0, 0]]


def test_object_that_is_soft_everywhere_gets_the_box_of_its_extent() -> None:
    prompts = only("mask").draw(rectangle(3, 4, 5, 60, 100)[None], rng())
    assert prompts.coords.tolist() == [[[4, 3], [60, 5]]]


def test_mix_has_equal_chances_and_respects_weights() -> None:
    masks = np.repeat(rectangle(10, 10, 90, 90)[None], 300, axis=0)
    prompts = PromptRule().draw(masks, rng())
    counts = Counter(kind_of(prompts, k) for k in range(300))
    assert min(counts.values()) > 75
    assert len(counts) == 3
    weighted = PromptRule(mix={"box": 3, "points": 1}).draw(masks, rng())
    counts = Counter(kind_of(weighted, k) for k in range(300))
    assert set(counts) == {"box", "points"}
    assert 195 < counts["box"] < 255


def test_noisy_mask_follows_the_published_formula() -> None:
    mask = rectangle(40, 60, 180, 200)
    mask[100] = 77
    got = noisy_mask(mask, rng(3))
    m = F.interpolate(torch.from_numpy(mask)[None, None].double() / 255, (64, 64), mode="bilinear")
    ring = (m - F.interpolate(F.interpolate(m, (8, 8), mode="bilinear"), (64, 64), mode="bilinear")).abs() >= 0.01
    noise = torch.from_numpy(rng(3).standard_normal((64, 64), dtype=np.float32))
    assert got.shape == (1, 1, 64, 64)
    assert torch.equal(got, ((m + noise * ring) > 0.5).float() * 255)
    assert 0 < ring.sum() < 0.5 * 64 * 64
    clean = (m > 0.5).float() * 255
    assert torch.equal(got[~ring], clean[~ring])
    assert not torch.equal(got, clean)


def test_scale_of_mask_prompts() -> None:
    mask = rectangle(40, 60, 180, 200)
    published, logits = noisy_mask(mask, rng()), noisy_mask(mask, rng(), "predictor")
    assert published.unique().tolist() == [0, 255]
    assert torch.equal(logits, torch.where(published > 0, 10.0, -10.0))
    assert only("mask", mask_scale="predictor").draw(mask[None], rng()).masks.unique().tolist() == [-10, 10]


def test_box_noise_is_limited_and_stays_in_the_frame() -> None:
    inside, large = rectangle(100, 100, 139, 119), rectangle(0, 0, S - 1, S - 1)
    rule = only("box", box_jitter=0.1)
    boxes = torch.cat([rule.draw(inside[None], rng(k)).coords.reshape(1, 4) for k in range(400)])
    shift = boxes - torch.tensor([100.0, 100, 119, 139])
    assert shift.abs().max() <= 5  # 20 px of a 1024 frame
    assert 1.6 < shift[:, [0, 2]].std() < 2.4  # a tenth of 20
    assert shift[:, [1, 3]].std() > shift[:, [0, 2]].std()
    for seed in range(50):
        x0, y0, x1, y1 = rule.draw(large[None], rng(seed)).coords.reshape(4).tolist()
        assert 0 <= x0 < x1 <= S - 1
        assert 0 <= y0 < y1 <= S - 1
    dot = only("box", box_jitter=3.0).draw(rectangle(9, 9, 9, 9)[None], rng()).coords.reshape(4)
    assert (dot[:2] <= dot[2:]).all()


def test_draws_repeat_with_the_generator() -> None:
    masks = np.repeat(rectangle(10, 10, 90, 90)[None], 6, axis=0)
    first, again, other = (PromptRule().draw(masks, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.coords, again.coords)
    assert torch.equal(first.kinds, again.kinds)
    assert not torch.equal(first.kinds, other.kinds)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mix": {}}, "mix"),
        ({"mix": {"box": 0.0}}, "mix"),
        ({"mix": {"box": 1, "text": 1}}, "mix"),
        ({"mix": {"box": 2, "mask": -1}}, "mix"),
        ({"mask_scale": "logit"}, "mask_scale"),
        ({"num_points": 0}, "num_points"),
        ({"box_jitter": -0.1}, "box_jitter"),
    ],
)
def test_rules_out_of_range(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PromptRule(**arguments)  # type: ignore[arg-type]


def test_numbers_of_points_are_drawn() -> None:
    mask = np.zeros((1, 128, 128), dtype=np.uint8)
    mask[:, 20:90, 20:90] = 255
    rule = PromptRule(mix={"points": 1.0}, num_points=4, min_points=1)
    rng = np.random.default_rng(0)
    counts = [int((rule.draw(mask, rng).kinds == 1).sum()) for _ in range(60)]
    assert set(counts) == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="min_points must be within"):
        PromptRule(num_points=4, min_points=5)
