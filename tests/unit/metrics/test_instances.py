"""AP is pycocotools' and lvis's to the last bit; boundary AP by hand and by a per-pixel oracle."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace

import numpy as np
import pytest

from hqsam.metrics.evaluator import mean_of_sets
from hqsam.metrics.instance_overlaps import LOWEST, METRICS, overlaps_of_columns
from hqsam.metrics.instance_records import InstanceRecord, InstanceTruth, TrueImage, TrueInstance
from hqsam.metrics.instances import InstanceScores, make_matchings
from hqsam.rle import decode_rle, encode_rle
from tests.unit.metrics.instance_cases import (
    COLUMNS,
    coco_dataset,
    coco_results,
    pycocotools_stats,
    random_set,
    with_one_category,
)

NAMES = ("ap", "ap50", "ap75", "aps", "apm", "apl")


def scored(truth: InstanceTruth, records: list[InstanceRecord], **options: object) -> InstanceScores:
    scores = InstanceScores({"set": truth}, **options)  # type: ignore[arg-type]
    scores.merge([records])
    return scores


@pytest.mark.parametrize("block", range(10))
def test_ap_is_that_of_pycocotools(block: int) -> None:
    for seed in range(30 * block, 30 * block + 30):
        truth, records = random_set(seed)
        by = ("box", "iou", "product")[seed % 3]
        found = scored(truth, records, score=by, metrics=("ap",)).compute()["set"]
        for column in COLUMNS:
            expected = pycocotools_stats(truth, coco_results(records, column, by)).stats[:6]
            assert [found[column].get(name, -1.0) for name in NAMES] == [
                -1.0 if value == -1 else 100.0 * value for value in expected
            ], seed


def test_class_agnostic_ap_is_that_of_pycocotools_with_one_category() -> None:
    for seed in range(60):
        truth, records = random_set(seed)
        found = scored(truth, records, class_agnostic=True, metrics=("ap",)).compute()["set"]["sum"]
        results = coco_results(with_one_category(truth, records)[1], "sum")
        expected = pycocotools_stats(truth.without_categories(), results).stats[:6]
        assert [found.get(name, -1.0) for name in NAMES] == [-1.0 if v == -1 else 100.0 * v for v in expected]


def test_class_agnostic_ap_is_that_of_pycocotools_without_categories() -> None:
    """useCats=0, which orders equal scores by category: scores are made different here."""
    for seed in range(30):
        truth, records = random_set(seed)
        generator = np.random.default_rng(seed)
        records = [replace(r, box_scores=generator.permutation(len(r.box_scores)).tolist()) for r in records]
        found = scored(truth, records, class_agnostic=True, metrics=("ap",)).compute()["set"]["sam"]
        run = pycocotools_stats(truth, coco_results(records, "sam"), use_cats=False)
        assert [found.get(name, -1.0) for name in NAMES] == [-1.0 if v == -1 else 100.0 * v for v in run.stats[:6]]


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated")
@pytest.mark.parametrize("block", range(6))
def test_lvis_ap_is_that_of_lvis(block: int) -> None:
    pytest.importorskip("lvis")
    from hqsam.metrics.lvis_matching import _indexed, _lvis

    module = _lvis()
    names = {name: name.lower() for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")}
    for seed in range(30 * block, 30 * block + 30):
        truth, records = random_set(seed, lvis=True)
        results = coco_results(records, "sum")
        if not results:  # the package cannot be given an empty list
            continue
        found = scored(truth, records, rules="lvis", metrics=("ap",)).compute()["set"]["sum"]
        gt = _indexed(module.LVIS, coco_dataset(truth))
        run = module.LVISEval(gt, module.LVISResults(gt, results), "segm")
        run.run()
        expected = {names[name]: 100.0 * value for name, value in run.results.items() if name in names and value > -1}
        assert {name: found[name] for name in names.values() if name in found} == expected, seed


def test_lvis_with_nothing_found_nothing_annotated_or_one_frequency() -> None:
    pytest.importorskip("lvis")
    truth, records = random_set(4, lvis=True)
    truth = replace(truth, categories=dict.fromkeys(truth.categories, "c"))
    found = scored(truth, records, rules="lvis").compute()["set"]["sam"]
    assert "ap" in found and found["apc"] == found["ap"] and "apr" not in found and "ap_bf" not in found
    nothing = [InstanceRecord("set", k, [], [], {"sam": []}, {"sam": []}) for k in truth.images]
    assert scored(truth, nothing, rules="lvis").compute()["set"]["sam"]["ap_b"] == 0.0
    for few in (records, nothing):
        empty = scored(replace(truth, instances=()), few, rules="lvis").compute()["set"]["sam"]
        assert empty["n"] == 0 and not any(name.startswith("ap") for name in empty)


def test_lvis_counts_300_masks_of_an_image() -> None:
    pytest.importorskip("lvis")
    square = np.zeros((12, 12), dtype=bool)
    square[2:8, 2:8] = True
    rle, wrong = encode_rle(square), encode_rle(~square)
    truth = InstanceTruth({1: TrueImage((12, 12))}, {4: "r"}, (TrueInstance(1, 4, rle, 36.0),))
    for position, expected in ((299, True), (300, False)):
        masks = [wrong] * 301
        masks[position] = rle
        record = InstanceRecord("set", 1, [4] * 301, [0.5] * 301, {"sam": [0.5] * 301}, {"sam": masks})
        found = scored(truth, [record], rules="lvis").compute()["set"]["sam"]
        assert (found["ap"] > 0) == expected


def test_importing_lvis_leaves_numpy_and_the_root_logger_alone() -> None:
    pytest.importorskip("lvis")
    from hqsam.metrics.lvis_matching import _lvis

    handlers = list(logging.getLogger().handlers)
    assert _lvis().np.float is float or hasattr(np, "float")
    assert not hasattr(np, "float") or np.__version__ < "1.24"
    assert logging.getLogger().handlers == handlers


def test_lvis_rules_need_frequencies() -> None:
    pytest.importorskip("lvis")
    truth, records = random_set(3)
    with pytest.raises(ValueError, match="frequency r, c or f"):
        scored(truth, records, rules="lvis").compute()
    with pytest.raises(ValueError, match="class_agnostic"):
        InstanceScores({"set": truth}, rules="lvis", class_agnostic=True)


def erode_once(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifts = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_and.reduce(shifts)


def ring(mask: np.ndarray, ratio: float) -> np.ndarray:
    core = mask
    for _ in range(max(1, round(ratio * np.hypot(*mask.shape)))):
        core = erode_once(core)
    return mask & ~core


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def test_overlaps_are_those_of_every_pixel() -> None:
    """Directly by definition, at full image size; below the lowest threshold only the side of it counts."""
    for seed in range(25):
        truth, records = random_set(seed)
        records = sorted(records, key=lambda record: record.image)
        matching = make_matchings(truth, records, ["sum"], "box", "coco")["sum"]
        sizes = [truth.images[record.image].size_hw for record in records]
        tables = overlaps_of_columns({"sum": matching.pairs()}, sizes, METRICS)["sum"].of
        for key, pairs in matching.pairs().items():
            for row, rle in enumerate(pairs.detections):
                for column, true in enumerate(pairs.truth):
                    own, other = decode_rle(rle), decode_rle(true)
                    plain = tables["ap"][key][row, column]
                    for name, ratio in (("ap_b", 0.02), ("ap_b_strict", 0.01)):
                        expected = min(iou(own, other), iou(ring(own, ratio), ring(other, ratio)))
                        found = tables[name][key][row, column]
                        if pairs.crowd[column]:
                            assert found == plain
                        elif iou(own, other) < LOWEST:
                            assert found == plain < LOWEST
                        else:
                            assert found == expected


def one_image(truth: np.ndarray, pred: np.ndarray, *, crowd: bool = False) -> dict[str, float]:
    size = truth.shape
    true = InstanceTruth({7: TrueImage(size)}, {1: ""}, (TrueInstance(7, 1, encode_rle(truth), 500.0, crowd),))
    record = InstanceRecord("set", 7, [1], [0.9], {"hq": [0.5]}, {"hq": [encode_rle(pred)]})
    return scored(true, [record]).compute()["set"]["hq"]


def square(size: int, low: int, high: int) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[low:high, low:high] = True
    return mask


def assert_percent(found: dict[str, float], expected: dict[str, float]) -> None:
    """pycocotools adds 2e-16 to what it divides by."""
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_boundary_ap_by_hand() -> None:
    """100 x 100 pixels: rings of 3 and 1. A square of side 40 against one of side 36 inside it: 1296/1600 = 0.81 of
    the mask; rings of 40² - 34² = 444 and 36² - 30² = 396 pixels share the 36² - 34² = 140 of both: 140/700 = 0.2."""
    found = one_image(square(100, 30, 70), square(100, 32, 68))
    assert_percent(found, {"ap": 70.0, "ap_b": 0.0, "ap_b_strict": 0.0})
    # One pixel less on each side: masks 1444/1600 = 0.9025; rings 38² - 34² = 288 in common of 444 + 420 - 288 = 576:
    # 0.5 exactly, which reaches the threshold 0.5; rings of one pixel have nothing in common.
    found = one_image(square(100, 30, 70), square(100, 31, 69))
    assert_percent(found, {"ap": 90.0, "ap_b": 10.0, "ap_b50": 100.0, "ap_b75": 0.0, "ap_b_strict50": 0.0})
    same = one_image(square(100, 30, 70), square(100, 30, 70))
    assert_percent(same, {"ap": 100.0, "ap_b": 100.0, "ap_b_strict": 100.0})


def test_the_border_of_the_image_is_boundary() -> None:
    """The left half of 100 x 100 pixels, ring 3: 50 * 100 - 44 * 94 = 864 pixels. Without its first column: 49 * 100 -
    43 * 94 = 858, all but 94 in the first ring. So 764 of 958 or 0.797 of the rings, 0.98 of the masks."""
    half = np.zeros((100, 100), dtype=bool)
    half[:, :50] = True
    less = half.copy()
    less[:, 0] = False
    assert_percent(one_image(half, less), {"ap": 100.0, "ap_b": 60.0})


def test_where_the_ring_covers_the_masks_boundary_ap_is_ap() -> None:
    """Masks of at most three pixels across, in images whose ring is at least two wide."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        images, instances, records = {}, [], []
        for number in range(3):
            size = (100, 110)
            images[number] = TrueImage(size)
            masks = []
            for k in range(6):
                mask = np.zeros(size, dtype=bool)
                mask[10 * k : 10 * k + 2, 5 : generator.integers(20, 60)] = True
                instances.append(TrueInstance(number, k % 2, encode_rle(mask), float(mask.sum())))
                masks.append(encode_rle(np.roll(mask, int(generator.integers(-3, 4)), axis=1)))
            records.append(
                InstanceRecord(
                    "set", number, [0, 1] * 3, generator.random(6).tolist(), {"hq": [0.0] * 6}, {"hq": masks}
                )
            )
        found = scored(InstanceTruth(images, {0: "", 1: ""}, tuple(instances)), records).compute()["set"]["hq"]
        suffixes = ("", "50", "75", "s", "m", "l")
        assert {s: found.get(f"ap{s}") for s in suffixes} == {s: found.get(f"ap_b{s}") for s in suffixes}
        assert 0 < found["ap"] < 100


