"""Boundary benchmark: thinning, one-to-one matching, curves, and the evaluator's contract."""

from __future__ import annotations

import json
import math
import pickle
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hqsam.metrics.edge_matching import TrueEdges, thin_mask
from hqsam.metrics.edges import EdgeRecord, EdgeSample, EdgeScores, edge_metrics, edge_thresholds, score_edges
from tests.helpers import shared_dir

LEVELS = edge_thresholds(3)  # 0.25, 0.5, 0.75


def mask(*rows: str) -> NDArray[np.bool_]:
    return np.array([[cell == "#" for cell in row] for row in rows])


def line(x: int, hw: tuple[int, int] = (60, 80), y: slice = slice(None)) -> NDArray[np.bool_]:
    drawn = np.zeros(hw, dtype=np.bool_)
    drawn[y, x] = True
    return drawn


def test_thin_lines_stay_and_thick_ones_become_thin() -> None:
    diagonal = mask("#....", ".#...", "..#..", "...#.", "....#")
    assert (thin_mask(diagonal) == diagonal).all()
    assert (thin_mask(line(7)) == line(7)).all()
    thick = np.zeros((9, 30), dtype=np.bool_)
    thick[3:6, 2:28] = True
    thinned = thin_mask(thick)
    assert not (thinned & ~thick).any()
    assert (thinned[:, 5:25].sum(axis=0) == 1).all()
    assert not thin_mask(np.zeros((4, 4), dtype=np.bool_)).any()


def test_thinning_by_hand() -> None:
    """A block of two by three: the first half of a round takes from the east and the south, the second the rest."""
    assert (thin_mask(mask("....", ".##.", ".##.", ".##.", "....")).sum()) == 2
    ring = mask("###", "#.#", "###")
    assert thin_mask(ring).sum() == 4  # the corners go, the ring stays closed diagonally
    assert (thin_mask(ring) == mask(".#.", "#.#", ".#.")).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_thinning_keeps_the_number_of_pieces(seed: int) -> None:
    import cv2

    noise = cv2.blur(np.random.default_rng(seed).random((24, 31)), (5, 5)) > 0.5
    before, after = (cv2.connectedComponents(m.astype(np.uint8), connectivity=8)[0] for m in (noise, thin_mask(noise)))
    assert before == after


def test_tolerance_is_a_share_of_the_diagonal() -> None:
    """60 x 80 has a diagonal of 100: with 0.03 a pixel three away is matched, one four away is not."""
    truth = line(40)
    for shift, expected in ((0, 60), (3, 60), (4, 0)):
        matched, pairs = TrueEdges(truth, 0.03).match(np.flatnonzero(line(40 + shift)))
        assert pairs == matched.sum() == expected


def test_a_true_pixel_is_matched_once() -> None:
    double = line(39) | line(41)
    matched, pairs = TrueEdges(line(40), 0.03).match(np.flatnonzero(double))
    assert pairs == matched.sum() == 60


def test_diagonal_distance_counts() -> None:
    one = np.zeros((60, 80), dtype=np.bool_)
    one[30, 40] = True
    for dy, dx, expected in ((2, 2, 1), (3, 1, 0), (0, 3, 1), (2, 3, 0)):  # 2.83, 3.16, 3, 3.61 against 3
        other = np.roll(one, (dy, dx), (0, 1))
        assert TrueEdges(one, 0.03).match(np.flatnonzero(other))[1] == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5))
def test_the_matching_is_of_least_cost(seed: int, n: int, m: int) -> None:
    """Against every assignment of a few pixels: a pair costs its distance, a missed pixel a hundred tolerances."""
    rng = np.random.default_rng(seed)
    predicted, true = (np.sort(rng.choice(64, k, replace=False)) for k in (n, m))
    truth = np.zeros(64, dtype=np.bool_)
    truth[true] = True
    limit = 0.25 * math.hypot(8, 8)
    py, px = np.divmod(predicted, 8)
    ty, tx = np.divmod(true, 8)
    distance = np.hypot(py[:, None] - ty, px[:, None] - tx)
    most = best = 0.0
    best = math.inf
    for order in permutations([*range(m), *[-1] * n], n):
        chosen = [(i, j) for i, j in enumerate(order) if j >= 0 and distance[i, j] <= limit]
        cost = sum(distance[pair] for pair in chosen) + (n + m - 2 * len(chosen)) * 100 * limit / 2
        if cost < best:
            best, most = cost, len(chosen)
    matched, pairs = TrueEdges(truth.reshape(8, 8), 0.25).match(predicted)
    assert pairs == most == matched.sum()


