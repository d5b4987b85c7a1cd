"""Annotations as the truth of an evaluation, and detectors' boxes; the layouts of the cards, on generated stand-ins."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqsam.data.detections import read_detections, true_boxes
from hqsam.data.instance_opening import find_instance_card, instance_cards, open_instances
from hqsam.data.instances import InstanceSet, read_instance_set
from hqsam.errors import DataError
from hqsam.metrics import InstanceRecord, InstanceScores, TrueImage
from hqsam.rle import decode_rle, encode_rle

HW = (40, 60)
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
TWO_PARTS = [[5.25, 5.5, 20.1, 6.33, 12.7, 30.99], [30, 20, 50, 20, 50, 38]]
DISC = np.hypot(*(np.mgrid[: HW[0], : HW[1]] - np.array([20, 30])[:, None, None])) < 12


def plain_runs(mask: np.ndarray) -> list[int]:
    flat = np.concatenate(([0], mask.T.reshape(-1).astype(int)))
    changes = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate(([0], changes, [mask.size]))).tolist()


def coco(folder: str = "") -> dict[str, Any]:
    """Three images, the last one without objects; a crowd, an area that is not whole, a mask without pixels."""
    names = ("b.png", "a.png", "none.png")
    runs = {"size": list(HW), "counts": plain_runs(DISC)}
    rest = [
        {"id": 0, "image_id": 7, "category_id": 3, "segmentation": [SQUARE], "area": 1024.25, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 9, "segmentation": encode_rle(DISC), "area": 441, "iscrowd": 0},
        {"id": 5, "image_id": 7, "category_id": 3, "segmentation": runs, "area": 441, "iscrowd": 1},
        {"id": 6, "image_id": 7, "category_id": 9, "segmentation": TWO_PARTS, "iscrowd": 0},
        {"id": 8, "image_id": 7, "category_id": 9, "segmentation": {"size": list(HW), "counts": [2400]}, "area": 0},
    ]
    return {
        "images": [
            {"id": k, "file_name": f"{folder}{name}", "height": HW[0], "width": HW[1]}
            for k, name in zip((7, 3, 4), names, strict=True)
        ],
        "categories": [{"id": 9, "name": "disc"}, {"id": 3, "name": "square"}],
        "annotations": rest,
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def draw_images(folder: Path, content: dict[str, Any]) -> None:
    for image in content["images"]:
        path = folder / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    draw_images(tmp_path / "val2017", coco())
    return write(tmp_path / "annotations/instances_val2017.json", coco())


def test_everything_that_counts_is_kept(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_instance_set(file)
    assert found.name == "instances_val2017" and sorted(found.truth.images) == [3, 4, 7]
    assert found.truth.images[4] == TrueImage(HW) and found.images[3].name == "a.png"
    assert [item.crowd for item in found.truth.instances] == [False, False, True, False, False]
    areas = [item.area for item in found.truth.instances]
    assert areas[:3] == [1024.25, 441.0, 441.0] and areas[3] == decode_rle(found.truth.instances[3].rle).sum()
    assert "1 of 5 annotations have no pixel" in caplog.text
    assert found.truth.categories == {9: "", 3: ""}


def test_masks_are_those_of_pycocotools(file: Path) -> None:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        oracle = COCO(str(file))
    for item, entry in zip(read_instance_set(file).truth.instances, coco()["annotations"], strict=True):
        assert (decode_rle(item.rle) == oracle.annToMask(oracle.anns[entry["id"]])).all()


def test_an_annotation_numbered_0_can_be_matched(file: Path) -> None:
    content = coco()
    content["annotations"] = content["annotations"][:1]
    write(file, content)
    truth = read_instance_set(file).truth
    records = [
        InstanceRecord("set", number, [3] * len(own), [0.5] * len(own), {"sam": [0.5] * len(own)}, {"sam": own})
        for number in truth.images
        for own in [[item.rle for item in truth.instances if item.image == number]]
    ]
    scores = InstanceScores({"set": truth})
    scores.merge([records])
    assert scores.compute()["set"]["sam"]["ap_b"] == pytest.approx(100.0)


def test_without_classes_no_category_is_needed(file: Path) -> None:
    content = coco()
    del content["categories"]
    content["annotations"][0]["category_id"] = None
    write(file, content)
    found = read_instance_set(file, class_agnostic=True)
    assert found.truth.categories == {1: ""} and {item.category for item in found.truth.instances} == {1}
    with pytest.raises(DataError, match="class-agnostic"):
        read_instance_set(file)


def change(content: dict[str, Any], kind: str) -> None:
    first = content["annotations"][0]
    if kind == "duplicated annotation id":
        content["annotations"][1]["id"] = 0
    elif kind == "unknown image":
        first["image_id"] = 99
    elif kind == "unknown category":
        first["category_id"] = 99
    elif kind == "other size":
        content["annotations"][1]["segmentation"] = encode_rle(DISC[:30])
    elif kind == "damaged runs":
        content["annotations"][1]["segmentation"] = {"size": list(HW), "counts": "4444"}
    elif kind == "no size":
        del content["images"][0]["height"], content["images"][0]["width"]
    elif kind == "category twice":
        content["categories"].append({"id": 9})
    elif kind == "frequency":
        content["categories"][0]["frequency"] = "often"
    elif kind == "missing image":
        content["images"][0]["file_name"] = "c.png"
    elif kind == "negative list":
        content["images"][0]["neg_category_ids"] = 3


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("duplicated annotation id", "occur more than once: 0"),
        ("unknown image", "images that are not listed: 0"),
        ("unknown category", "categories that are not listed: 0"),
        ("other size", "annotation 2 is drawn on 60 x 30"),
        ("damaged runs", "annotation 2 is damaged"),
        ("no size", "1 images have no height and width: 7"),
        ("category twice", "each once"),
        ("frequency", "frequency is r, c or f"),
        ("missing image", "names 1 images that are not in"),
        ("negative list", "neg_category_ids must be a list"),
    ],
)
def test_defects_of_annotation_files(file: Path, kind: str, message: str) -> None:
    content = coco()
    change(content, kind)
    write(file, content)
    with pytest.raises(DataError, match=message) as error:
        read_instance_set(file, file.parent.parent / "val2017")
    assert str(file) in str(error.value)


def test_the_first_images_alone(file: Path) -> None:
    found = read_instance_set(file).first(2)
    assert sorted(found.images) == sorted(found.truth.images) == [3, 4]
    assert len(found.truth.instances) == 1
    assert len(read_instance_set(file).first(None).images) == 3


def box(**changes: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 3, "bbox": [10, 12.5, 20, 8], "score": 0.5, **changes}


@pytest.fixture
def truth_set(file: Path) -> InstanceSet:
    return read_instance_set(file)


def test_boxes_are_read_with_whatever_else_is_there(tmp_path: Path, truth_set: InstanceSet) -> None:
    mask = {"size": list(HW), "counts": "abc"}
    rows = [box(), box(image_id=3, segmentation=mask, area=3.0, id=8), box(score=1, category_id=9, features=[1, 2])]
    found = read_detections(write(tmp_path / "boxes.json", rows), truth_set.truth)
    assert found.images[7].boxes.tolist() == [[10, 12.5, 30, 20.5]] * 2
    assert found.images[7].categories == [3, 9] and found.images[7].scores == [0.5, 1.0]
    assert found.images[4].boxes.shape == (0, 4)
    assert found.describe()["boxes"] == 3 and found.describe()["images_without_boxes"] == 1
    empty = read_detections(write(tmp_path / "none.json", []), truth_set.truth)
    assert empty.describe()["images_without_boxes"] == 3


def test_other_boxes_are_described_otherwise(tmp_path: Path, truth_set: InstanceSet) -> None:
    """As many boxes in a file of the same name: kept results of the one must not be taken for the other."""
    files = [[box(), box(image_id=3)], [box(), box(image_id=3, bbox=[1, 2, 3, 4])], [box(score=0.25), box(image_id=3)]]
    files += [[box(category_id=9), box(image_id=3)], [box(image_id=3), box(image_id=3)]]
    found = [read_detections(write(tmp_path / "boxes.json", rows), truth_set.truth).describe() for rows in files]
    assert len({entry["digest"] for entry in found}) == len(files)
    assert read_detections(write(tmp_path / "boxes.json", files[0]), truth_set.truth).describe() == found[0]


def test_the_best_boxes_of_each_image(tmp_path: Path, truth_set: InstanceSet) -> None:
    rows = [box(score=score, bbox=[k, 0, 5, 5]) for k, score in enumerate((0.2, 0.7, 0.7, 0.9, 0.7))]
    found = read_detections(write(tmp_path / "boxes.json", [*rows, box(image_id=3)]), truth_set.truth, top_k=3)
    assert found.images[7].boxes[:, 0].tolist() == [1, 2, 3]  # in the order of the file; the last of 0.7 is out
    assert found.left_out["beyond_top_k"] == 2 and len(found.images[3].scores) == 1


def test_boxes_that_cannot_prompt_are_left_out_and_counted(
    tmp_path: Path, truth_set: InstanceSet, caplog: pytest.LogCaptureFixture
) -> None:
    places = [
        [0, 0, 0, 5],
        [5, 5, 5, 0],
        [60, 3, 5, 5],
        [-9, 3, 9, 5],
        [3, 40, 2, 2],
        [55, 35, 20, 20],
        [-3, -3, 90, 70],
    ]
    rows = [box(bbox=place) for place in places]
    with caplog.at_level(logging.WARNING):
        found = read_detections(write(tmp_path / "boxes.json", rows), truth_set.truth)
    assert found.left_out == {"zero_size": 2, "outside": 3, "beyond_top_k": 0}
    assert found.images[7].boxes.tolist() == [[55, 35, 75, 55], [-3, -3, 87, 67]]  # those that stick out stay
    assert "2 of 7 boxes are without an area" in caplog.text and "not x0, y0, x1, y1" in caplog.text


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([box(image_id=99)], "1 images that are not in the set: 99"),
        ([box(category_id=5)], "1 categories that the set does not have: 5"),
        ([box(score=float("nan"))], "score must be a finite number"),
        ([box(score=-0.1)], "score must be a finite number, 0 or more"),
        ([box(score="0.5")], "score must be"),
        ([box(bbox=[1, 2, 3, float("inf")])], "four finite numbers"),
        ([box(bbox=[1, 2, 3])], "four finite numbers"),
        ([box(bbox=[30, 20, -10, 5])], "cannot be negative"),
        ([box(), {"image_id": 7, "score": 1}], "1 entries have no bbox: number 1"),
        ([box(), 3], "have no bbox"),
        ({"annotations": [box()]}, "must hold a list"),
        ([box(image_id=None)], "image_id must be"),
        ([box(category_id="cat")], "category_id must be"),
    ],
)
def test_defects_of_boxes(tmp_path: Path, truth_set: InstanceSet, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_detections(write(tmp_path / "boxes.json", rows), truth_set.truth)


def test_boxes_that_cannot_be_read(tmp_path: Path, truth_set: InstanceSet) -> None:
    (tmp_path / "cut.json").write_text(json.dumps([box()])[:-20])
    for name in ("cut.json", "absent.json"):
        with pytest.raises(DataError, match="boxes cannot be read"):
            read_detections(tmp_path / name, truth_set.truth)


def test_categories_of_boxes_do_not_matter_without_classes(tmp_path: Path, file: Path) -> None:
    truth = read_instance_set(file, class_agnostic=True).truth
    plain = {key: value for key, value in box().items() if key != "category_id"}
    found = read_detections(write(tmp_path / "b.json", [box(category_id=77), plain]), truth, class_agnostic=True)
    assert found.images[7].categories == [1, 1]


def test_boxes_of_the_annotated_masks(truth_set: InstanceSet) -> None:
    found = true_boxes(truth_set.truth)
    assert found.images[3].boxes.tolist() == [[19, 9, 41, 31]] and found.images[3].categories == [9]
    assert found.images[7].categories == [3, 9] and found.images[4].scores == []
    assert found.left_out == {"crowd": 1, "zero_size": 1}


def stand_in(root: Path, name: str) -> None:
    """Write a small set where a card says."""
    for card in instance_cards().values():
        if name in (card.name, card.group):
            content = coco("val2017/" if name == "lvis_v1_val" else "")
            draw_images(root / card.images, content)
            if card.rules == "lvis":
                for image in content["images"]:
                    image["coco_url"] = f"http://images.example/{image.pop('file_name')}"
                    image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [9]}
                for category in content["categories"]:
                    category["frequency"] = "r"
                for annotation in content["annotations"]:
                    annotation.pop("iscrowd", None)
            write(root / card.annotations, content)


@pytest.mark.parametrize("name", ["coco_val2017", "lvis_v1_val", "uvo_v0.5_val", "seginw", "seginw_hand_metal"])
def test_named_sets_open_in_their_layout(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is not there: expected .* It comes from "):
        open_instances(name, root=tmp_path)
    stand_in(tmp_path, name)
    found = open_instances(name, root=tmp_path)
    assert len(found) == (25 if name == "seginw" else 1)
    card = find_instance_card(name)
    assert card is not None and found[0].name == card.name
    assert (found[0].truth.categories == {1: ""}) == (name == "uvo_v0.5_val")
    if name == "lvis_v1_val":
        assert found[0].truth.images[7].negative == {3} and found[0].truth.categories == {9: "r", 3: "r"}


def test_files_open_by_their_path(file: Path, tmp_path: Path) -> None:
    assert open_instances(file)[0].truth == read_instance_set(file).truth
    relative = open_instances("val2017:annotations/instances_val2017.json", root=tmp_path)
    assert len(relative[0].images) == 3
    assert open_instances(file, class_agnostic=True)[0].truth.categories == {1: ""}
    with pytest.raises(DataError, match=r"coco_val2017, lvis_v1_val, seginw, uvo_v0\.5_val"):
        open_instances("coco_val", root=tmp_path)


def test_no_segmentations_at_all(file: Path) -> None:
    write(file, {"annotations": [], "image": {}})
    with pytest.raises(DataError, match="list of images"):
        read_instance_set(file)
