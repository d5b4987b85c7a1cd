"""COCO, LVIS and SA-1B files, and what `hqsam auto` writes, opened as data sets."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqsam.cli.auto_results import describe
from hqsam.data import ImageRecord, TrainDataOptions, TrainingSet, load_object_masks, open_dataset
from hqsam.data.annotation_files import read_annotation_file
from hqsam.data.segmentations import Segmentation
from hqsam.engine.evaluation.plan import plan_items
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.rle import encode_rle

HW = (40, 60)
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
RING = [[5.25, 5.5, 20.1, 6.33, 12.7, 30.99], [30, 20, 50, 20, 50, 38]]
DISC = np.hypot(*(np.mgrid[: HW[0], : HW[1]] - np.array([20, 30])[:, None, None])) < 12


def draw(path: Path, hw: tuple[int, int] = HW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*hw, 3), 90, np.uint8)).save(path)
    return path


def image(number: Any, name: str, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": HW[0], "width": HW[1], **changes}


def annotation(number: Any, image_id: Any, segmentation: Any, **changes: Any) -> dict[str, Any]:
    plain = {"id": number, "image_id": image_id, "category_id": 3, "iscrowd": 0, "segmentation": segmentation}
    return {**plain, **changes}


def plain_runs(mask: np.ndarray) -> list[int]:
    flat = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate(([0], flat))))
    return np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()


def coco() -> dict[str, Any]:
    """Two images with objects of every form, a crowd, and an image without objects."""
    return {
        "images": [image(7, "b.png"), image(3, "sub/a.png"), image(4, "none.png")],
        "categories": [{"id": 3, "name": "disc"}],
        "annotations": [
            annotation(1, 7, [SQUARE], area=400.25),
            annotation(2, 3, encode_rle(DISC)),
            annotation(3, 7, RING, category_id=9),
            annotation(4, 7, {"size": list(HW), "counts": plain_runs(DISC)}),
            annotation(5, 7, {"size": list(HW), "counts": plain_runs(~DISC)}, iscrowd=1),
        ],
    }


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("b.png", "sub/a.png"):
        draw(tmp_path / "mine/photos2017" / name)
    return write(tmp_path / "mine/annotations/instances_photos2017.json", coco())


def masks_of(record: ImageRecord) -> list[np.ndarray]:
    return load_object_masks(record.objects, HW, record.image)


def test_coco_masks_are_those_of_pycocotools(file: Path) -> None:
    from pycocotools.coco import COCO

    oracle = COCO(str(file))
    records = open_dataset(file)
    assert [record.key for record in records] == [
        "instances_photos2017/b.png",
        "instances_photos2017/sub/a.png",
    ]
    assert {record.source for record in records} == {"instances_photos2017"}
    assert [[(o.name, o.area, o.label) for o in record.objects] for record in records] == [
        [("disc", 400, None), ("", None, None), ("disc", None, None)],
        [("disc", None, None)],
    ]
    for record, numbers in zip(records, ([1, 3, 4], [2]), strict=True):
        for mask, number in zip(masks_of(record), numbers, strict=True):
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, oracle.annToMask(oracle.anns[number]) * 255)
    np.testing.assert_array_equal(masks_of(records[1])[0], DISC * 255)


@pytest.mark.parametrize("step", [0.01, 0.001, 1 / 3, 1.0])
def test_coordinates_are_kept_exactly(file: Path, step: float) -> None:
    """Corners at x.1, x.3 and so on lie at a border of pycocotools' rounding: another last bit moves them."""
    from pycocotools import mask as oracle

    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, int(39 / step), 2 * n) * step).tolist() for n in (3, 5, 12) for _ in range(20)]
    parts += [[-1.5, 3, 20, 3, 20, 700.0]]
    content = {**coco(), "annotations": [annotation(k, 7, [part]) for k, part in enumerate(parts)]}
    for mask, part in zip(masks_of(open_dataset(write(file, content))[0]), parts, strict=True):
        np.testing.assert_array_equal(mask > 0, oracle.decode(oracle.merge(oracle.frPyObjects([part], *HW))) > 0)