def test_annotators() -> None:
    """A pixel is right if anybody drew it; recall counts everybody's pixels."""
    truths = np.stack([line(10), line(40), line(40)])
    record = score_edges(EdgeSample("s", "i", {"sam": (line(10) | line(70)).astype(float)}, truths), 3)
    assert record.annotators == 3
    assert record.true_pixels == 180
    assert record.recalled == {"sam": [60] * 3}
    assert record.correct == {"sam": [60] * 3}
    assert record.predicted == {"sam": [120] * 3}
    both = score_edges(EdgeSample("s", "i", {"sam": (line(10) | line(40)).astype(np.uint8) * 255}, truths), 3)
    assert (both.recalled["sam"][0], both.correct["sam"][0]) == (180, 120)


def test_perfect_and_empty_maps() -> None:
    truth = line(10) | line(50)
    scores = EdgeScores(99)
    scores.update(EdgeSample("s", "i", {"sam": truth.astype(float), "hq": np.zeros(truth.shape)}, truth[None]))
    columns = scores.compute()["s"]
    assert columns["sam"]["ods"] == columns["sam"]["ois"] == columns["sam"]["r50"] == 100
    assert "ap" not in columns["sam"]  # one point is no curve
    assert [columns["hq"][name] for name in ("ods", "ois", "r50", "ap")] == [0, 0, 0, 0]


def test_a_grey_value_at_the_threshold_is_inside() -> None:
    for level, expected in ((0.5, [60, 60, 0]), (0.4999, [60, 0, 0])):
        record = score_edges(EdgeSample("s", "i", {"sam": line(10) * level}, line(10)[None]), 3)
        assert record.predicted["sam"] == expected


def record_of(name: str, recalled: list[int], correct: list[int], predicted: list[int], true: int) -> EdgeRecord:
    return EdgeRecord("s", name, 1, true, {"sam": recalled}, {"sam": correct}, {"sam": predicted})


def test_the_curve_by_hand() -> None:
    """Two images. Recall over both 0.8, 0.5, 0.2; precision 0.4, 0.5, 1."""
    records = [
        record_of("a", [40, 30, 10], [40, 30, 10], [160, 100, 10], 50),
        record_of("b", [40, 20, 10], [40, 20, 10], [40, 0, 10], 50),
    ]
    scores = edge_metrics(records, "sam", LEVELS)
    steps = np.linspace(0, 1, 100)
    recall = np.concatenate([0.8 + (0.5 - 0.8) * steps, 0.5 + (0.2 - 0.5) * steps])
    precision = np.concatenate([0.4 + (0.5 - 0.4) * steps, 0.5 + (1 - 0.5) * steps])
    best = np.max(2 * recall * precision / (recall + precision))
    assert scores["ods"] == pytest.approx(100 * best)
    assert scores["ods"] > 100 * 2 * 0.8 * 0.4 / 1.2  # between two thresholds
    # The best threshold of a is the second (F 0.4), that of b the first (F 0.89).
    assert scores["ois"] == pytest.approx(100 * 2 * 0.7 * (70 / 140) / (0.7 + 70 / 140))
    assert scores["r50"] == pytest.approx(50)
    xs = np.arange(20, 81) / 100
    area = np.interp(xs, [0.2, 0.5, 0.8], [1, 0.5, 0.4]).sum() / 100
    assert scores["ap"] == pytest.approx(100 * area)
    assert scores["n"] == 2


def test_precision_that_is_never_reached() -> None:
    scores = edge_metrics([record_of("a", [4, 3, 2], [4, 3, 2], [16, 10, 5], 10)], "sam", LEVELS)
    assert scores["r50"] == 0
    scores = edge_metrics([record_of("a", [8, 6, 2], [8, 6, 2], [10, 7, 2], 10)], "sam", LEVELS)
    assert scores["r50"] == pytest.approx(80)  # every threshold is better than that


