from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from hqsam import SamPredictor, create_model
from hqsam.automatic import SamAutomaticMaskGenerator, search
from hqsam.automatic.presets import PRESETS
from hqsam.automatic.search import CPU_POINTS, GridSearch
from hqsam.models import Sam, ScoreHead
from hqsam.rle import decode_rle
from tests.helpers import fill_parameters

EVERYTHING: dict[str, Any] = {
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "crop_nms_thresh": 1.0,
}
KEYS = ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"]


@pytest.fixture(scope="module")
def model() -> Sam:
    built = create_model("hq_test_tiny", device="cpu")
    fill_parameters(built, 7)
    return built


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)


def generate(model: Sam, image: np.ndarray, *arguments: Any, **options: Any) -> list[Any]:
    settings = {"points_per_side": 3, "output_mode": "coco_rle", **EVERYTHING, **options}
    return SamAutomaticMaskGenerator(model, **settings).generate(image, *arguments)


def test_records(model: Sam, image: np.ndarray) -> None:
    records = generate(model, image, output_mode="binary_mask")
    assert len(records) == 9
    for record in records:
        assert list(record) == KEYS
        mask = record["segmentation"]
        assert mask.shape == (48, 70) and mask.dtype == np.bool_
        assert record["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        if len(xs):
            assert record["bbox"] == [xs.min(), ys.min(), np.ptp(xs), np.ptp(ys)]
        assert record["crop_box"] == [0, 0, 70, 48]
        assert 0 <= record["stability_score"] <= 1
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)
    points = sorted(record["point_coords"][0] for record in records)
    expected = [[(x + 0.5) * 70 / 3, (y + 0.5) * 16] for x in range(3) for y in range(3)]
    np.testing.assert_allclose(points, expected)


def test_output_modes_hold_the_same_masks(model: Sam, image: np.ndarray) -> None:
    masks = [record["segmentation"] for record in generate(model, image, output_mode="binary_mask")]
    for mode in ("uncompressed_rle", "coco_rle"):
        records = generate(model, image, output_mode=mode)
        assert json.loads(json.dumps(records)) == records
        for mask, record in zip(masks, records, strict=True):
            np.testing.assert_array_equal(decode_rle(record["segmentation"]), mask)


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_batches_change_nothing(model: Sam, image: np.ndarray, batch: int) -> None:
    for expected, actual in zip(generate(model, image), generate(model, image, points_per_batch=batch), strict=True):
        assert actual["predicted_iou"] == pytest.approx(expected["predicted_iou"], abs=1e-5)
        assert actual["point_coords"] == expected["point_coords"]
        difference = decode_rle(actual["segmentation"]) != decode_rle(expected["segmentation"])
        assert difference.mean() < 0.002


