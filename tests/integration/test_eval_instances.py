"""Boxes to masks to AP with a small random model, on a generated set in COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqsam.engine.evaluation import decoding
from hqsam.engine.evaluation.instances import InstanceOptions, InstanceTask, choose_columns, open_instance_task
from hqsam.errors import DataError
from hqsam.images import write_image
from hqsam.metrics import InstanceRecord, InstanceScores
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.rle import decode_rle
from tests.helpers import fill_parameters
from tests.unit.data.test_instances import stand_in
from tests.unit.metrics.instance_cases import coco_results, pycocotools_stats

SIZES = {5: (96, 128), 2: (130, 100), 9: (60, 60)}


@pytest.fixture(scope="module")
def model() -> Sam:
    made = create_model("hq_test_vit", device="cpu")
    fill_parameters(made, seed=5)
    return made.eval()


def write_set(folder: Path) -> dict[str, Any]:
    """Three images, the last one without annotations, as coco/annotations/instances_val2017.json has them."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number, (height, width) in SIZES.items():
        pixels = generator.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
        write_image(folder / f"coco/val2017/{number:012d}.png", pixels[:height, :width].astype(np.uint8))
        images.append({"id": number, "file_name": f"{number:012d}.png", "height": height, "width": width})
        for k in range(0 if number == 9 else 3):
            x, y = 10.0 + 12 * k, 8.0 + 20 * k
            corners = [x, y, x + 40, y, x + 40, y + 30, x, y + 30]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1 + k % 2,
                    "segmentation": [corners],
                    "area": 1200.0,
                    "iscrowd": int(k == 2 and number == 2),
                }
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1}, {"id": 2}]}
    (folder / "coco/annotations").mkdir()
    (folder / "coco/annotations/instances_val2017.json").write_text(json.dumps(content))
    return content


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    content = write_set(folder)
    generator = np.random.default_rng(1)
    boxes = [
        {
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": [item["segmentation"][0][0] + shift, item["segmentation"][0][1], 40 - shift, 30 + shift],
            "score": float(generator.random()),
        }
        for item in content["annotations"]
        for shift in (0, 3)
    ]
    (folder / "boxes.json").write_text(json.dumps(boxes))
    return folder


def records_of(task: InstanceTask) -> list[InstanceRecord]:
    return [record for item in task.items for record in task.run(item, task.load(item))]


def test_boxes_become_the_predictors_masks(model: Sam, root: Path) -> None:
    task = open_instance_task(model, "coco_val2017", root / "boxes.json", root=root)
    assert [item.key for item in task.items] == ["coco_val2017/2", "coco_val2017/5", "coco_val2017/9"]
    records = records_of(task)
    assert [len(record.categories) for record in records] == [6, 6, 0]
    predictor = SamPredictor(model)
    for item, record in zip(task.items[:2], records, strict=False):
        predictor.set_image(task.load(item))
        for column in ("sam", "hq", "sum"):
            masks, scores, _ = predictor.predict(
                box=item.boxes.boxes,
                multimask_output=False,
                fusion=column,  # type: ignore[arg-type]
            )
            assert np.allclose(record.iou_scores[column], scores[:, 0])
            for rle, mask in zip(record.masks[column], masks[:, 0], strict=True):
                assert (decode_rle(rle) == mask).all()


def test_the_numbers_are_pycocotools(model: Sam, root: Path) -> None:
    for score in ("box", "iou", "product"):
        options = InstanceOptions(columns=("sam", "sum"), score=score)  # type: ignore[arg-type]
        task = open_instance_task(model, "coco_val2017", None, options, root=root)
        records = records_of(task)
        task.evaluator.merge([records])
        found = task.evaluator.compute()["coco_val2017"]
        assert list(found) == ["sam", "sum"]
        truth = task.evaluator.truths["coco_val2017"]
        for column in found:
            expected = pycocotools_stats(truth, coco_results(records, column, score)).stats
            assert found[column]["ap"] == 100.0 * expected[0] and found[column]["ap50"] == 100.0 * expected[1]
            assert found[column]["n"] == 5 and found[column]["n_masks"] == 5