def test_the_images_are_found_in_the_usual_places(tmp_path: Path) -> None:
    content = {**coco(), "images": [image(7, "b.png")]}
    content["annotations"] = [annotation(1, 7, [SQUARE])]
    places = {
        "beside/_annotations.coco.json": "beside/b.png",
        "inner/labels.json": "inner/images/b.png",
        "up/annotations/x.json": "up/b.png",
        "pics/annotations/x.json": "pics/images/b.png",
        "other/annotations/x.json": "other/whatever/b.png",
        "split/annotations/val.json": "split/images/val/b.png",
    }
    for name, place in places.items():
        draw(tmp_path / place)
        (record,) = open_dataset(write(tmp_path / name, content))
        assert record.image.samefile(tmp_path / place)
    assert open_dataset(tmp_path / "beside/_annotations.coco.json")[0].key == "beside/b.png"
    draw(tmp_path / "split/images/train/b.png")
    assert open_dataset(tmp_path / "split/annotations/val.json")[0].image.parent.name == "val"
    with pytest.raises(DataError, match=r"b\.png is in .*train, .*val; say which as IMAGES:x\.json"):
        open_dataset(write(tmp_path / "split/annotations/x.json", content))
    (record,) = open_dataset(f"{tmp_path}/split/images/train:{tmp_path}/split/annotations/x.json")
    assert (record.key, record.image.parent.name) == ("x/b.png", "train")
    with pytest.raises(DataError, match=r"b\.png not found, looked for in .*; write IMAGES:y\.json"):
        open_dataset(write(tmp_path / "nowhere/deep/y.json", content))


def test_lvis_names_images_by_their_address(tmp_path: Path) -> None:
    draw(tmp_path / "train2017/000000000007.jpg")
    draw(tmp_path / "val2017/000000000003.jpg")
    images = [
        {"id": k, "coco_url": f"http://images.cocodataset.org/{part}/{k:012d}.jpg", "height": HW[0], "width": HW[1]}
        for k, part in ((7, "train2017"), (3, "val2017"))
    ]
    for item in images:
        item |= {"neg_category_ids": [1], "not_exhaustive_category_ids": [3]}
    annotations = [{k: v for k, v in annotation(n, n, [SQUARE]).items() if k != "iscrowd"} for n in (3, 7)]
    file = write(tmp_path / "annotations/lvis_v1_val.json", {"images": images, "annotations": annotations})
    keys = ["lvis_v1_val/train2017/000000000007.jpg", "lvis_v1_val/val2017/000000000003.jpg"]
    assert [record.key for record in open_dataset(file)] == keys
    write(file, {"images": images[:1], "annotations": annotations[1:]})
    assert [record.key for record in open_dataset(f"{tmp_path}/train2017:{file}")] == keys[:1]


def test_what_is_no_object_is_left_out(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = coco()
    content["annotations"] += [
        annotation(11, 4, []),
        annotation(12, 4, [SQUARE], area=0),
        annotation(13, 4, [SQUARE[:4]]),
        annotation(14, 4, {"size": list(HW), "counts": [HW[0] * HW[1]]}),
        {"id": 15, "image_id": 4, "bbox": [1, 2, 3, 4]},
    ]
    with caplog.at_level(logging.WARNING):
        records = open_dataset(write(file, content))
    assert [len(record.objects) for record in records] == [3, 1]
    assert [r.getMessage() for r in caplog.records] == [f"{file}: 5 of 10 annotations have no area and are left out"]
    content["annotations"] = content["annotations"][4:]
    with pytest.raises(DataError, match=r"lists no object \(6 annotations, 5 of them without an area\)"):
        open_dataset(write(file, content))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"annotations": [annotation(1, 7, [SQUARE])] * 2}, "1 ids of annotations occur more than once: 1"),
        ({"annotations": [annotation(1, 8, [SQUARE])]}, "1 annotations are of images that are not listed: 1"),
        ({"annotations": [annotation(None, 7, [SQUARE])]}, "an annotation must have an id"),
        ({"annotations": [annotation(1, 7.5, [SQUARE])]}, "annotation 1: image_id must be"),
        ({"annotations": [annotation(1, 7, [SQUARE[:7]])]}, "annotation 1: a polygon is x0, y0"),
        ({"annotations": [annotation(1, 7, SQUARE)]}, "annotation 1: polygons are lists of numbers within a list"),
        ({"annotations": [annotation(1, 7, [[*SQUARE[:-1], float("nan")]])]}, "annotation 1: a corner"),
        ({"annotations": [annotation(1, 7, [[*SQUARE[:-1], 1e9]])]}, "annotation 1: a corner"),
        ({"annotations": [annotation(1, 7, [["a"] * 6])]}, "annotation 1: a polygon is a list of numbers"),
        ({"annotations": [annotation(1, 7, "text")]}, "annotation 1: a segmentation is"),
        ({"annotations": [annotation(1, 7, {"counts": "12"})]}, "annotation 1: run lengths come with size"),
        ({"annotations": [annotation(1, 7, {"size": [40, 60], "counts": "z!z"})]}, "annotation 1: counts are neither"),
        ({"annotations": [annotation(1, 7, {"size": [40, 60], "counts": [5, 5]})]}, "annotation 1: run lengths add up"),
        ({"annotations": [annotation(1, 7, {"size": [2, 2], "counts": [1, 3]})]}, "annotation 1 is drawn on 2 x 2"),
        ({"annotations": [annotation(1, 7, [SQUARE], area="big")]}, "annotation 1: area must be"),
        ({"annotations": {}}, "must hold a list of entries"),
        ({"annotations": [1]}, "an annotation must have an id"),
        ({"images": {}}, "images must be a list"),
        ({"images": [image(7, "b.png"), image(7, "c.png")]}, "two images have the id 7"),
        ({"images": [image(7, "b.png"), image(3, "b.png")]}, r"1 images more than once: b\.png"),
        ({"images": [{"file_name": "b.png"}]}, "image 0 of the list must have an id"),
        ({"images": [{"id": 7}]}, "image 7 has neither file_name nor coco_url"),
        ({"images": [image(7, "b.png", width=0)]}, "image 7: height and width must be positive"),
        ({"images": [image(7, "b.png"), image(3, "gone.png")]}, r"1 images that are not in .*photos2017: gone\.png"),
    ],
)
def test_defects_of_coco_files(file: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text) as error:
        open_dataset(write(file, {**coco(), **change}))
    assert file.name in str(error.value)