def test_memory_does_not_follow_the_batch_size(model: Sam, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    ask = GridSearch._ask
    monkeypatch.setattr(
        GridSearch, "_ask", lambda self, points, *rest: sizes.append(len(points)) or ask(self, points, *rest)
    )
    generate(model, image, points_per_side=6, points_per_batch=4096)
    assert sum(sizes) == 36 and max(sizes) == CPU_POINTS


def test_how_many_masks_a_point_gives(model: Sam, image: np.ndarray) -> None:
    assert len(generate(model, image, candidates="all")) == 27
    assert len(generate(model, image, fusion="sam")) == 27
    assert len(generate(model, image, fusion="hq", candidates="all")) == 9
    assert len(generate(model, image, False, candidates="all")) == 9
    assert len(generate(model, image, False, fusion="sam")) == 9


def test_plain_sam_is_fusion_sam(model: Sam, image: np.ndarray) -> None:
    plain = create_model("sam_test_tiny", device="cpu")
    names = plain.state_dict()
    plain.load_state_dict(
        {
            key.replace(".trunk.", "."): value
            for key, value in model.state_dict().items()
            if key.replace(".trunk.", ".") in names
        }
    )
    assert generate(plain, image) == generate(model, image, fusion="sam")


def test_a_point_at_a_time_is_the_predictor(model: Sam, image: np.ndarray) -> None:
    (record,) = generate(model, image, points_per_side=1, output_mode="binary_mask")
    predictor = SamPredictor(model)
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(np.array([[35.0, 24.0]]), np.array([1]))
    assert (masks[0] == record["segmentation"]).mean() > 0.999
    assert scores[0] == pytest.approx(record["predicted_iou"], abs=1e-6)


def test_duplicates_are_suppressed(model: Sam, image: np.ndarray) -> None:
    # the masks of random weights all fill the image
    assert len(generate(model, image, box_nms_thresh=0.7)) < 9
    assert len(generate(model, image, box_nms_thresh=0.0)) == 1


def test_thresholds(model: Sam, image: np.ndarray) -> None:
    everything = generate(model, image)
    ious = sorted(record["predicted_iou"] for record in everything)
    assert len(generate(model, image, pred_iou_thresh=ious[3])) == 5  # the limit itself is dropped, as in the original
    assert len(generate(model, image, pred_iou_thresh=-1.0)) == len(everything)
    assert generate(model, image, pred_iou_thresh=100.0) == []
    assert generate(model, image, pred_iou_thresh=100.0, min_mask_region_area=10, crop_n_layers=1) == []
    assert all(r["stability_score"] == 1 for r in generate(model, image, stability_score_thresh=1.0))
    assert len(generate(model, image, stability_score_thresh=1.0, stability_score_offset=0.0)) == len(everything)


def test_crops_are_searched_and_moved_to_the_image(model: Sam, image: np.ndarray) -> None:
    grids = [np.zeros((0, 2)), np.array([[0.5, 0.5]])]
    records = generate(model, image, points_per_side=None, point_grids=grids, crop_n_layers=1)
    # 48 x 70 pixels: every mask of a crop touches 20 pixels of its edge, unless that is one of the image too
    assert all(record["crop_box"] != [0, 0, 70, 48] for record in records)
    both = generate(model, image, crop_n_layers=1, crop_n_points_downscale_factor=3)
    assert [r for r in both if r["crop_box"] == [0, 0, 70, 48]] == generate(model, image)


def test_iterating_gives_each_crop_as_soon_as_it_is_done(model: Sam, image: np.ndarray) -> None:
    calls: list[tuple[int, int]] = []
    options: dict[str, Any] = {"points_per_side": 4, "output_mode": "coco_rle", "points_per_batch": 4, **EVERYTHING}
    generator = SamAutomaticMaskGenerator(model, progress=lambda *call: calls.append(call), **options)
    expected = generator.generate(image)
    assert calls == [(4, 16), (8, 16), (12, 16), (16, 16)]
    assert list(generator.iterate(image)) == expected
    calls.clear()
    options |= {"crop_n_layers": 1, "crop_n_points_downscale_factor": 4}
    generator = SamAutomaticMaskGenerator(model, progress=lambda *call: calls.append(call), **options)
    records = generator.iterate(image)
    assert calls == []
    assert next(records) == expected[0]
    assert calls[-1] == (16, 20)
    list(records)
    assert calls[-1] == (20, 20)


def test_kept_features_are_used(model: Sam, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(image)
    features = predictor.get_features()
    expected = generate(model, image)
    monkeypatch.setattr(search, "encode_images", None)
    generator = SamAutomaticMaskGenerator(model, 3, output_mode="coco_rle", **EVERYTHING)
    assert generator.generate(image, features=features) == expected
    assert list(generator.iterate(image, features=features)) == expected
    predictor.set_torch_image(torch.zeros(1, 3, 88, 128), (48, 70))
    assert generator.generate(image, features=predictor.get_features())  # of an unknown image of this size


def test_features_of_something_else_are_refused(model: Sam, image: np.ndarray) -> None:
    predictor = SamPredictor(model)
    predictor.set_image(image)
    features = predictor.get_features()
    generator = SamAutomaticMaskGenerator(model, 1)
    with pytest.raises(ValueError, match="another image"):
        generator.generate(image[::-1], features=features)
    with pytest.raises(ValueError, match="another image encoder"):
        SamAutomaticMaskGenerator(create_model("hq_test_tiny", device="cpu"), 1).generate(image, features=features)
    predictor.set_torch_image(torch.zeros(1, 3, 88, 128), (48, 70))
    with pytest.raises(ValueError, match="of size"):
        generator.iterate(image[:40], features=predictor.get_features())


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5)])
@pytest.mark.parametrize("layers", [0, 2])
def test_tiny_and_black_images(model: Sam, size: tuple[int, int], layers: int) -> None:
    black = np.zeros((*size, 3), dtype=np.uint8)
    options = {"points_per_side": 4, "crop_n_points_downscale_factor": 2, "crop_n_layers": layers}
    for record in generate(model, black, output_mode="binary_mask", min_mask_region_area=2, **options):
        assert record["segmentation"].shape == size
        assert record["area"] == record["segmentation"].sum()
        assert np.isfinite([record["predicted_iou"], record["stability_score"], *record["bbox"]]).all()