def test_crowds_go_by_mask_iou_alone() -> None:
    """A mask within a crowd is no error: the share of the mask that lies in the crowd is 1."""
    instance, crowd = square(100, 5, 25), square(100, 30, 90)
    inside = square(100, 40, 60)
    images = {1: TrueImage((100, 100))}
    items = (TrueInstance(1, 1, encode_rle(instance), 400.0), TrueInstance(1, 1, encode_rle(crowd), 3600.0, True))
    masks = [encode_rle(inside), encode_rle(instance)]
    record = InstanceRecord("set", 1, [1, 1], [0.9, 0.8], {"sam": [1.0, 1.0]}, {"sam": masks})
    found = scored(InstanceTruth(images, {1: ""}, items), [record]).compute()["set"]["sam"]
    assert found["ap"] == found["ap_b"] == found["ap_b_strict"] == pytest.approx(100.0, abs=1e-9)
    assert found["n"] == 1 and found["n_crowd"] == 1


def test_splits_merge_to_the_same_numbers() -> None:
    for seed in range(5):
        truth, records = random_set(seed + 100)
        whole = scored(truth, records)
        parts = [InstanceScores({"set": truth}) for _ in range(3)]
        for position, record in enumerate(random.Random(seed).sample(records, len(records))):
            parts[position % 3].update(record)
        merged = InstanceScores({"set": truth})
        merged.merge([part.state() for part in reversed(parts)])
        assert merged.compute() == whole.compute()


