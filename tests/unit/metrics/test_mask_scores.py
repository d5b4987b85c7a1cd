"""The evaluator: its contract (split and merged equals one pass), its means, and what it refuses."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqsam.metrics import MaskRecord, MaskSample, MaskScores, boundary_iou, mask_iou, score_masks
from hqsam.metrics.evaluator import mean_of_sets
from hqsam.metrics.mask_scores import mean_of_records


def samples(count: int = 11) -> list[MaskSample]:
    generator = np.random.default_rng(3)
    made = []
    for k in range(count):
        target = np.zeros((20, 30), dtype=bool)
        target[3:15, 4 : 8 + k] = True
        predictions = {name: target ^ (generator.random(target.shape) < 0.1) for name in ("sam", "hq", "sum")}
        made.append(MaskSample("ab"[k % 2], f"images/{k // 3}.jpg", k, "box", predictions, target))
    return made


def scored(part: list[MaskSample]) -> MaskScores:
    scores = MaskScores()
    for sample in part:
        scores.update(sample)
    return scores


def test_record_holds_both_metrics() -> None:
    sample = samples(1)[0]
    record = scored([sample]).state()[0]
    for column, pred in sample.predictions.items():
        assert record.miou[column] == mask_iou(pred, sample.target)
        assert record.mbiou[column] == boundary_iou(pred, sample.target)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(11)), st.integers(0, 11), st.integers(0, 11))
def test_merge_of_any_split_equals_one_pass(order: list[int], i: int, j: int) -> None:
    all_samples = samples()
    shuffled = [all_samples[k] for k in order]
    i, j = sorted((i, j))
    states = [scored(part).state() for part in (shuffled[:i], shuffled[i:j], shuffled[j:])]
    merged = MaskScores()
    merged.merge(pickle.loads(pickle.dumps(states)))
    whole = scored(all_samples)
    assert merged.state() == whole.state()
    assert merged.compute() == whole.compute() == whole.compute()


def test_means_are_per_set_and_then_over_sets() -> None:
    def record(set_name: str, k: int, miou: float) -> MaskRecord:
        return MaskRecord(set_name, "i", k, "box", {"sam": miou}, {"sam": miou / 2})

    scores = MaskScores()
    scores.merge([[record("x", 0, 0.5), record("x", 1, 1.0), record("y", 0, 0.25)]])
    computed = scores.compute()
    assert computed == {
        "x": {"sam": {"miou": 75.0, "mbiou": 37.5, "n": 2}},
        "y": {"sam": {"miou": 25.0, "mbiou": 12.5, "n": 1}},
    }
    assert mean_of_sets(computed) == {"sam": {"miou": 50.0, "mbiou": 25.0, "n": 3}}


def test_mean_of_sets_skips_columns_that_a_set_lacks() -> None:
    sets = {
        "x": {"sam": {"miou": 10.0, "mbiou": 10.0, "n": 1}, "sum": {"miou": 30.0, "mbiou": 20.0, "n": 1}},
        "y": {"sam": {"miou": 20.0, "mbiou": 30.0, "n": 3}},
    }
    assert mean_of_sets(sets) == {
        "sam": {"miou": 15.0, "mbiou": 20.0, "n": 4},
        "sum": {"miou": 30.0, "mbiou": 20.0, "n": 1},
    }


def test_nothing_gives_nothing() -> None:
    assert MaskScores().compute() == {}
    assert mean_of_sets({}) == {}
    assert mean_of_records([]) == {}


def test_record_is_json() -> None:
    record = scored(samples(1)).state()[0]
    line = json.loads(json.dumps(record.as_dict()))
    assert set(line) == {"set", "image", "object", "prompt", "miou", "mbiou", "pixels"}
    assert MaskRecord(**line) == record


def test_empty_masks_give_numbers() -> None:
    empty, full = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool)
    record = score_masks(MaskSample("a", "i", 0, "box", {"sam": empty, "hq": full}, empty))
    assert record.miou == record.mbiou == {"sam": 1.0, "hq": 0.0}


def test_duplicates_are_refused() -> None:
    scores = scored(samples(2))
    with pytest.raises(ValueError, match=r"duplicate record.*'images/0\.jpg', 1, 'box'"):
        scores.update(samples(2)[1])
    other = MaskScores()
    with pytest.raises(ValueError, match="duplicate record"):
        other.merge([scores.state(), scores.state()])


def test_columns_must_agree() -> None:
    scores = scored(samples(1))
    second = samples(2)[1]
    with pytest.raises(ValueError, match=r"same columns: .* has \['sam'\], .* has \['hq', 'sam', 'sum'\]"):
        scores.update(second._replace(predictions={"sam": second.target}))


def test_a_prediction_is_needed() -> None:
    with pytest.raises(ValueError, match=r"no prediction for a, images/0.jpg, object 0"):
        scored([samples(1)[0]._replace(predictions={})])