def test_masks_without_a_pixel_are_kept_only_without_thresholds(model: Sam, image: np.ndarray) -> None:
    model.mask_threshold = 1e6
    try:
        records = generate(model, image)
        assert {record["area"] for record in records} == {0}
        assert {tuple(record["bbox"]) for record in records} == {(0, 0, 0, 0)}
        assert {record["stability_score"] for record in records} == {0.0}
        assert generate(model, image, stability_score_thresh=0.1) == []
    finally:
        del model.mask_threshold


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 5), np.uint8)]
)
def test_wrong_images(model: Sam, wrong: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(model, 1)
    with pytest.raises(ValueError, match="image"):
        generator.generate(wrong)
    with pytest.raises(ValueError, match="image"):
        generator.iterate(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"point_grids": [np.zeros((1, 2))]}, "exactly one of points_per_side and point_grids"),
        ({"points_per_side": None}, "exactly one of points_per_side and point_grids"),
        ({"points_per_side": 0}, "points_per_side must be a whole number, at least 1, got 0"),
        ({"points_per_side": 2.5}, "points_per_side must be a whole number"),
        ({"points_per_batch": 0}, "points_per_batch"),
        ({"crop_n_layers": -1}, "crop_n_layers"),
        ({"crop_n_layers": 1, "crop_n_points_downscale_factor": 64}, "each needs at least one"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))], "crop_n_layers": 1}, "2 point grids, got 1"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh must be a number"),
        ({"stability_score_offset": -1.0}, "stability_score_offset must be a number within 0..inf"),
        ({"box_nms_thresh": 1.5}, "box_nms_thresh must be a number within 0..1, got 1.5"),
        ({"crop_overlap_ratio": 2}, "crop_overlap_ratio"),
        ({"min_mask_region_area": -1}, "min_mask_region_area"),
        ({"output_mode": "png"}, "output_mode must be one of .*got 'png'"),
        ({"candidates": "two"}, "candidates must be one of .*got 'two'"),
        ({"fusion": "mean"}, "fusion must be one of .*got 'mean'"),
    ],
)
def test_wrong_arguments(model: Sam, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamAutomaticMaskGenerator(model, **options)


def test_an_untrained_head_is_refused_at_once() -> None:
    untrained = create_model("hq_test_tiny", device="cpu")
    untrained.head_state = "untrained"
    with pytest.raises(ValueError, match="untrained"):
        SamAutomaticMaskGenerator(untrained)
    SamAutomaticMaskGenerator(untrained, fusion="sam")
    with pytest.raises(ValueError, match="plain SAM"):
        SamAutomaticMaskGenerator(create_model("sam_test_tiny", device="cpu"), fusion="sum")


def test_presets(model: Sam, image: np.ndarray) -> None:
    assert len(SamAutomaticMaskGenerator.preset(model, "fast").point_grids[0]) == 256
    assert len(SamAutomaticMaskGenerator.preset(model).point_grids[0]) == 1024
    dense = SamAutomaticMaskGenerator.preset(model, "dense", min_mask_region_area=7)
    assert [len(grid) for grid in dense.point_grids] == [1024, 256]
    assert (dense.min_mask_region_area, dense.pred_iou_thresh) == (7, PRESETS["dense"]["pred_iou_thresh"])
    own = SamAutomaticMaskGenerator.preset(model, "fast", point_grids=[[[0.5, 0.5]]], progress=None, **EVERYTHING)
    assert len(own.generate(image)) == 1
    with pytest.raises(ValueError, match="preset must be one of"):
        SamAutomaticMaskGenerator.preset(model, "slow")  # type: ignore[arg-type]


def test_settings_may_be_changed_between_images(model: Sam, image: np.ndarray) -> None:
    generator = SamAutomaticMaskGenerator(model, 2, **EVERYTHING)
    assert len(generator.generate(image)) == 4
    generator.pred_iou_thresh = 100.0
    assert generator.generate(image) == []


def test_reduced_precision(model: Sam, image: np.ndarray) -> None:
    expected = generate(model, image, output_mode="binary_mask")
    half = create_model("hq_test_tiny", device="cpu")
    half.load_state_dict(model.state_dict())
    records = generate(half.to(torch.bfloat16), image, output_mode="binary_mask")
    assert len(records) == len(expected)
    by_point = {str(record["point_coords"]): record["segmentation"] for record in records}
    agreement = [(by_point[str(record["point_coords"])] == record["segmentation"]).mean() for record in expected]
    assert np.mean(agreement) > 0.9


def with_score_head(seed: int = 7) -> Sam:
    built = create_model("hq_test_tiny", device="cpu")
    fill_parameters(built, seed)
    head = ScoreHead()
    fill_parameters(head, seed)
    built.set_score_head(head)
    return built


def test_the_score_head_ranks_filters_and_is_recorded(model: Sam, image: np.ndarray) -> None:
    scored = with_score_head()
    plain = generate(model, image)
    assert generate(scored, image, score="sam") == plain and generate(scored, image) == plain
    own = generate(scored, image, False, score="own")
    values = [record["predicted_iou"] for record in own]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    predictor = SamPredictor(scored)
    predictor.set_image(image)
    for record in own:
        point = np.array(record["point_coords"])
        _, scores, _ = predictor.predict(point, np.array([1]), multimask_output=False, score="own")
        assert record["predicted_iou"] == pytest.approx(scores[0], abs=1e-5)
    middle = (values[0] + values[-1]) / 2
    kept = generate(scored, image, False, score="own", pred_iou_thresh=middle)
    assert [record["predicted_iou"] for record in kept] == [value for value in values if value > middle]


def test_the_best_of_three_is_that_of_the_score(image: np.ndarray) -> None:
    scored = with_score_head()
    every = generate(scored, image, score="own", candidates="all")
    best = generate(scored, image, score="own")
    for record in best:
        point = record["point_coords"]
        rivals = [other["predicted_iou"] for other in every if other["point_coords"] == point]
        assert len(rivals) == 3 and record["predicted_iou"] == pytest.approx(max(rivals), abs=1e-6)


def test_a_score_that_the_model_cannot_give_is_refused_at_once(model: Sam) -> None:
    with pytest.raises(ValueError, match="needs a score head"):
        SamAutomaticMaskGenerator(model, score="own")
    with pytest.raises(ValueError, match="has SAM's score alone"):
        SamAutomaticMaskGenerator(with_score_head(), score="own", fusion="sam")
    recommended = with_score_head()
    recommended.default_score = "own"
    generator = SamAutomaticMaskGenerator(recommended, fusion="sum")
    generator.fusion = "sam"
    assert generator.score is None  # so that the fusion may change between images
