"""Proposals of a small random model, compared with instances of every kind of set."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqsam.automatic import SamAutomaticMaskGenerator
from hqsam.data.instances import InstanceSet
from hqsam.engine.evaluation.comparison import read_side
from hqsam.engine.evaluation.proposal_sets import open_proposal_sets
from hqsam.engine.evaluation.proposals import ProposalOptions, ProposalTask
from hqsam.errors import DataError
from hqsam.images import write_image
from hqsam.metrics import InstanceRecord, InstanceTruth, TrueInstance
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.rle import rle_area
from tests.helpers import fill_parameters
from tests.integration.test_eval_instances import write_set
from tests.unit.data.test_boundaries import made
from tests.unit.metrics.test_proposals import recall_of_pycocotools

SIDE = 3


def tiny() -> Sam:
    model = create_model("hq_test_vit", device="cpu")
    fill_parameters(model, seed=5)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Sam:
    return tiny()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_set(folder)
    return folder


def computed(task: ProposalTask) -> dict[str, Any]:
    json.dumps(task.describe(), allow_nan=False)
    for item in task.items:
        task.evaluator.merge([task.run(item, task.load(item))])
    return dict(task.evaluator.compute())


def test_recall_of_the_generators_masks_is_that_of_pycocotools(root: Path) -> None:
    """What HQ finds is annotated, so that there is something to find; the threshold makes small masks of it."""
    model = create_model("hq_test_tiny", device="cpu")
    fill_parameters(model, seed=1)
    model.mask_threshold = 0.4
    (coco,) = open_proposal_sets(["coco_val2017"], root=root, max_images=2)
    loader = ProposalTask(model, [coco], ProposalOptions(columns=("sam",)))
    found: dict[str, list[InstanceRecord]] = {"sam": [], "hq": [], "sum": []}
    predictor = SamPredictor(model)
    for item in loader.items:
        image = loader.load(item)
        predictor.set_image(image)
        for column, records in found.items():
            generator = SamAutomaticMaskGenerator(
                model,
                SIDE,
                pred_iou_thresh=0,
                stability_score_thresh=0,
                box_nms_thresh=0.9,
                output_mode="coco_rle",
                fusion=column,  # type: ignore[arg-type]
                candidates="all",
            )
            masks = [mask for mask in generator.generate(image, features=predictor.get_features()) if mask["area"]]
            scores = [(mask["predicted_iou"] + mask["stability_score"]) / 2 for mask in masks]
            rles = [mask["segmentation"] for mask in masks]
            ones = [1] * len(masks)
            records.append(
                InstanceRecord("set", item.image, ones, [1.0] * len(masks), {column: scores}, {column: rles})
            )
    truth = InstanceTruth(
        coco.truth.images,
        {1: ""},
        tuple(
            TrueInstance(record.image, 1, rle, float(rle_area(rle)))
            for record in found["hq"]
            for rle in record.masks["hq"]
        ),
    )
    scores = computed(
        ProposalTask(model, [InstanceSet("set", truth, coco.images)], ProposalOptions(points_per_side=SIDE))
    )["set"]
    assert scores["hq"]["ar1000"] == 100.0 and 0.0 < scores["sum"]["ar1000"] < 100.0
    assert len({values["n_proposals"] for values in scores.values()}) == 3
    for column, records in found.items():
        recalls = {name: value for name, value in scores[column].items() if name.startswith("ar")}
        assert recalls == recall_of_pycocotools(truth, records, column, (10, 100, 1000))
        assert scores[column]["n_proposals"] == sum(len(record.categories) for record in records)


def test_masks_without_a_pixel_are_no_proposals(root: Path) -> None:
    model = tiny()
    model.mask_threshold = 1e9
    sets = open_proposal_sets(["coco_val2017"], root=root)
    scores = computed(ProposalTask(model, sets, ProposalOptions(points_per_side=2)))["coco_val2017"]
    assert all(values["n_proposals"] == values["ar1000"] == 0 for values in scores.values())


def write_sources(folder: Path) -> Path:
    """Two images of source "a" with two objects, the second image's last one empty; one image of source "b"."""
    entries = []
    for k, source in enumerate("aab"):
        write_image(folder / f"images/{k}.png", np.full((40, 50, 3), 60 * k, dtype=np.uint8))
        labels = np.zeros((40, 50), dtype=np.uint8)
        labels[5:15, 5:25] = 1
        labels[20:30, 10:20] = 2 if k != 1 else 0
        write_image(folder / f"masks/{k}.png", labels)
        objects = [{"label": 1}, {"label": 2}]
        entry = {"image": f"images/{k}.png", "mask": f"masks/{k}.png", "kind": "index", "source": source}
        entries.append({**entry, "objects": objects})
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def test_objects_of_a_pack_are_instances(model: Sam, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack = write_sources(tmp_path / "pack")
    with caplog.at_level(logging.WARNING):
        sets = open_proposal_sets(["pack"], root=tmp_path)
    assert "a: 1 objects without a pixel are left out" in caplog.text
    assert [each.name for each in sets] == ["a", "b"]
    areas = [[(item.image, item.area) for item in each.truth.instances] for each in sets]
    first, second = "images/0.png", "images/1.png"
    assert areas == [[(first, 200), (first, 100), (second, 200)], [("images/2.png", 200), ("images/2.png", 100)]]
    scores = computed(ProposalTask(model, sets, ProposalOptions(points_per_side=2)))
    assert {name: columns["sum"]["n"] for name, columns in scores.items()} == {"a": 3, "b": 2}
    by_file = open_proposal_sets([pack / "index.json"], max_images=1)
    assert [sorted(each.images) for each in by_file] == [[first], ["images/2.png"]]


def test_a_soft_mask_is_what_lies_above_the_threshold(tmp_path: Path) -> None:
    soft = np.zeros((40, 50), dtype=np.uint8)
    soft[:10], soft[10:20] = 129, 128
    write_image(tmp_path / "set/masks/a.png", soft)
    write_image(tmp_path / "set/images/a.jpg", np.zeros((40, 50, 3), dtype=np.uint8))
    (only,) = open_proposal_sets([tmp_path / "set"])
    assert only.name == "set" and [item.area for item in only.truth.instances] == [500]


@pytest.mark.parametrize(("folder", "suffix"), [("groundTruth", ".mat"), ("gt", ".npz")])
def test_regions_of_bsds_are_instances(model: Sam, tmp_path: Path, folder: str, suffix: str) -> None:
    """Three people drew 7, 2 and 4 regions on 12 x 21 pixels."""
    made(tmp_path / "bsds500", folder, suffix)
    (regions,) = open_proposal_sets(["bsds500_val"], root=tmp_path)
    assert regions.name == "bsds500_val" and list(regions.images) == ["101085", "3096"]
    assert len(regions.truth.instances) == 8
    assert sum(item.area for item in regions.truth.instances) == 2 * 12 * 21
    task = ProposalTask(model, [regions], ProposalOptions(points_per_side=2, max_images=1, columns=("sam",)))
    assert [item.key for item in task.items] == ["bsds500_val/101085"]
    assert computed(task)["bsds500_val"]["sam"]["n"] == 4


def test_annotation_files(root: Path, tmp_path: Path) -> None:
    """What the evaluation of instances counts is kept: crowds, images without objects, stated areas."""
    file = root / "coco/annotations/instances_val2017.json"
    for name in (file, f"{root / 'coco/val2017'}:{file}"):
        (each,) = open_proposal_sets([name])
        assert len(each.images) == 3 and sum(item.crowd for item in each.truth.instances) == 1
        assert {item.area for item in each.truth.instances} == {1200.0}
    content = json.loads(file.read_text())
    del content["categories"]
    (tmp_path / "plain.json").write_text(json.dumps(content))
    name = f"{root / 'coco/val2017'}:{tmp_path / 'plain.json'}"
    with pytest.raises(DataError, match="no list of categories"):
        open_proposal_sets([name])
    (each,) = open_proposal_sets([name], class_agnostic=True)
    assert len(each.truth.instances) == 6


def test_proposals_have_no_scores_of_single_objects_to_compare(model: Sam, root: Path, tmp_path: Path) -> None:
    sets = open_proposal_sets(["coco_val2017"], root=root, max_images=1)
    task = ProposalTask(model, sets, ProposalOptions(points_per_side=2))
    (record,) = task.run(task.items[0], task.load(task.items[0]))
    (tmp_path / "records.jsonl").write_text(json.dumps(record.as_dict(), allow_nan=False))
    (tmp_path / "results.json").write_text(json.dumps({"protocol": task.describe()}))
    with pytest.raises(DataError, match="hold no scores of single objects"):
        read_side(tmp_path)


def test_what_cannot_be(model: Sam, root: Path) -> None:
    (coco,) = open_proposal_sets(["coco_val2017"], root=root)
    other = replace(coco, images={**coco.images, 5: coco.images[9]})
    task = ProposalTask(model, [other])
    with pytest.raises(DataError, match="is 60 x 60, its annotations are drawn on 128 x 96"):
        task.load(task.items[1])
    for wrong in ({"columns": ("best",)}, {"points_per_side": 0}, {"box_nms_thresh": 2.0}, {"max_images": 0}):
        with pytest.raises(ValueError, match=r"best|points_per_side|box_nms_thresh|max_images"):
            ProposalTask(model, [coco], ProposalOptions(**wrong))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no data set"):
        ProposalTask(model, [])
    with pytest.raises(DataError, match="no image"):
        open_proposal_sets([])
    with pytest.raises(ValueError, match="max_images"):
        open_proposal_sets(["coco_val2017"], root=root, max_images=0)
    with pytest.raises(DataError, match="two data sets are called coco_val2017"):
        open_proposal_sets(["coco_val2017", "coco_val2017"], root=root)