def test_defects_that_show_on_reading(file: Path) -> None:
    short, other = encode_rle(DISC), image(7, "b.png", height=41)
    short["counts"] = short["counts"][: short["counts"].rindex("N") + 1]
    cut = {**coco(), "annotations": [annotation(1, 7, short)]}
    (record,) = open_dataset(write(file, cut))
    with pytest.raises(DataError, match=r"annotation 1 of .*photos2017\.json is damaged: run lengths add up to"):
        masks_of(record)
    (record,) = open_dataset(write(file, {"images": [other], "annotations": [annotation("x", 7, [SQUARE])]}))
    with pytest.raises(DataError, match=r"annotation x of .*drawn on 60 x 41, .*b\.png is 60 x 40"):
        masks_of(record)
    unstated = {"id": 7, "file_name": "b.png"}
    (record,) = open_dataset(write(file, {"images": [unstated], "annotations": [annotation(1, 7, [SQUARE])]}))
    assert masks_of(record)[0].any()


@pytest.mark.parametrize(("content", "text"), [("{", "cannot be read"), ("", "cannot be read"), ("7", "must hold")])
def test_not_an_annotation_file(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=rf"{text}.*x\.json|x\.json.*{text}"):
        open_dataset(tmp_path / "x.json")


def test_a_folder_with_a_coco_file_says_how_to_open_it(tmp_path: Path) -> None:
    draw(tmp_path / "b.jpg")
    write(tmp_path / "_annotations.coco.json", coco())
    with pytest.raises(DataError, match=r"a COCO file is opened by its own path"):
        open_dataset(tmp_path)


def test_segmentations_stay_packed(file: Path) -> None:
    records = pickle.loads(pickle.dumps(open_dataset(file)))
    held = [obj.mask for record in records for obj in record.objects]
    assert all(isinstance(mask, Segmentation) for mask in held)
    assert len({id(mask.table) for mask in held if isinstance(mask, Segmentation)}) == 1
    assert masks_of(records[0])[0].sum() == 255 * 20 * 20
    content = read_annotation_file(file)
    assert len(content["annotations"][0].packed) == 1 + 4 + 4 + 2 * len(SQUARE)


def drawn_masks() -> np.ndarray:
    masks = np.zeros((3, *HW), bool)
    masks[0, 2:10, 3:20], masks[1] = True, DISC
    return masks


