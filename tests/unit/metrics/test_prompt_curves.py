"""Curves over prompts: clicks counted by hand, the best of several annotations, and the evaluator's contract."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from hqsam.metrics import boundary_iou, mask_iou
from hqsam.metrics.clicks import (
    PromptRecord,
    PromptSample,
    PromptScores,
    clicks_to_reach,
    prompt_metrics,
    score_prompts,
)
from hqsam.metrics.evaluator import mean_of_sets

HW = (40, 50)


def box(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros(HW, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def curve(name: str, *ious: float, prompt: str = "clicks", set_name: str = "s") -> PromptRecord:
    steps = {f"click{k}": iou for k, iou in enumerate(ious, start=1)}
    return PromptRecord(set_name, name, 0, prompt, {"sam": steps}, {"sam": dict.fromkeys(steps, 0.5)})


def test_scores_are_those_of_single_masks() -> None:
    target, good, bad = box(5, 5, 25, 25), box(5, 5, 25, 24), box(5, 5, 15, 25)
    sample = PromptSample("s", "i", 0, "points", {"sam": {"points1": bad, "points3": good}}, [target])
    record = score_prompts(sample)
    assert record.miou == {"sam": {"points1": mask_iou(bad, target), "points3": mask_iou(good, target)}}
    assert record.mbiou == {"sam": {"points1": boundary_iou(bad, target), "points3": boundary_iou(good, target)}}


def test_the_best_of_several_annotations_counts() -> None:
    targets = [box(0, 0, 10, 10), box(20, 20, 40, 40)]
    record = score_prompts(PromptSample("s", "i", 0, "point", {"sam": {"point": targets[1]}}, targets))
    assert record.miou["sam"]["point"] == record.mbiou["sam"]["point"] == 1


def test_number_of_clicks_by_hand() -> None:
    """0.85 is reached by the third click and at once; never by the last object, which counts with all three."""
    records = [curve("a", 0.2, 0.8, 0.85), curve("b", 0.95, 0.5, 0.5), curve("c", 0.1, 0.2, 0.3)]
    scores = prompt_metrics(records, "sam")
    assert scores["noc85"] == pytest.approx((3 + 1 + 3) / 3)
    assert scores["nof85"] == 1
    assert scores["noc90"] == pytest.approx((3 + 1 + 3) / 3)
    assert scores["nof90"] == 2
    assert scores["miou_click1"] == pytest.approx(100 * (0.2 + 0.95 + 0.1) / 3)
    assert scores["mbiou_click3"] == 50
    assert scores["n"] == 3
    assert clicks_to_reach([0.1, 0.9], 0.9) == 2
    assert clicks_to_reach([0.1], 0.9) is None


def test_objects_that_never_reach_a_target_are_counted_over_all_sets() -> None:
    records = [curve("a", 0.2), curve("b", 0.3), curve("c", 0.9), curve("d", 0.1, set_name="t")]
    scores = PromptScores()
    scores.merge([records])
    mean = mean_of_sets(scores.compute())["sam"]
    assert (mean["nof85"], mean["nof90"], mean["n"]) == (3, 3, 4)
    assert mean["miou_click1"] == pytest.approx((100 * (0.2 + 0.3 + 0.9) / 3 + 10) / 2)


def test_clicks_are_in_the_order_of_their_numbers() -> None:
    """Twelve clicks: click10 comes after click9, whatever the order in which a file holds them."""
    record = curve("a", *[0.1] * 9, 0.95, 0.2, 0.2)
    shuffled = PromptRecord(**json.loads(json.dumps(record.as_dict(), sort_keys=True)))
    assert prompt_metrics([shuffled], "sam")["noc90"] == 10


def test_kinds_of_prompts_side_by_side() -> None:
    other = PromptRecord("s", "a", 0, "boxes", {"sam": {"noise0.2": 0.5}}, {"sam": {"noise0.2": 0.25}})
    scores = PromptScores()
    scores.merge([[curve("a", 0.9, 0.9), other]])
    numbers = scores.compute()["s"]["sam"]
    assert numbers["miou_noise0.2"] == 50
    assert numbers["miou_click2"] == 90
    assert numbers["n"] == 1


def test_merge_of_any_split_equals_one_pass() -> None:
    records = [curve(f"{k}", *np.random.default_rng(k).random(4).tolist(), set_name="ab"[k % 2]) for k in range(7)]
    whole, merged, read = PromptScores(), PromptScores(), PromptScores()
    whole.merge([records])
    merged.merge(pickle.loads(pickle.dumps([records[4:], records[:4][::-1]])))
    read.merge([[PromptRecord(**json.loads(json.dumps(r.as_dict(), allow_nan=False))) for r in whole.state()]])
    assert merged.state() == whole.state() == read.state()
    assert merged.compute() == whole.compute() == read.compute()
    with pytest.raises(ValueError, match="duplicate"):
        whole.merge([records[:1]])


def test_what_cannot_be_scored() -> None:
    sample = PromptSample("s", "i", 0, "clicks", {"sam": {"click1": box(0, 0, 5, 5)}}, [box(0, 0, 5, 5)])
    for change, message in (
        ({"predictions": {}}, "no prediction"),
        ({"predictions": {"sam": {}}}, "no prediction"),
        ({"targets": []}, "no annotation"),
        ({"targets": [np.zeros((3, 3), dtype=np.bool_)]}, "same shape"),
    ):
        with pytest.raises(ValueError, match=message):
            score_prompts(sample._replace(**change))
    with pytest.raises(ValueError, match="same steps"):
        prompt_metrics([curve("a", 0.1, 0.2), curve("b", 0.1)], "sam")
    with pytest.raises(ValueError, match="same columns"):
        scores = PromptScores()
        scores.merge([[curve("a", 0.1), PromptRecord("s", "b", 0, "clicks", {"hq": {}}, {"hq": {}})]])
    with pytest.raises(ValueError, match=r"within \(0, 1\]"):
        PromptScores(noc_targets=[90])
