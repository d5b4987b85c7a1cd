"""Which samples meet in which step, and the learning rate there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hqsam.engine.schedule import PlannedBatches, StepPlan, is_due, learning_rate, planned_views
from hqsam.engine.train_config import OptimConfig


def plan(images: int = 11, batch: int = 2, accumulate: int = 1, world: int = 1, **length: int | None) -> StepPlan:
    order: Callable[[int], Sequence[int]] = lambda epoch: [(k * 7 + epoch) % images for k in range(images)]  # noqa: E731
    return StepPlan(
        order, images, batch, accumulate, world, epochs=length.get("epochs") or 2, max_steps=length.get("max_steps")
    )


def test_an_epoch_is_cut_into_whole_steps_and_each_image_seen_once() -> None:
    p = plan(images=11, batch=2, epochs=2)
    assert (p.steps_per_epoch, p.total_steps) == (5, 10)
    first = [item for step in range(5) for item in p.items(step)]
    assert {epoch for epoch, _ in first} == {0}
    assert len({index for _, index in first}) == 10
    assert p.items(5)[0] == (1, 1)


@pytest.mark.parametrize(("batch", "accumulate", "world"), [(8, 1, 1), (2, 1, 4), (2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_a_step_has_the_same_samples_however_it_is_divided(batch: int, accumulate: int, world: int) -> None:
    whole, divided = plan(64, 8), plan(64, batch, accumulate, world)
    assert divided.global_batch == 8
    for step in (0, 3, 9):
        parts = [batch_ for rank in range(world) for batch_ in divided.micro_batches(step, rank)]
        assert all(len(part) == batch for part in parts)
        assert sorted(item for part in parts for item in part) == sorted(whole.items(step))


def test_batches_resume_at_any_step() -> None:
    p = plan(images=12, batch=2, accumulate=2, world=2, max_steps=7)
    everything = list(PlannedBatches(p, 1, 0))
    assert len(everything) == len(PlannedBatches(p, 1, 0)) == 14
    assert list(PlannedBatches(p, 1, 5)) == everything[10:]
    assert list(PlannedBatches(p, 1, 7)) == list(PlannedBatches(p, 1, 9)) == []


def test_published_step_schedule() -> None:
    p = plan(images=8, batch=4, epochs=12)
    config = OptimConfig()
    rates = [learning_rate(step, p, config) for step in range(p.total_steps)]
    assert rates[:20] == [1e-3] * 20 and rates[20:] == pytest.approx([1e-4] * 4)


def test_warm_up_and_cosine() -> None:
    p = plan(max_steps=110)
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=10)
    rates = [learning_rate(step, p, config) for step in range(111)]
    assert rates[:11] == pytest.approx([k / 11 for k in range(1, 12)])
    assert rates[60] == pytest.approx(0.5) and rates[110] == pytest.approx(0.0)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_due_steps() -> None:
    p = plan(images=8, batch=2)
    assert [step for step in range(1, 13) if is_due(step, 0, p)] == [4, 8, 12]
    assert [step for step in range(1, 13) if is_due(step, 5, p)] == [5, 10]


def test_views_are_listed_once_in_the_order_of_use() -> None:
    p = plan(images=4, batch=2, epochs=5)
    key: Callable[[int, int], str] = lambda epoch, index: f"{index}#{epoch % 2}"  # noqa: E731
    views = planned_views(p, 0, key)
    assert len(views) == 8 and {epoch for epoch, _ in views} == {0, 1}
    assert views[:4] == [item for step in (0, 1) for item in p.items(step)]
    assert planned_views(p, p.total_steps, key) == []


def test_the_rate_drops_after_each_named_step() -> None:
    config = OptimConfig(lr=1.0, drop_steps=[2, 5], drop_epoch=1)
    rates = [learning_rate(step, plan(epochs=2), config) for step in range(7)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