def write_auto(pictures: list[Path], out: Path) -> None:
    """What `hqsam auto` writes; the third mask has no pixel."""
    for number, path in enumerate(pictures, start=1):
        records = [
            {
                "segmentation": encode_rle(mask),
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "predicted_iou": 0.9,
                "point_coords": [[1.0, 1.0]],
                "stability_score": 0.95,
                "crop_box": [0, 0, *HW[::-1]],
            }
            for mask in drawn_masks()
        ]
        shape = read_image(path).shape
        write(out / f"{path.stem}.json", describe(path, shape, records, {"preset": "fast"}, number))  # type: ignore[arg-type]
        draw(out / f"{path.stem}_overlay.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_results_of_automatic_generation_open_again(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [draw(tmp_path / f"photos/{name}.{suffix}") for name in "cab"]
    write_auto(pictures[:2], tmp_path / "auto")
    with caplog.at_level(logging.WARNING):
        records = open_dataset(f"{tmp_path}/photos:{tmp_path}/auto")
    assert [record.key for record in records] == [f"photos/a.{suffix}", f"photos/c.{suffix}"]
    assert "1 of 3 images have no annotation" in caplog.text
    assert "2 of 6 annotations have no area" in caplog.text
    for record in records:
        np.testing.assert_array_equal(np.stack(masks_of(record)) > 0, drawn_masks()[:2])
    (one,) = open_dataset(f"{tmp_path}/photos:{tmp_path}/auto/a.json")
    assert one.key == f"a/a.{suffix}"


def test_an_sa1b_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("sa_2", "sa_11"):
        draw(tmp_path / f"sa_000000/{name}.jpg")
        about = {"image_id": 2, "width": HW[1], "height": HW[0], "file_name": f"{name}.jpg"}
        further = {"bbox": [0, 0, 1, 1], "area": 9, "predicted_iou": 0.9, "stability_score": 1.0}
        entries = [{**further, "id": k, "segmentation": encode_rle(m)} for k, m in enumerate(drawn_masks()[:2])]
        write(tmp_path / f"sa_000000/{name}.json", {"image": about, "annotations": entries})
    records = open_dataset(tmp_path / "sa_000000")
    assert [record.key for record in records] == ["sa_000000/sa_11.jpg", "sa_000000/sa_2.jpg"]
    np.testing.assert_array_equal(np.stack(masks_of(records[1])) > 0, drawn_masks()[:2])
    assert open_dataset(tmp_path)[0].key == f"{tmp_path.name}/sa_000000/sa_11.jpg"  # sub-folders are included
    assert not caplog.records
    draw(tmp_path / "sa_000000/sa_3.jpg")
    assert [r.key for r in open_dataset(tmp_path / "sa_000000")] == [r.key for r in records]
    assert "1 of 3 images have no annotation" in caplog.text


def test_defects_of_sa1b_folders(tmp_path: Path) -> None:
    write_auto([draw(tmp_path / "photos/a.png")], tmp_path / "auto")
    name = f"{tmp_path}/photos:{tmp_path}/auto"
    good = json.loads((tmp_path / "auto/a.json").read_text())
    write(tmp_path / "auto/z.json", {**good, "image": {**good["image"], "file_name": "z.png"}})
    with pytest.raises(DataError, match=r"z\.json is about an image that is not there: .*z\.png"):
        open_dataset(name)
    write(tmp_path / "auto/z.json", good)
    with pytest.raises(DataError, match=r"several JSON files are about photos/a\.png"):
        open_dataset(name)
    write(tmp_path / "auto/z.json", {"annotations": []})
    with pytest.raises(DataError, match=r"z\.json has neither images \(COCO\) nor an image"):
        open_dataset(name)
    (tmp_path / "auto/z.json").unlink()
    write(tmp_path / "auto/a.json", {**good, "image": {**good["image"], "width": 3}})
    with pytest.raises(DataError, match=r"annotation 1 is drawn on 60 x 40, but its image is 3 x 40"):
        open_dataset(name)
    write(tmp_path / "auto/a.json", {**good, "annotations": []})
    with pytest.raises(DataError, match="none of 1 JSON files"):
        open_dataset(name)


def test_masks_beside_json_files_are_masks(tmp_path: Path) -> None:
    """A stray JSON file changes nothing about a folder that was one of images and masks before."""
    draw(tmp_path / "a.jpg")
    Image.fromarray(DISC).save(tmp_path / "a.png")
    write(tmp_path / "a.json", {"notes": 1})
    assert open_dataset(tmp_path)[0].objects[0].mask == tmp_path / "a.png"


def test_they_are_trained_on_and_evaluated(file: Path) -> None:
    records = open_dataset(file)
    data = TrainingSet(records, TrainDataOptions(points_per_mask=16, prompts_per_image=2), 64, seed=0)
    assert data.sources == ["instances_photos2017"] * 2
    sample = data[0, 0]
    assert sample.masks.shape[0] == 2 and sample.masks.any()
    assert [(item.set, item.image, item.objects) for item in plan_items(records)] == [
        ("instances_photos2017", "b.png", (0, 1, 2)),
        ("instances_photos2017", "sub/a.png", (0,)),
    ]
