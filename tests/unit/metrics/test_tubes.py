"""Tube AP: cases worked out by hand, and pycocotools itself for videos of one frame."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.metrics import boundary_iou
from hqsam.metrics.tube_precision import Detection, Truth, average_precision
from hqsam.metrics.tubes import Tube, TubeRecord, TubeSample, TubeScores, tube_area, tube_overlap
from hqsam.rle import Rle, encode_rle, rle_area, rle_box

FIXTURE = Path(__file__).with_name("tubes_reference.json")
COCO_BORDERS = (32.0**2, 96.0**2)
COVERING = 1.0
"""Ring width, as a share of the diagonal, with which every ring is its whole mask."""


def rectangle(y0: int, x0: int, y1: int, x1: int, hw: tuple[int, int] = (40, 50)) -> Rle:
    mask = np.zeros(hw, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return encode_rle(mask)


def compute(
    truths: list[Tube], predictions: list[Tube], dilation_ratio: float = 0.02, **settings: Any
) -> dict[str, float]:
    scores = TubeScores(dilation_ratio, **settings)
    scores.update(TubeSample("vis", "video", truths, {"hq": predictions}))
    return scores.compute()["vis"]["hq"]


def test_overlap_sums_over_frames_before_it_divides() -> None:
    target = [rectangle(0, 0, 10, 10), rectangle(0, 0, 20, 20)]
    pred = [rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 20)]
    assert tube_overlap(pred, target) == (100 + 200) / (100 + 400)
    assert tube_overlap(target, pred) == (100 + 200) / (100 + 400)


def test_missing_frames_count_with_what_the_other_tube_has_there() -> None:
    mask = rectangle(0, 0, 10, 10)
    assert tube_overlap([mask, None], [mask, mask]) == 0.5
    assert tube_overlap([mask, mask], [mask, None]) == 0.5
    assert tube_overlap([mask, None], [mask, None]) == 1.0
    empty = rectangle(0, 0, 0, 0)
    assert tube_overlap([mask, empty], [mask, None]) == 1.0
    assert tube_overlap([None, empty], [empty, None]) == 0.0


def test_overlap_with_a_crowd_is_relative_to_the_prediction() -> None:
    crowd = [rectangle(0, 0, 30, 30), None]
    assert tube_overlap([rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 10)], crowd, is_crowd=True) == 0.5
    assert tube_overlap([None, None], crowd, is_crowd=True) == 0.0


def test_tubes_that_cannot_be_of_one_video() -> None:
    mask = rectangle(0, 0, 10, 10)
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        tube_overlap([mask], [mask, None])
    with pytest.raises(ValueError, match="one size"):
        tube_overlap([mask], [rectangle(0, 0, 10, 10, (40, 51))])
    with pytest.raises(ValueError, match=r"vis, video: every tube .* lengths \[1, 2\]"):
        compute([Tube(1, [mask, mask])], [Tube(1, [mask])])


def test_mean_area_is_over_the_frames_in_which_there_is_something() -> None:
    assert tube_area([rectangle(0, 0, 10, 10), None, rectangle(0, 0, 0, 0), rectangle(0, 0, 20, 10)]) == 150
    assert tube_area([None]) == 0.0


def test_ap_worked_out_by_hand() -> None:
    """Overlaps 0.8 and 0.6: matched at 7 and at 3 of the ten thresholds."""
    truths = [Tube(1, [rectangle(0, 0, 10, 10)] * 2), Tube(1, [rectangle(20, 20, 30, 30)] * 2)]
    predictions = [
        Tube(1, [rectangle(0, 0, 10, 8)] * 2, score=0.9),
        Tube(1, [rectangle(20, 20, 30, 26)] * 2, score=0.8),
    ]
    scores = compute(truths, predictions)
    # One of two objects at full precision fills the recall thresholds 0.00 to 0.50, 51 of 101.
    assert scores["ap50"] == pytest.approx(100)
    assert scores["ap75"] == pytest.approx(100 * 51 / 101)
    assert scores["ap"] == pytest.approx(10 * (3 * 1 + 4 * 51 / 101))
    assert scores["ar10"] == pytest.approx(10 * (3 * 1 + 4 * 0.5)) and scores["ar1"] == pytest.approx(10 * 7 * 0.5)
    assert scores["n"] == 2 and scores["n_videos"] == 1 and scores["n_predictions"] == 2
    assert scores["aps"] == scores["ap"] and "apm" not in scores and "apl" not in scores


def test_a_wrong_association_is_a_wrong_mask() -> None:
    one, other = rectangle(0, 0, 10, 10), rectangle(20, 20, 30, 30)
    truths = [Tube(1, [one, one]), Tube(1, [other, other])]
    right = [Tube(1, [one, one]), Tube(1, [other, other])]
    swapped = [Tube(1, [one, other]), Tube(1, [other, one])]
    assert compute(truths, right)["ap"] == pytest.approx(100)
    assert compute(truths, swapped)["ap"] == 0.0


def test_boundary_overlap_is_the_smaller_one_of_rings_and_masks() -> None:
    """The size of the hole is wrong by a pixel: nearly the same area, another inner boundary."""
    target, pred = np.zeros((200, 200), dtype=bool), np.zeros((200, 200), dtype=bool)
    target[20:180, 20:180] = pred[20:180, 20:180] = True
    pred[60:140, 60:140] = False
    scores = TubeScores(0.01)
    frames: list[NDArray[np.bool_]] = [target, pred]
    record = scores.update(
        TubeSample("vis", "v", [Tube(1, [encode_rle(target)] * 2)], {"hq": [Tube(1, [encode_rle(m) for m in frames])]})
    )
    prediction = record.predictions["hq"][0]
    assert prediction["overlap"] == [(160**2 + 160**2 - 80**2) / (2 * 160**2)]
    width = round(0.01 * math.hypot(200, 200))
    ring, hole = 160**2 - (160 - 2 * width) ** 2, (80 + 2 * width) ** 2 - 80**2
    assert prediction["overlap_b"] == [pytest.approx(2 * ring / (2 * ring + hole))]
    single = scores.update(
        TubeSample("vis", "w", [Tube(1, [encode_rle(target)])], {"hq": [Tube(1, [encode_rle(pred)])]})
    )
    assert single.predictions["hq"][0]["overlap_b"] == [pytest.approx(boundary_iou(pred, target, 0.01))]


def test_boundary_ap_is_mask_ap_when_the_rings_cover_the_masks() -> None:
    scores = TubeScores(COVERING)
    scores.merge([[record] for record in random_records(COVERING)])
    for column in scores.compute()["vis"].values():
        for name in ("ap", "ap50", "ap75", "ar1", "ar10", "ar100"):
            assert column[f"{name[:2]}_b{name[2:]}"] == column[name] > 0


def random_videos(seed: int, frames: int) -> list[TubeSample]:
    """Videos with boxes and discs of three categories, some crowds, and predictions that are more or less off."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :80]

    def tube(number: int, wobble: float) -> list[Rle | None]:
        own = np.random.default_rng(1000 * seed + number)
        cy, cx, size = own.uniform(0, 60), own.uniform(0, 80), own.uniform(2, 25)
        dy, dx, grow = generator.normal(0, wobble, 3)
        masks: list[Rle | None] = []
        for k in range(frames):
            inside = np.hypot(y - cy - dy - k, x - cx - dx) < size * (1 + grow / 10)
            masks.append(None if own.random() < 0.15 and k else encode_rle(inside))
        return masks

    samples = []
    for video in range(12):
        count = int(generator.integers(0, 7))
        numbers = [10 * video + k for k in range(count)]
        truths = [Tube(1 + n % 3, tube(n, 0.0), is_crowd=bool(n % 11 == 10)) for n in numbers]
        predictions = {
            column: [
                Tube(1 + int(generator.integers(0, 4) if n % 9 == 0 else n % 3), tube(n, wobble), round(score, 1))
                for n, score in zip(
                    [*numbers, *numbers, 10 * video + 9], generator.random(2 * count + 1).tolist(), strict=True
                )
            ]
            for column, wobble in (("sam", 3.0), ("hq", 1.0))
        }
        samples.append(TubeSample("vis", f"v{video:02d}", truths, predictions))
    return samples