def test_records_survive_json() -> None:
    truth, records = random_set(8)
    lines = [json.dumps(record.as_dict(), allow_nan=False) for record in records]
    again = [InstanceRecord(**json.loads(line)) for line in lines]
    assert again == records
    assert scored(truth, again).compute() == scored(truth, records).compute()


def test_nothing_annotated_or_nothing_found() -> None:
    truth, records = random_set(5)
    empty = replace(truth, instances=())
    for metrics in scored(empty, records).compute()["set"].values():
        assert metrics["n"] == 0 and not any(name.startswith("ap") for name in metrics)
    nothing = [InstanceRecord("set", k, [], [], {"sam": []}, {"sam": []}) for k in truth.images]
    assert scored(truth, nothing).compute()["set"]["sam"]["ap_b"] == 0.0


def test_an_annotation_without_pixels_is_a_miss() -> None:
    size = (20, 20)
    items = (
        TrueInstance(1, 1, encode_rle(np.zeros(size, dtype=bool)), 0.0),
        TrueInstance(1, 1, encode_rle(square(20, 2, 9)), 49.0),
    )
    record = InstanceRecord("set", 1, [1], [0.9], {"sam": [1.0]}, {"sam": [items[1].rle]})
    found = scored(InstanceTruth({1: TrueImage(size)}, {1: ""}, items), [record]).compute()["set"]["sam"]
    assert found["ap"] == found["ap_b"] == pytest.approx(100 * 51 / 101)


