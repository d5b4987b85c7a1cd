"""Average recall is pycocotools', though most proposals are never shown to it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hqsam.metrics.instance_records import InstanceRecord, InstanceTruth, TrueImage, TrueInstance
from hqsam.metrics.proposals import ProposalRecord, ProposalSample, ProposalScores
from hqsam.rle import encode_rle
from tests.unit.metrics.instance_cases import coco_results, pycocotools_stats, random_set, with_one_category


def recall_of_pycocotools(
    truth: InstanceTruth, records: list[InstanceRecord], column: str, limits: tuple[int, ...]
) -> dict[str, float]:
    one, found = with_one_category(truth, records)
    recall = pycocotools_stats(one, coco_results(found, column, "iou"), limits).eval["recall"]  # (T, K, A, M)
    means = {}
    for m, limit in enumerate(limits):
        for a, size in enumerate(("", "s", "m", "l")):
            values = recall[:, :, a, m]
            if (values > -1).any():
                means[f"ar{limit}{size}"] = 100.0 * np.mean(values[values > -1])
    return means


@pytest.mark.parametrize("block", range(5))
def test_recall_is_that_of_pycocotools(block: int) -> None:
    for seed in range(30 * block, 30 * block + 30):
        truth, records = random_set(seed)
        limits = ((1, 3, 1000), (2, 5), (10, 100, 1000))[seed % 3]
        scores = ProposalScores({"set": truth}, limits=limits)
        for record in records:
            scores.update(ProposalSample.of_boxes(record))
        found = scores.compute()["set"]
        for column in ("sam", "sum"):
            expected = recall_of_pycocotools(truth, records, column, limits)
            assert {name: value for name, value in found[column].items() if name.startswith("ar")} == expected, seed


def test_recall_by_frequency_is_that_of_their_instances_alone() -> None:
    for seed in range(40):
        truth, records = random_set(seed, lvis=True)
        scores = ProposalScores({"set": truth})
        for record in records:
            scores.update(ProposalSample.of_boxes(record))
        found = scores.compute()["set"]["sum"]
        for letter in "rcf":
            kept = tuple(item for item in truth.instances if truth.categories[item.category] == letter)
            alone = InstanceTruth(truth.images, truth.categories, kept)
            expected = recall_of_pycocotools(alone, records, "sum", (10, 100, 1000))
            for limit in (10, 100, 1000):
                assert found.get(f"ar{limit}{letter}") == expected.get(f"ar{limit}"), seed


def test_the_thousandth_proposal_counts_and_the_next_does_not() -> None:
    square = np.zeros((12, 12), dtype=bool)
    square[2:8, 2:8] = True
    truth = InstanceTruth({1: TrueImage((12, 12))}, {4: ""}, (TrueInstance(1, 4, encode_rle(square), 36.0),))
    for position, expected in ((999, 100.0), (1000, 0.0)):
        masks = [encode_rle(~square)] * 1001
        masks[position] = encode_rle(square)
        scores = ProposalScores({"set": truth})
        scores.update(ProposalSample("set", 1, {"sam": [0.5] * 1001}, {"sam": masks}))
        found = scores.compute()["set"]["sam"]
        assert found["ar1000"] == expected and found["ar100"] == 0.0 and found["n"] == 1


def test_splits_and_json_give_the_same_numbers() -> None:
    for seed in range(6):
        truth, records = random_set(seed + 50, lvis=True)
        whole, half, other = (ProposalScores({"set": truth}) for _ in range(3))
        kept = [whole.update(ProposalSample.of_boxes(record)) for record in records]
        lines = [json.dumps(record.as_dict(), allow_nan=False) for record in kept]
        again = [ProposalRecord(**json.loads(line)) for line in lines]
        half.merge([again[::2]])
        other.merge([again[1::2], half.state()])
        assert other.compute() == whole.compute()


def test_columns_may_have_different_numbers_of_proposals() -> None:
    """Each column's numbers are those that it has alone; one of them finds nothing in some image."""
    for seed in range(6):
        truth, records = random_set(seed + 90)
        both = ProposalScores({"set": truth})
        alone = {column: ProposalScores({"set": truth}) for column in ("sam", "hq")}
        for position, record in enumerate(records):
            sample = ProposalSample.of_boxes(record)
            kept = {"sam": len(sample.masks["sam"]), "hq": position}
            scores = {column: sample.scores["sam"][:count] for column, count in kept.items()}
            masks = {column: sample.masks["sam"][:count] for column, count in kept.items()}
            both.update(replace(sample, scores=scores, masks=masks))
            for column, single in alone.items():
                parts = {"scores": {column: scores[column]}, "masks": {column: masks[column]}}
                single.update(replace(sample, **parts))
        found = both.compute()["set"]
        assert found == {column: single.compute()["set"][column] for column, single in alone.items()}
        assert found["sam"]["n_proposals"] == sum(len(record.categories) for record in records)


def test_unusable_samples() -> None:
    mask = encode_rle(np.ones((20, 20), dtype=bool))
    for scores, masks, text in (
        ({}, {}, "the same columns"),
        ({"sam": [0.5]}, {"hq": [mask]}, "the same columns"),
        ({"best": [0.5]}, {"best": [mask]}, "the same columns"),
        ({"sam": [0.5, 0.4]}, {"sam": [mask]}, "sam: 1 masks, but 2 scores"),
        ({"sam": [float("nan")]}, {"sam": [mask]}, "finite"),
    ):
        with pytest.raises(ValueError, match=text):
            ProposalSample("set", 1, scores, masks)


def test_unusable_records_are_refused() -> None:
    truth = InstanceTruth({1: TrueImage((20, 20)), 2: TrueImage((20, 20))}, {1: ""}, ())
    mask = encode_rle(np.ones((20, 20), dtype=bool))
    sample = ProposalSample("set", 1, {"sam": [0.5]}, {"sam": [mask]})
    scores = ProposalScores({"set": truth})
    kept = scores.update(sample)
    wrong = {
        "duplicate": sample,
        "not in the set": replace(sample, image=3),
        "the sets are set": replace(sample, set="other"),
        "same columns": replace(sample, image=2, scores={"hq": [0.5]}, masks={"hq": [mask]}),
        "20 x 20": replace(sample, image=2, masks={"sam": [encode_rle(np.ones((3, 3), dtype=bool))]}),
    }
    for message, other in wrong.items():
        with pytest.raises(ValueError, match=message):
            scores.update(other)
    with pytest.raises(ValueError, match="other annotations"):
        scores.merge([[replace(kept, image=2, overlaps={"sam": [[0, 4, 0.7]]})]])
    with pytest.raises(ValueError, match="1 of 2 images have no record"):
        scores.compute()


def test_wrong_options() -> None:
    truth, _ = random_set(1)
    for limits in ((), (0, 10)):
        with pytest.raises(ValueError, match="limits are positive"):
            ProposalScores({"set": truth}, limits=limits)