def random_records(dilation_ratio: float = 0.02, frames: int = 4) -> list[TubeRecord]:
    scores = TubeScores(dilation_ratio)
    return [scores.update(sample) for sample in random_videos(7, frames)]


def coco_numbers(samples: list[TubeSample], column: str) -> dict[str, float]:
    """What pycocotools says about videos of one frame."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truths, found = [], []
    for image, sample in enumerate(samples, start=1):
        for tube in sample.truths:
            mask = tube.masks[0]
            assert mask is not None
            truths.append(
                {"id": len(truths) + 1, "image_id": image, "category_id": tube.category, "bbox": rle_box(mask)}
            )
            truths[-1] |= {"segmentation": mask, "area": rle_area(mask), "iscrowd": int(tube.is_crowd)}
        for tube in sample.predictions[column]:
            found.append({"image_id": image, "category_id": tube.category, "segmentation": tube.masks[0]})
            found[-1]["score"] = tube.score
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO()
        table.dataset = {
            "info": {},
            "images": [{"id": k, "height": 60, "width": 80} for k in range(1, len(samples) + 1)],
            "categories": [{"id": k} for k in (1, 2, 3, 4)],
            "annotations": truths,
        }
        table.createIndex()
        evaluation = COCOeval(table, table.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("ap", "ap50", "ap75", "aps", "apm", "apl", "ar1", "ar10", "ar100")
    return {name: 100 * float(value) for name, value in zip(names, evaluation.stats, strict=False)}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("column", ["sam", "hq"])
def test_tubes_of_one_frame_are_scored_as_coco_scores_masks(seed: int, column: str) -> None:
    samples = random_videos(seed, frames=1)
    scores = TubeScores(COVERING, area_borders=COCO_BORDERS)
    for sample in samples:
        scores.update(sample)
    ours = scores.compute()["vis"][column]
    for name, value in coco_numbers(samples, column).items():
        if value == -100:
            assert name not in ours
        else:
            assert ours[name] == pytest.approx(value, abs=1e-10), name
            assert ours[f"{name[:2]}_b{name[2:]}"] == pytest.approx(value, abs=1e-10), name
    assert 5 < ours["ap"] < 95


@pytest.mark.parametrize("seed", [4, 5])
def test_reference_outputs(seed: int) -> None:
    """What the evaluation program of HQ-YTVIS gives for the same tubes; it does not tell crowds from objects."""
    scores = TubeScores()
    for sample in random_videos(seed, frames=5):
        scores.update(sample._replace(truths=[truth._replace(is_crowd=False) for truth in sample.truths]))
    ours = scores.compute()["vis"]
    for column, numbers in json.loads(FIXTURE.read_text("utf-8"))[str(seed)].items():
        for name, value in numbers.items():
            assert ours[column].get(name) == (None if value is None else pytest.approx(value, abs=1e-9)), name


def test_sizes_go_by_the_stated_area_where_there_is_one() -> None:
    masks = [rectangle(0, 0, 10, 10)]
    assert "apl" in compute([Tube(1, masks, area=70000.0)], [Tube(1, masks)])
    assert "apm" in compute([Tube(1, masks)], [Tube(1, masks)], area_borders=(50.0, 500.0))


def test_no_true_tubes_no_predictions() -> None:
    masks = [rectangle(0, 0, 10, 10)]
    nothing = compute([], [Tube(1, masks)])
    assert nothing == {"n": 0, "n_videos": 1, "n_predictions": 1}
    assert compute([], []) == {"n": 0, "n_videos": 1, "n_predictions": 0}
    missed = compute([Tube(1, masks)], [])
    assert missed["ap"] == missed["ap_b"] == missed["ar10"] == 0.0
    only_crowds = compute([Tube(1, masks, is_crowd=True)], [Tube(1, masks)])
    assert only_crowds == {"n": 0, "n_videos": 1, "n_predictions": 1}
    empty_truth = compute([Tube(1, [None])], [Tube(1, [None])])
    assert empty_truth["ap"] == 0.0 and empty_truth["n"] == 1


def test_predictions_of_a_category_that_nothing_true_has() -> None:
    """They count neither for nor against, as in COCO; in another video's category they are false positives."""
    masks = [rectangle(0, 0, 10, 10)]
    truth, hit = Tube("cat", masks), Tube("cat", masks, score=0.5)
    alone = compute([truth], [hit])
    assert compute([truth], [Tube("dog", masks, score=0.9), hit])["ap"] == alone["ap"] == pytest.approx(100)
    scores = TubeScores()
    scores.update(TubeSample("vis", "a", [truth], {"hq": [hit]}))
    scores.update(TubeSample("vis", "b", [], {"hq": [Tube("cat", masks, score=0.9)]}))
    assert scores.compute()["vis"]["hq"]["ap"] == pytest.approx(50)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite(score: float) -> None:
    masks = [rectangle(0, 0, 10, 10)]
    with pytest.raises(ValueError, match="finite"):
        compute([Tube(1, masks)], [Tube(1, masks, score=score)])


