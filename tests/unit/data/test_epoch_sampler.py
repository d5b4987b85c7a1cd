from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hqsam.data import epoch_order
from hqsam.data.epoch_sampler import EpochSampler

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


@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 2.0, "c": 0.5}])
def test_samples_of_a_step_do_not_depend_on_the_number_of_processes(weights: dict[str, float] | None) -> None:
    def steps(world: int) -> list[list[tuple[int, int]]]:
        size = 8 // world
        parts = [
            list(EpochSampler(SOURCES, batch_size=size, seed=3, epoch=2, rank=r, world=world, weights=weights))
            for r in range(world)
        ]
        return [[x for part in parts for x in part[s * size : (s + 1) * size]] for s in range(60 // 8)]

    assert steps(1) == steps(2) == steps(4) == steps(8)
    assert len(steps(1)) == 7  # 60 samples, 4 of them left out
    assert {epoch for step in steps(1) for epoch, _ in step} == {2}


def test_resume_within_an_epoch() -> None:
    sampler = EpochSampler(SOURCES, batch_size=4, seed=3, rank=1, world=2)
    whole = list(sampler)
    assert len(sampler) == len(whole) == 28
    sampler.set_epoch(0, start_step=3)
    assert list(sampler) == whole[12:]
    assert len(sampler) == 16
    sampler.set_epoch(1)
    assert list(sampler) != whole
    sampler.set_epoch(0, start_step=7)
    assert list(sampler) == []


@pytest.mark.parametrize(
    "options", [{"batch_size": 61}, {"batch_size": 0}, {"rank": 2, "world": 2}, {"start_step": 61}, {"epoch": -1}]
)
def test_sampler_arguments(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"got|shorter than one step"):
        EpochSampler(SOURCES, **{"batch_size": 1, "seed": 0, **options})  # type: ignore[arg-type]
