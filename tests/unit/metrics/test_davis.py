"""J, F and their statistics: cases worked out by hand, a plain second implementation, frozen reference outputs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.metrics.davis import (
    DavisRecord,
    DavisSample,
    DavisScores,
    ObjectScorer,
    boundary_map,
    contour_accuracy,
    region_similarity,
    score_frame,
    score_object,
    sequence_statistics,
)

FIXTURE = Path(__file__).with_name("davis_reference.json")
Mask = NDArray[np.bool_]


def rectangle(hw: tuple[int, int], y0: int, x0: int, y1: int, x1: int) -> Mask:
    """True in rows y0..y1 and columns x0..x1, exclusive."""
    mask = np.zeros(hw, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def shapes(seed: int) -> tuple[Mask, Mask]:
    """Two masks of a random size made of the same few discs and rectangles, moved a little."""
    generator = np.random.default_rng(seed)
    height, width = (int(side) for side in generator.integers(20, 150, 2))
    y, x = np.mgrid[:height, :width]
    masks = [np.zeros((height, width), dtype=bool), np.zeros((height, width), dtype=bool)]
    for _ in range(int(generator.integers(1, 5))):
        cy, cx, size = generator.uniform(0, height), generator.uniform(0, width), generator.uniform(1, 30)
        for mask, (dy, dx) in zip(masks, generator.normal(0, 2, (2, 2)), strict=True):
            if size > 12:
                mask |= np.hypot(y - cy - dy, x - cx - dx) < size
            else:
                mask |= (abs(y - cy - dy) < size) & (abs(x - cx - dx) < 2 * size)
    return masks[0], masks[1]


def slow_f(pred: Mask, target: Mask, tolerance: float) -> float:
    """F by comparing every boundary pixel with every other one."""
    radius = math.ceil(tolerance * math.hypot(*pred.shape))
    points = [np.argwhere(boundary_map(mask)) for mask in (pred, target)]
    if not len(points[0]) or not len(points[1]):
        return float(len(points[0]) == len(points[1]))
    near = ((points[0][:, None] - points[1][None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def test_boundary_lies_on_the_upper_left_side_of_each_contour() -> None:
    mask = rectangle((6, 7), 2, 2, 4, 5)
    expected = np.zeros((6, 7), dtype=bool)
    expected[1, 1:5] = expected[3, 1:5] = True  # above the object, and its last row with the pixel to the left
    expected[1:4, 1] = expected[1:4, 4] = True
    assert (boundary_map(mask) == expected).all()


def test_the_edge_of_the_image_is_no_boundary() -> None:
    assert not boundary_map(np.ones((5, 6), dtype=bool)).any()
    half = rectangle((4, 6), 0, 0, 4, 3)
    assert (boundary_map(half) == rectangle((4, 6), 0, 2, 4, 3)).all()


def test_f_worked_out_by_hand() -> None:
    # 600 x 800: the diagonal is 1000 and 0.008 of it is 8 pixels. The lower part of the image has one straight contour.
    lower = [rectangle((600, 800), top, 0, 600, 800) for top in (100, 108, 109)]
    assert contour_accuracy(lower[1], lower[0]) == 1.0
    assert contour_accuracy(lower[2], lower[0]) == 0.0
    # A bar one pixel tall in a 3 x 4 image: diagonal 5, tolerance 0.04 pixels, rounded up to 1.
    bar, below = rectangle((3, 4), 1, 0, 2, 4), rectangle((3, 4), 2, 0, 3, 4)
    # bar: boundary in rows 0 and 1 (8 pixels); below: in row 1 alone (4 pixels), the image ends under it.
    assert boundary_map(bar).sum() == 8 and boundary_map(below).sum() == 4
    assert contour_accuracy(bar, below) == 1.0


def test_partial_match_worked_out_by_hand() -> None:
    # Tolerance 1 pixel. The prediction has the target's line and another one 6 pixels below: precision 1/2, recall 1.
    target = rectangle((20, 10), 5, 0, 20, 10)
    pred = target ^ rectangle((20, 10), 11, 0, 20, 10)
    assert contour_accuracy(pred, target) == pytest.approx(2 * 0.5 / 1.5)
    assert contour_accuracy(target, pred) == pytest.approx(2 * 0.5 / 1.5)


def test_empty_masks() -> None:
    empty, full, some = np.zeros((9, 9), dtype=bool), np.ones((9, 9), dtype=bool), rectangle((9, 9), 2, 2, 5, 5)
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1.0
    for one, other in ((empty, some), (some, empty), (full, some)):
        assert contour_accuracy(one, other) == 0.0
    assert region_similarity(some, empty) == 0.0
    # Neither has a boundary; J tells them apart.
    assert contour_accuracy(full, empty) == 1.0 and region_similarity(full, empty) == 0.0


@pytest.mark.parametrize("tolerance", [0.008, 0.05, 0.3])
def test_f_equals_comparing_all_pixels(tolerance: float) -> None:
    for seed in range(40):
        pred, target = shapes(seed)
        assert contour_accuracy(pred, target, tolerance) == pytest.approx(slow_f(pred, target, tolerance), abs=1e-12)


def test_f_of_pixels_exactly_at_the_tolerance() -> None:
    """3-4-5 triangles: a distance that is a whole number counts as near, for small and for large discs."""
    for scale in (1, 2, 4, 8):  # radii 5 to 40
        hw = (100, 100)
        pred, target = rectangle(hw, 10, 10, 11, 11), rectangle(hw, 10 + 3 * scale, 10 + 4 * scale, 11 + 3 * scale, 99)
        for tolerance in (5 * scale / math.hypot(*hw) * 0.999, (5 * scale - 1) / math.hypot(*hw) * 0.999):
            assert contour_accuracy(pred, target, tolerance) == pytest.approx(slow_f(pred, target, tolerance))


def test_reference_outputs() -> None:
    """What the evaluation program of DAVIS 2017 gives for the same masks (J, F) and numbers (mean, recall, decay)."""
    frozen = json.loads(FIXTURE.read_text("utf-8"))
    for seed, j, f in frozen["frames"]:
        pred, target = shapes(seed)
        assert region_similarity(pred, target) == pytest.approx(j, abs=1e-12)
        assert contour_accuracy(pred, target) == pytest.approx(f, abs=1e-12)
    for count, expected in frozen["statistics"]:
        values = np.random.default_rng(count).random(count).tolist()
        assert sequence_statistics(values) == pytest.approx(expected, abs=1e-12)


def test_statistics_worked_out_by_hand() -> None:
    # Five frames: quarters are frames 0-1, 1-2, 2-3, 3-4. Exactly 0.5 is not above 0.5.
    assert sequence_statistics([1.0, 0.8, 0.5, 0.6, 0.2]) == pytest.approx((0.62, 0.6, 0.9 - 0.4))
    assert sequence_statistics([0.7]) == pytest.approx((0.7, 1.0, 0.0))
    # Three frames: the borders are at 0, 0.5, 1, 1.5, 2, rounded half up: quarters 0-1, 1-1, 1-2, 2-2.
    assert sequence_statistics([0.9, 0.5, 0.1]) == pytest.approx((0.5, 1 / 3, 0.7 - 0.1))
    with pytest.raises(ValueError, match="no frame"):
        sequence_statistics([])


def test_wrong_masks_and_tolerance() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    with pytest.raises(ValueError, match="same shape"):
        contour_accuracy(mask, mask[:3])
    with pytest.raises(ValueError, match="bool array"):
        contour_accuracy(mask.astype(np.uint8), mask)
    with pytest.raises(ValueError, match="bool array"):
        boundary_map(mask.astype(float))
    for tolerance in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tolerance"):
            contour_accuracy(mask, mask, tolerance)


def record(video: str, j: list[float | None], number: int = 1) -> DavisRecord:
    return DavisRecord("davis", video, number, j={"hq": j}, f={"hq": [None if v is None else v / 2 for v in j]})


def test_first_and_last_frame_do_not_count_unless_all_do() -> None:
    values = [0.0, 1.0, 0.6, 0.2, 0.0]
    inner, every = DavisScores(), DavisScores("all")
    for scores in (inner, every):
        scores.merge([[record("swan", values)]])
    scores_of = inner.compute()["davis"]["hq"]
    assert scores_of["j"] == pytest.approx(60.0) and scores_of["f"] == pytest.approx(30.0)
    assert scores_of["jf"] == pytest.approx(45.0)
    assert scores_of["j_recall"] == pytest.approx(200 / 3) and scores_of["j_decay"] == pytest.approx(60.0)
    assert every.compute()["davis"]["hq"]["j"] == pytest.approx(36.0)


def test_a_frame_whose_truth_was_given_never_counts() -> None:
    scores = DavisScores("all")
    scores.merge([[record("swan", [None, 0.4, 0.6])]])
    assert scores.compute()["davis"]["hq"]["j"] == pytest.approx(50.0)


def test_objects_weigh_the_same_however_long_their_video_is() -> None:
    scores = DavisScores("all")
    scores.merge([[record("long", [0.0] * 30)], [record("short", [1.0]), record("short", [1.0], number=2)]])
    assert scores.compute()["davis"]["hq"]["j"] == pytest.approx(200 / 3)
    assert scores.compute()["davis"]["hq"]["n"] == 3
    assert scores.of_videos()["davis"]["short"]["hq"]["j"] == pytest.approx(100.0)


def test_videos_without_a_frame_that_counts() -> None:
    for values in ([0.5, 0.5], [0.5, None, 0.5]):
        with pytest.raises(ValueError, match=r"no frame of .* counts"):
            DavisScores().merge([[record("short", values)]])
    with pytest.raises(ValueError, match=r"no frame of .* counts"):
        DavisScores("all").merge([[record("given", [None])]])
    with pytest.raises(ValueError, match="'inner' or 'all'"):
        DavisScores("some")  # type: ignore[arg-type]


def test_merging_any_split_gives_the_same_numbers_and_json_goes_there_and_back() -> None:
    generator = np.random.default_rng(3)
    records = [record(f"v{k:02d}", generator.random(int(generator.integers(3, 20))).tolist()) for k in range(17)]
    whole = DavisScores()
    whole.merge([records])
    for split in (1, 5, 16):
        parts = [DavisScores(), DavisScores()]
        parts[0].merge([records[split:][::-1]])
        parts[1].merge([[DavisRecord(**json.loads(json.dumps(item.as_dict()))) for item in records[:split]]])
        merged = DavisScores()
        merged.merge(part.state() for part in parts)
        assert merged.compute() == whole.compute() and merged.state() == whole.state()


def test_wrong_records() -> None:
    scores = DavisScores()
    scores.merge([[record("swan", [0.5] * 4)]])
    with pytest.raises(ValueError, match="duplicate record"):
        scores.merge([[record("swan", [0.5] * 4)]])
    with pytest.raises(ValueError, match="same columns"):
        scores.merge([[DavisRecord("davis", "dog", 1, j={"sam": [0.5] * 4}, f={"sam": [0.5] * 4})]])


def test_scoring_an_object_frame_by_frame() -> None:
    target = rectangle((20, 20), 5, 5, 15, 15)
    half, empty = rectangle((20, 20), 5, 5, 10, 15), np.zeros((20, 20), dtype=bool)
    frames = [(None, target), ({"sam": half, "hq": target}, target), ({"sam": empty, "hq": empty}, empty)]
    scored = score_object(DavisSample("davis", "swan", 2, frames))
    assert scored.j == {"sam": [None, 0.5, 1.0], "hq": [None, 1.0, 1.0]}
    assert scored.f["hq"] == [None, 1.0, 1.0] and scored.key == ("davis", "swan", 2)
    scores = DavisScores("all")
    assert scores.update(DavisSample("davis", "swan", 2, frames)) == scored
    assert scores.compute()["davis"]["sam"]["j"] == pytest.approx(75.0)


def test_wrong_frames_of_an_object() -> None:
    mask = np.zeros((4, 4), dtype=bool)
    scorer = ObjectScorer("davis", "swan", 1)
    with pytest.raises(ValueError, match="nothing is predicted in any of 0 frames"):
        scorer.record()
    scorer.add(score_frame({"hq": mask}, mask))
    for wrong in ({}, {"sam": mask}, {"hq": mask, "sam": mask}):
        with pytest.raises(ValueError, match="same columns"):
            scorer.add(score_frame(wrong, mask))
    with pytest.raises(ValueError, match="same shape"):
        score_frame({"hq": mask[:2]}, mask)