def test_wrong_records() -> None:
    masks = [rectangle(0, 0, 10, 10)]
    scores = TubeScores()
    sample = TubeSample("vis", "a", [Tube(1, masks)], {"hq": [Tube(1, masks)]})
    scores.update(sample)
    with pytest.raises(ValueError, match="duplicate record"):
        scores.update(sample)
    with pytest.raises(ValueError, match="same columns"):
        scores.update(sample._replace(video="b", predictions={"sam": []}))
    with pytest.raises(ValueError, match="no column"):
        scores.update(sample._replace(video="b", predictions={}))
    with pytest.raises(ValueError, match="1 overlaps, there are 0"):
        list(average_precision([[Truth(1, 9.0, False)]], [[Detection(2, 0.5, 9.0, [0.5])]]))


def test_merging_any_split_gives_the_same_numbers_and_json_goes_there_and_back() -> None:
    records = random_records()
    whole = TubeScores()
    whole.merge([records])
    expected = whole.compute()
    for split in (1, 6, 11):
        parts = [TubeScores(), TubeScores()]
        parts[0].merge([records[split:][::-1]])
        parts[1].merge([[TubeRecord(**json.loads(json.dumps(r.as_dict(), allow_nan=False))) for r in records[:split]]])
        merged = TubeScores()
        merged.merge(part.state() for part in parts)
        assert merged.compute() == expected and merged.state() == whole.state()
