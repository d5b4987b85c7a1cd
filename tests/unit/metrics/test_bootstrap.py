"""Paired bootstrap over images."""

from __future__ import annotations

import numpy as np
import pytest

from hqsam.metrics.bootstrap import Place, paired_bootstrap

Values = dict[object, tuple[Place, float, float]]


def draw_values(images: int, objects: int, gain: float, seed: int, name: str = "s") -> Values:
    """Objects of an image share a part of their difference."""
    generator = np.random.default_rng(seed)
    values: Values = {}
    for image in range(images):
        shared = generator.normal()
        for k in range(objects):
            a = float(generator.uniform(50, 90))
            values[name, image, k] = Place(name, image), a, a + gain + shared + float(generator.normal())
    return values


def test_means_and_exact_small_case() -> None:
    """Two images: a draw is (1,1), (1,2), (2,1) or (2,2), so differences are 1, 2, 2, 3."""
    values: Values = {0: (Place("s", 0), 10, 11), 1: (Place("s", 1), 20, 23)}
    found = paired_bootstrap(values, resamples=2000)
    part = found["s"]
    assert (part.a, part.b, part.difference, part.objects, part.images) == (15, 17, 2, 2, 2)
    assert (part.low, part.high) == (1, 3) and part.is_clear
    assert found["mean"] == part


def test_objects_of_an_image_are_drawn_together() -> None:
    """Of two images with three objects and one: draws are means over objects, 0, 3/4 or 3."""
    values: Values = {k: (Place("s", 0), 0, 0) for k in range(3)}
    values[3] = Place("s", 1), 0, 3
    found = paired_bootstrap(values, resamples=5000, confidence=0.4)
    assert found["s"].difference == 0.75
    assert (found["s"].low, found["s"].high) == (0, 0.75) or (found["s"].low, found["s"].high) == (0.75, 0.75)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_intervals_hold_the_true_difference_as_often_as_they_say(gain: float) -> None:
    inside = 0
    for seed in range(200):
        found = paired_bootstrap(draw_values(40, 3, gain, seed), resamples=400, confidence=0.9)["s"]
        assert found.low is not None and found.high is not None
        inside += found.low <= gain <= found.high
    assert 0.83 <= inside / 200 <= 0.96


def test_sets_have_equal_weight_and_order_does_not_matter() -> None:
    values = {**draw_values(30, 1, 4.0, 0, "few"), **draw_values(50, 9, 0.0, 1, "many")}
    found = paired_bootstrap(values)
    assert list(found) == ["few", "many", "mean"]
    assert found["mean"].difference == pytest.approx((found["few"].difference + found["many"].difference) / 2)
    assert found["mean"].objects == 30 + 450 and found["mean"].images == 80
    assert found["few"].is_clear and not found["many"].is_clear
    assert paired_bootstrap(dict(reversed(values.items())))["mean"].a == found["mean"].a


def test_one_image_has_no_interval() -> None:
    found = paired_bootstrap({0: (Place("s", 0), 1, 2), **draw_values(9, 2, 0, 0, "t")})
    assert found["s"].low is None and not found["s"].is_clear
    assert found["mean"].low is not None
    alone = paired_bootstrap({0: (Place("s", 0), 1, 2)})
    assert alone["mean"].low is None and alone["mean"].difference == 1


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ({}, {}, "nothing to compare"),
        ({0: (Place("s", 0), float("nan"), 1.0)}, {}, "finite"),
        ({0: (Place("s", 0), 1.0, 1.0)}, {"resamples": 5}, "at least 100, got 5"),
        ({0: (Place("s", 0), 1.0, 1.0)}, {"confidence": 95}, "between 0 and 1, got 95"),
    ],
)
def test_bad_input(values: Values, options: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        paired_bootstrap(values, **options)  # type: ignore[arg-type]