def test_text_as_image_ids() -> None:
    truth, records = random_set(12)
    names = {number: f"{number:03d}.jpg" for number in truth.images}
    renamed = InstanceTruth(
        {names[k]: v for k, v in truth.images.items()},
        truth.categories,
        tuple(item._replace(image=names[item.image]) for item in truth.instances),
    )
    again = [replace(record, image=names[record.image]) for record in records]
    assert scored(renamed, again).compute() == scored(truth, records).compute()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box_scores": [float("nan")]}, "finite"),
        ({"iou_scores": {"sam": [float("inf")]}}, "finite"),
        ({"box_scores": []}, "1 categories"),
        ({"masks": {}}, "same columns"),
        ({"iou_scores": {"hq": [0.5]}}, "same columns"),
        ({"iou_scores": {"x": [0.5]}, "masks": {"x": [encode_rle(square(20, 2, 9))]}}, "same columns of sam, hq, sum"),
        ({"categories": [3]}, "no category 3"),
        ({"image": 2}, "not in the set"),
        ({"set": "other"}, "the sets are set"),
        ({"masks": {"sam": [encode_rle(square(21, 2, 9))]}}, "20 x 20"),
    ],
)
def test_unusable_records_are_refused(change: dict[str, object], message: str) -> None:
    truth = InstanceTruth({1: TrueImage((20, 20))}, {1: ""}, ())
    good = {
        "set": "set",
        "image": 1,
        "categories": [1],
        "box_scores": [0.5],
        "iou_scores": {"sam": [0.5]},
        "masks": {"sam": [encode_rle(square(20, 2, 9))]},
    }
    InstanceScores({"set": truth}).update(InstanceRecord(**good))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        InstanceScores({"set": truth}).update(InstanceRecord(**{**good, **change}))  # type: ignore[arg-type]


def test_duplicates_missing_records_and_other_columns_are_refused() -> None:
    images = {k: TrueImage((20, 20)) for k in (1, 2)}
    scores = InstanceScores({"set": InstanceTruth(images, {1: ""}, ())})
    scores.update(InstanceRecord("set", 1, [], [], {"sam": []}, {"sam": []}))
    with pytest.raises(ValueError, match="duplicate"):
        scores.update(InstanceRecord("set", 1, [], [], {"sam": []}, {"sam": []}))
    with pytest.raises(ValueError, match="same columns"):
        scores.update(InstanceRecord("set", 2, [], [], {"hq": []}, {"hq": []}))
    with pytest.raises(ValueError, match="1 of 2 images have no record"):
        scores.compute()
    half = InstanceScores({"set": scores.truths["set"].of_images([1])})
    half.merge([scores.state()])
    assert half.compute()["set"]["sam"]["n_images"] == 1


@pytest.mark.parametrize(
    ("images", "items", "message"),
    [
        ({}, (), "at least one image"),
        ({1: TrueImage((20, 20)), "1": TrueImage((20, 20))}, (), "all numbers or all text"),
        ({1: TrueImage((20, 20))}, (TrueInstance(2, 1, encode_rle(square(20, 1, 2)), 1.0),), "image is not listed"),
        ({1: TrueImage((20, 20))}, (TrueInstance(1, 2, encode_rle(square(20, 1, 2)), 1.0),), "category 2"),
        ({1: TrueImage((20, 21))}, (TrueInstance(1, 1, encode_rle(square(20, 1, 2)), 1.0),), "its mask is"),
        ({1: TrueImage((20, 20))}, (TrueInstance(1, 1, encode_rle(square(20, 1, 2)), float("nan")),), "area"),
    ],
)
def test_unusable_truth_is_refused(images: dict, items: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceTruth(images, {1: ""}, items)


def test_options_are_checked_and_described() -> None:
    truth, _ = random_set(1)
    for wrong in ({"score": "area"}, {"rules": "voc"}, {"metrics": ("ap_c",)}, {"metrics": ()}):
        with pytest.raises(ValueError, match="score is one of"):
            InstanceScores({"set": truth}, **wrong)  # type: ignore[arg-type]
    described = InstanceScores({"set": truth}, score="product").describe()
    assert described["score"] == "product" and "0.02" in described["overlap"]["ap_b"]


def test_the_mean_over_sets_leaves_out_what_a_set_does_not_define() -> None:
    sets = {
        "a": {"sam": {"ap": 10.0, "aps": 4.0, "n": 3}, "hq": {"ap": 30.0, "n": 3}},
        "b": {"sam": {"ap": 20.0, "n": 5}, "hq": {"ap": 50.0, "n": 5}},
    }
    assert mean_of_sets(sets) == {"sam": {"ap": 15.0, "aps": 4.0, "n": 8}, "hq": {"ap": 40.0, "n": 8}}
    assert mean_of_sets({}) == {}