def test_records_continue_a_run_that_was_broken_off(model: Sam, root: Path) -> None:
    task = open_instance_task(model, "coco_val2017", root / "boxes.json", root=root)
    lines = [json.dumps(record.as_dict(), allow_nan=False) for record in records_of(task)]
    task.evaluator.merge([[InstanceRecord(**json.loads(line)) for line in lines[:1]]])
    again = open_instance_task(model, "coco_val2017", root / "boxes.json", root=root)
    rest = [record for item in again.items[1:] for record in again.run(item, again.load(item))]
    task.evaluator.merge([rest])
    whole = InstanceScores(task.evaluator.truths)
    whole.merge([records_of(again)])
    assert task.evaluator.compute() == whole.compute()


def test_chunks_of_boxes_change_nothing(model: Sam, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = open_instance_task(model, "coco_val2017", root / "boxes.json", root=root)
    whole = records_of(task)
    monkeypatch.setattr(decoding, "_PIXELS_AT_ONCE", 2 * 96 * 128)
    for one, other in zip(records_of(task), whole, strict=True):
        assert one.masks == other.masks and one.categories == other.categories


def test_parts_of_a_set(model: Sam, root: Path) -> None:
    options = InstanceOptions(max_images=1, top_k=2, metrics=("ap_b",), columns=("hq",))
    task = open_instance_task(model, "coco_val2017", root / "boxes.json", options, root=root)
    assert [item.image for item in task.items] == [2] and len(task.items[0].boxes.scores) == 2
    task.evaluator.merge([records_of(task)])
    found = task.evaluator.compute()["coco_val2017"]["hq"]
    assert found["n_images"] == 1 and "ap_b" in found and "ap" not in found
    described = task.describe()
    assert described["top_k"] == 2 and described["score"] == "box" and described["rules"] == "coco"
    assert described["boxes"]["coco_val2017"]["source"] == "boxes.json"
    json.dumps(described, allow_nan=False)


def test_a_set_without_classes(model: Sam, root: Path) -> None:
    options = InstanceOptions(class_agnostic=True, columns=("sam",))
    task = open_instance_task(model, root / "coco/annotations/instances_val2017.json", root / "boxes.json", options)
    task.evaluator.merge([records_of(task)])
    assert task.describe()["class_agnostic"] is True
    assert "ap" in task.evaluator.compute()["instances_val2017"]["sam"]


def test_an_image_of_another_size_is_named(model: Sam, root: Path, tmp_path: Path) -> None:
    write_set(tmp_path)
    write_image(tmp_path / "coco/val2017/000000000005.png", np.zeros((20, 30, 3), np.uint8))
    task = open_instance_task(model, "coco_val2017", root=tmp_path)
    with pytest.raises(DataError, match="is 30 x 20, its annotations are drawn on 128 x 96"):
        task.load(task.items[1])


def test_what_cannot_be(model: Sam, root: Path) -> None:
    untrained = create_model("hq_test_vit", device="cpu")
    untrained.head_state = "untrained"
    assert choose_columns(model, ("sum", "sam")) == ("sam", "sum") and choose_columns(untrained, ()) == ("sam",)
    with pytest.raises(ValueError, match="gives the columns sam, asked for hq"):
        choose_columns(untrained, ("hq",))
    with pytest.raises(DataError, match=r"boxes cannot be read"):
        open_instance_task(model, "coco_val2017", root / "absent.json", root=root)


def test_a_group_of_sets_has_a_folder_of_boxes(model: Sam, tmp_path: Path) -> None:
    stand_in(tmp_path, "seginw")
    with pytest.raises(DataError, match=r"a folder with seginw_airplane_parts\.json"):
        open_instance_task(model, "seginw", tmp_path / "boxes.json", root=tmp_path)
    task = open_instance_task(model, "seginw", root=tmp_path)
    names = sorted({item.set for item in task.items})
    assert len(names) == 25 and len(task.items) == 75
    (tmp_path / "boxes").mkdir()
    for name in names:
        rows = [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]
        (tmp_path / "boxes" / f"{name}.json").write_text(json.dumps(rows))
    task = open_instance_task(model, "seginw", tmp_path / "boxes", root=tmp_path)
    assert [len(item.boxes.scores) for item in task.items] == [0, 0, 1] * 25