def test_nobody_drew_a_boundary() -> None:
    nothing = np.zeros((2, 60, 80), dtype=np.bool_)
    scores = EdgeScores(3)
    scores.update(EdgeSample("s", "i", {"sam": line(3).astype(float)}, nothing))
    assert scores.compute() == {"s": {"sam": {"n": 1}}}
    scores.update(EdgeSample("s", "j", {"sam": line(3).astype(float)}, line(3)[None]))
    assert scores.compute()["s"]["sam"]["ods_precision"] == 50


def samples() -> list[EdgeSample]:
    rng = np.random.default_rng(0)
    made = []
    for k in range(5):
        truths = np.stack([line(10 + k), line(40 + k)])
        maps = {c: np.clip(truths[0] * 0.8 + rng.random(truths[0].shape) * 0.3, 0, 1) for c in ("sam", "sum")}
        made.append(EdgeSample("ab"[k % 2], f"{k}", maps, truths))
    return made


def scored(part: list[EdgeSample]) -> EdgeScores:
    scores = EdgeScores(3)
    for sample in part:
        scores.update(sample)
    return scores


def test_merge_of_any_split_equals_one_pass_and_records_are_json() -> None:
    made = samples()
    whole, merged = scored(made), EdgeScores(3)
    merged.merge(pickle.loads(pickle.dumps([scored(made[3:]).state(), scored(made[:3][::-1]).state()])))
    assert merged.state() == whole.state()
    assert merged.compute() == whole.compute()
    read = EdgeScores(3)
    read.merge([[EdgeRecord(**json.loads(json.dumps(r.as_dict(), allow_nan=False))) for r in whole.state()]])
    assert read.compute() == whole.compute()
    with pytest.raises(ValueError, match="duplicate"):
        whole.update(made[0])
    with pytest.raises(ValueError, match="same columns"):
        whole.update(made[0]._replace(image="x", maps={"sam": made[0].maps["sam"]}))
    with pytest.raises(ValueError, match="3 thresholds, this evaluation 99"):
        edge_metrics(whole.state()[:1], "sam", edge_thresholds())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": {}}, "no boundary map"),
        ({"maps": {"sam": np.zeros((3, 4))}}, "annotations' shape"),
        ({"maps": {"sam": np.full((60, 80), np.nan)}}, "within"),
        ({"maps": {"sam": np.full((60, 80), 1.5)}}, "within"),
        ({"maps": {"sam": np.zeros((60, 80), dtype=np.int64)}}, "floating"),
        ({"truths": np.zeros((0, 60, 80), dtype=np.bool_)}, "K at least 1"),
        ({"truths": np.zeros((1, 60, 80))}, "bool"),
    ],
)
def test_wrong_samples(change: dict[str, object], message: str) -> None:
    sample = EdgeSample("s", "i", {"sam": line(3).astype(float)}, line(3)[None])
    with pytest.raises(ValueError, match=message):
        score_edges(sample._replace(**change), 3)  # type: ignore[arg-type]


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="at least one threshold"):
        EdgeScores(0)
    with pytest.raises(ValueError, match=r"uses 0\.0075"):
        TrueEdges(line(3), 0.0)


def test_people_agree_about_photographs() -> None:
    """Two images of BSDS500 val: people against each other, and one annotator against themselves."""
    shared = shared_dir()
    files = [] if shared is None else sorted((shared / "data/bsds500/gt/val").glob("*.npz"))
    if not files:
        pytest.skip("the annotations of BSDS500 are not here")
    others, own = EdgeScores(1), EdgeScores(1)
    for file in files[:2]:
        with np.load(file) as arrays:
            truths = np.unpackbits(arrays["bnd"], axis=-1)[..., : arrays["shape"][2]].astype(np.bool_)
        others.update(EdgeSample("s", file.stem, {"sam": truths[0].astype(float)}, truths[1:]))
        own.update(EdgeSample("s", file.stem, {"sam": truths[0].astype(float)}, truths[:1]))
    assert 60 < others.compute()["s"]["sam"]["ods"] < 95
    assert own.compute()["s"]["sam"]["ods"] > 99
