"""Automatic generation against the published packages: every record, every option that changes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from hqsam import create_model, save_checkpoint
from hqsam.automatic import SamAutomaticMaskGenerator
from hqsam.automatic import search as searching
from hqsam.automatic.grids import Crop
from hqsam.automatic.search import GridSearch
from hqsam.features import image_hash
from hqsam.images import read_image
from hqsam.models import Sam
from hqsam.registry import model_spec
from hqsam.rle import encode_rle
from tests.helpers import ROOT, require_oracle
from tests.parity.oracles import build_pair

pytestmark = pytest.mark.parity

MODES = ["binary_mask", "uncompressed_rle", "coco_rle"]
Record = dict[str, Any]


def as_rle(segmentation: Any) -> dict[str, Any]:
    if isinstance(segmentation, np.ndarray):
        assert segmentation.dtype == np.bool_
        return dict(encode_rle(segmentation))
    if isinstance(segmentation["counts"], list):
        return dict(coco.frPyObjects(segmentation, *segmentation["size"]))
    assert isinstance(segmentation["counts"], str)
    return dict(segmentation)


def near(record: Record, thresholds: tuple[float, float], rounding: float) -> bool:
    """Whether rounding could decide if this record is kept."""
    by_iou = abs(record["predicted_iou"] - thresholds[0]) <= 1e-4
    return by_iou or abs(record["stability_score"] - thresholds[1]) <= rounding


def compare(theirs: list[Record], ours: list[Record], thresholds: tuple[float, float], rounding: float = 1e-4) -> int:
    """Require equal records; returns how many were left out because a threshold is too close to call.

    Args:
        theirs: of the reference.
        ours: in the same order.
        thresholds: of predicted IoU and stability.
        rounding: by how much the share of pixels between two logits may differ.
    """
    left_out = sum(near(record, thresholds, rounding) for record in theirs)
    theirs = [record for record in theirs if not near(record, thresholds, rounding)]
    ours = [record for record in ours if not near(record, thresholds, rounding)]
    assert len(theirs) == len(ours)
    for expected, actual in zip(theirs, ours, strict=True):
        assert list(expected) == list(actual)
        assert type(expected["segmentation"]) is type(actual["segmentation"])
        rles = [as_rle(record["segmentation"]) for record in (expected, actual)]
        assert rles[0]["size"] == rles[1]["size"]
        assert coco.iou(rles[:1], rles[1:], [0])[0, 0] >= 0.999 or expected["area"] == actual["area"] == 0
        assert actual["area"] == pytest.approx(expected["area"], rel=1e-3)
        assert actual["bbox"] == expected["bbox"]
        assert actual["crop_box"] == expected["crop_box"]
        np.testing.assert_allclose(actual["point_coords"], expected["point_coords"], atol=1e-9)
        assert actual["predicted_iou"] == pytest.approx(expected["predicted_iou"], abs=1e-4)
        # or one pixel of a small mask: of 911 above the lower logit, one is 6e-5 above it here and 6e-5 below it there
        one_pixel = 1 / max(1, expected["area"])
        assert actual["stability_score"] == pytest.approx(expected["stability_score"], abs=max(rounding, one_pixel))
    return left_out


SEARCHED: dict[Any, Any] = {}


def remembered(method: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    """Search each crop once: whatever a test varies comes after that, and the reference is slow."""

    def search(*args: Any) -> Any:
        known = (method, *key(*args))
        if known not in SEARCHED:
            SEARCHED[known] = method(*args)
        return deepcopy(SEARCHED[known])

    return search


@pytest.fixture
def crops_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def key_theirs(generator: Any, image: Any, box: list[int], *rest: Any) -> Any:
        return generator.predictor.model, image.shape, tuple(box), rest[-1]

    def key_ours(search: GridSearch, crop: Crop, *_: Any) -> Any:
        return search.model, search.image.shape, crop, search.answer

    def key_encoded(model: Any, images: Sequence[np.ndarray]) -> Any:
        return model, *map(image_hash, images)

    for name in ("segment_anything_hq", "segment_anything"):
        cls = require_oracle(name).SamAutomaticMaskGenerator
        monkeypatch.setattr(cls, "_process_crop", remembered(cls._process_crop, key_theirs))
    monkeypatch.setattr(GridSearch, "_search_crop", remembered(GridSearch._search_crop, key_ours))
    monkeypatch.setattr(searching, "encode_images", remembered(searching.encode_images, key_encoded))


@cache
def photograph(name: str) -> np.ndarray:
    return read_image(ROOT / "data" / "samples" / name)


def test_arguments_and_defaults_are_the_reference_s() -> None:
    reference = require_oracle("segment_anything_hq").SamAutomaticMaskGenerator
    for name in ("__init__", "generate"):
        theirs, ours = (inspect.signature(getattr(cls, name)) for cls in (reference, SamAutomaticMaskGenerator))
        expected = [(each.name, each.default) for each in theirs.parameters.values()]
        actual = [(each.name, each.default) for each in ours.parameters.values() if each.kind is not each.KEYWORD_ONLY]
        assert actual == expected


@pytest.fixture(scope="module", params=["hq_vit_tiny", "sam_vit_tiny"])
def real_models(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Sam]:
    """MobileSAM's weights, with the embedded HQ head or plain, in the reference and in ours."""
    package = require_oracle("segment_anything_hq")
    ours = create_model(f"{request.param}.embedded", device="cpu")
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    save_checkpoint(ours, path)
    hq = request.param.startswith("hq")
    registry = package.sam_model_registry if hq else package.sam_model_registry_baseline
    # the reference keeps what it derived from its first weights until it is put into eval mode again
    return registry["vit_tiny"](str(path)).train().eval(), ours


