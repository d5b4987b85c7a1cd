from __future__ import annotations

import math

import numpy as np
import pytest

from hqsam.metrics.clicks import PromptRecord, PromptScores, prompt_metrics, score_correlations
from hqsam.metrics.correlation import pearson, spearman


def test_against_numpy_and_by_hand() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50).tolist(), rng.normal(size=50).tolist()
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    order = np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1]
    assert spearman(a, b) == pytest.approx(order, abs=1e-12)
    assert spearman([1, 2, 3], [1, 8, 27]) == pytest.approx(1) and spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    # ranks 1.5 1.5 3 4 and 1 2 3.5 3.5: covariance 4, variances 4.5 and 4.5
    assert spearman([5, 5, 6, 7], [0, 1, 2, 2]) == pytest.approx(4 / 4.5)


def test_ties_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, 40).astype(float), rng.integers(0, 5, 40).astype(float)
    assert spearman(a.tolist(), b.tolist()) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize("pair", [([], []), ([1.0], [2.0]), ([1.0, 1.0], [0.0, 1.0]), ([0.0, 1.0], [0.5, 0.5])])
def test_what_is_not_defined_is_none(pair: tuple[list[float], list[float]]) -> None:
    assert pearson(*pair) is None and spearman(*pair) is None


def test_wrong_lists() -> None:
    with pytest.raises(ValueError, match="equal length"):
        pearson([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        spearman([1.0, math.nan], [1.0, 2.0])


def record(name: str, iou: float, **scores: float) -> PromptRecord:
    steps = {"noise0": iou}
    return PromptRecord(
        "s", name, 0, "boxes", {"sum": steps}, {"sum": {"noise0": iou / 2}}, {"sum": {"noise0": scores}}
    )


def test_metrics_name_the_score_and_the_truth() -> None:
    records = [record(f"{k}", 0.1 * k, sam=0.9 - 0.1 * k, own=0.2 * k**2, own_boundary=0.5) for k in range(4)]
    found = score_correlations(records, "sum")
    assert found["pearson_sam_miou"] == pytest.approx(-1) and found["spearman_own_miou"] == pytest.approx(1)
    assert 0.9 < found["pearson_own_miou"] < 1
    assert found["spearman_sam_mbiou"] == pytest.approx(-1)
    assert "pearson_own_mbiou" not in found  # all predicted boundary IoUs are equal
    metrics = prompt_metrics(records, "sum")
    assert metrics["pearson_sam_miou_noise0"] == metrics["pearson_sam_miou"]
    assert all(math.isfinite(value) for value in metrics.values())


def test_records_without_scores_are_as_before() -> None:
    plain = PromptRecord("s", "a", 0, "boxes", {"sum": {"noise0": 0.5}}, {"sum": {"noise0": 0.5}})
    assert "scores" not in plain.as_dict()
    assert not any(name.startswith("pearson") for name in prompt_metrics([plain], "sum"))
    scored = record("b", 0.5, sam=0.7)
    assert PromptRecord(**scored.as_dict()) == scored
    evaluator = PromptScores()
    evaluator.merge([[scored]])
    assert set(evaluator.compute()["s"]["sum"]) == {"miou_noise0", "mbiou_noise0", "n"}
