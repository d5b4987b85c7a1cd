from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hqsam.data import epoch_order

SOURCES = ["a"] * 50 + ["b"] * 8 + ["c"] * 2


def order(epoch: int = 0, **options: object) -> np.ndarray:
    return epoch_order(SOURCES, seed=7, epoch=epoch, **options)  # type: ignore[arg-type]


def test_without_weights_every_image_comes_once_in_another_order_each_epoch() -> None:
    assert sorted(order()) == list(range(60))
    assert (order() == order()).all()
    assert (order() != order(1)).any()
    assert (order() != epoch_order(SOURCES, seed=8, epoch=0)).any()


def test_a_longer_epoch_marks_what_comes_again() -> None:
    got = order(num_samples=150)
    assert sorted(got[:60]) == list(range(60))
    assert sorted(got[60:120]) == list(range(60, 120))  # the second round, numbered beyond the data
    assert len(got) == len(set(got)) == 150


def test_weights_give_shares_and_deal_a_source_in_rounds() -> None:
    got = order(weights={"a": 1, "b": 1, "c": 2}, num_samples=4000)
    counts = Counter(SOURCES[i % 60] for i in got)
    assert abs(counts["a"] - 1000) < 100
    assert abs(counts["b"] - 1000) < 100
    assert abs(counts["c"] - 2000) < 130
    assert len(set(got)) == 4000  # each repetition has its own number
    images = Counter(int(i) % 60 for i in got if SOURCES[i % 60] == "b")
    assert max(images.values()) - min(images.values()) <= 1


def test_weight_zero_leaves_a_source_out() -> None:
    assert {SOURCES[i % 60] for i in order(weights={"a": 0, "b": 1, "c": 1})} == {"b", "c"}


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ({"a": 1, "b": 1}, "must name every source.*got a, b; the data has a, b, c"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "and no other"),
        ({"a": 1, "b": -1, "c": 1}, ">= 0"),
        ({"a": 0, "b": 0, "c": 0}, "not all 0"),
        ({"a": float("nan"), "b": 1, "c": 1}, "finite"),
    ],
)
def test_weights_that_do_not_fit(weights: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        order(weights=weights)


def test_an_epoch_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one image and one sample, got 0 and 0"):
        epoch_order([], seed=0, epoch=0)
    with pytest.raises(ValueError, match="got 60 and 0"):
        order(num_samples=0)