@pytest.mark.slow
@pytest.mark.usefixtures("crops_searched_once")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("min_area", [0, 100])
@pytest.mark.parametrize("layers", [0, 1])
def test_real_weights(real_models: Any, layers: int, min_area: int, mode: str) -> None:
    theirs, ours = real_models
    thresholds = (0.7, 0.8)
    options: dict[str, Any] = {
        "points_per_side": 8,
        "pred_iou_thresh": thresholds[0],
        "stability_score_thresh": thresholds[1],
        "crop_n_layers": layers,
        "crop_n_points_downscale_factor": 3,
        "min_mask_region_area": min_area,
        "output_mode": mode,
    }
    image = photograph("astronaut.jpg")
    reference = require_oracle("segment_anything_hq").SamAutomaticMaskGenerator
    expected = reference(theirs, points_per_batch=4, **options).generate(image)
    actual = SamAutomaticMaskGenerator(ours, **options).generate(image)
    assert len(expected) >= 10
    assert {record["crop_box"] == [0, 0, 512, 512] for record in expected} == ({True, False} if layers else {True})
    assert compare(expected, actual, thresholds) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "multimask"), [("hq_test_vit", True), ("hq_test_vit", False), ("sam_test_vit", True)])
def test_random_vit(name: str, multimask: bool) -> None:
    hq = name.startswith("hq")
    theirs, ours = build_pair(model_spec(name), seed=1)
    image = np.ascontiguousarray(photograph("coffee.jpg")[::2, ::3])
    # suppression would leave one of these masks, which all fill the image
    options: dict[str, Any] = {"points_per_side": 8, "box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
    options |= {"stability_score_offset": 0.05, "crop_n_layers": 1, "crop_n_points_downscale_factor": 4}
    reference = require_oracle("segment_anything_hq" if hq else "segment_anything").SamAutomaticMaskGenerator
    extra = {"multimask_output": multimask} if hq else {}
    everything = reference(theirs, pred_iou_thresh=0, stability_score_thresh=0, **options).generate(image, **extra)
    keys = ("predicted_iou", "stability_score")
    thresholds = tuple(float(np.quantile([record[key] for record in everything], 0.3)) for key in keys)
    for iou, stability in ((0.0, 0.0), thresholds):
        limits = {"pred_iou_thresh": iou, "stability_score_thresh": stability}
        expected = reference(theirs, **limits, **options).generate(image, **extra)
        actual = SamAutomaticMaskGenerator(ours, **limits, **options).generate(image, multimask)
        assert len(expected) >= 5
        # Logits of random weights are so close to one another that three of 30,000 pixels, 1.03e-4, change sides with
        # the last digit of an embedding; both encoders are equally far (1e-6) from one in float64.
        assert compare(expected, actual, (iou, stability), rounding=3e-4) <= 3
