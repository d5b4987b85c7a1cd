"""Errors of mattes, by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hqsam.metrics.mattes import (
    MatteRecord,
    MatteSample,
    MatteScores,
    _gradient_magnitude,
    gradient_error,
    mean_squared_error,
    score_mattes,
    sum_of_differences,
)


def test_sums_by_hand() -> None:
    pred, target = np.array([[0.0, 0.5], [1.0, 1.0]]), np.array([[0.0, 0.0], [0.75, 1.0]])
    assert sum_of_differences(pred, target) == pytest.approx(0.00075)
    assert mean_squared_error(pred, target) == pytest.approx((0.25 + 0.0625) / 4)
    assert sum_of_differences(target, target) == mean_squared_error(target, target) == 0


def test_gradient_of_a_ramp_by_hand() -> None:
    """A ramp has the same gradient everywhere: the filter's answer to it, which sums over a few numbers."""
    target = np.tile(np.arange(40) / 100, (30, 1))
    reach = math.ceil(1.4 * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * 1.4 * 0.01)))
    assert reach == 4
    steps = list(range(-reach, reach + 1))
    gauss = [math.exp(-k * k / (2 * 1.4**2)) / (1.4 * math.sqrt(2 * math.pi)) for k in steps]
    slope = [k * g / 1.4**2 for k, g in zip(steps, gauss, strict=True)]
    length = math.sqrt(sum((a * b) ** 2 for a in gauss for b in slope))
    answer = 0.01 * sum(k * s for k, s in zip(steps, slope, strict=True)) * sum(gauss) / length
    inside = np.s_[reach:-reach, reach:-reach]
    assert np.allclose(_gradient_magnitude(target, 1.4)[inside], answer)
    assert gradient_error(target, target) == 0
    assert gradient_error(target + 0.1, target) == pytest.approx(0, abs=1e-12)  # a constant has no gradient


def test_a_sharp_edge_costs_more_than_a_soft_one_where_the_truth_is_soft() -> None:
    x = np.arange(60)
    soft = np.tile(1 / (1 + np.exp(-(x - 30) / 3)), (20, 1))
    sharp = np.tile((x > 30).astype(float), (20, 1))
    softer = np.tile(1 / (1 + np.exp(-(x - 30) / 4)), (20, 1))
    assert gradient_error(sharp, soft) > gradient_error(softer, soft) > 0


def test_records_and_means() -> None:
    truth = np.zeros((10, 10))
    scores = MatteScores()
    for k, value in enumerate((0.0, 0.5)):
        mattes = {"sam": np.full((10, 10), value, dtype=np.float32), "sum": truth}
        scores.update(MatteSample("s", f"{k}", 0, "box", mattes, truth))
    assert scores.compute()["s"]["sam"] == pytest.approx({"sad": 0.025, "mse": 0.125, "grad": 0.0, "n": 2})
    assert scores.compute()["s"]["sum"]["sad"] == 0
    other = MatteScores()
    other.merge([[MatteRecord(**json.loads(json.dumps(r.as_dict(), allow_nan=False))) for r in scores.state()[::-1]]])
    assert other.compute() == scores.compute()


def test_bytes_are_shares_of_255() -> None:
    record = score_mattes(
        MatteSample("s", "i", 0, "box", {"sam": np.full((5, 5), 255, np.uint8)}, np.full((5, 5), 51, np.uint8))
    )
    assert record.mse["sam"] == pytest.approx(0.64)


@pytest.mark.parametrize(
    ("matte", "message"),
    [
        (np.full((5, 5), np.nan), "within"),
        (np.full((5, 5), 1.1), "within"),
        (np.ones((5, 5), dtype=np.int64), "within"),
        (np.ones((5, 4)), "same shape"),
        (np.ones(5), r"\(H, W\)"),
        (np.ones((0, 5)), "pixel"),
    ],
)
def test_wrong_mattes(matte: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_mattes(MatteSample("s", "i", 0, "box", {"sam": matte}, np.ones((5, 5))))
    with pytest.raises(ValueError, match="no matte"):
        score_mattes(MatteSample("s", "i", 0, "box", {}, np.ones((5, 5))))
