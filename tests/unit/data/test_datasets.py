from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hqsam.data import ObjectRecord, open_dataset, select_records
from hqsam.data.cards import cards, group_members
from hqsam.data.folders import read_folder_pair
from hqsam.data.records import ImageRecord, is_held_out
from hqsam.errors import DataError

TRAIN = {"dis5k_tr", "thinobject5k_tr", "fss", "duts_tr", "duts_te", "ecssd", "msra10k"}
VAL = {"dis5k_vd", "coift", "hrsod", "thinobject5k_te"}
OTHERS = {"big": {"big_val", "big_test"}, "ndd20": {"ndd20_above", "ndd20_below"}}


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    return path


def test_folder_pair_is_sorted_and_ignores_what_is_no_image(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.webp", "d.tif", "sub/e.bmp"):
        draw(tmp_path / "images" / name)
    for name in ("a.png", "b.PNG", "c.png", "d.bmp", "sub/e.png"):
        draw(tmp_path / "masks" / name)
    draw(tmp_path / "images" / "._b.jpg")
    draw(tmp_path / "masks" / ".trash" / "a.png")
    (tmp_path / "images" / "Thumbs.db").write_text("")
    records = read_folder_pair(tmp_path / "images", tmp_path / "masks", "mine")
    names = ("a.png", "b.JPG", "c.webp", "d.tif", "sub/e.bmp")
    assert [record.key for record in records] == [f"mine/{name}" for name in names]
    assert [record.objects[0].mask.stem for record in records] == list("abcde")
    assert {record.source for record in records} == {"mine"}
    assert all(record.objects[0].label is None for record in records)


def test_one_folder_holds_jpeg_images_beside_png_masks(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpeg", "b.png"):
        draw(tmp_path / name)
    records = open_dataset(str(tmp_path))
    assert [(r.image.name, r.objects[0].mask.name) for r in records] == [("a.jpg", "a.png"), ("b.jpeg", "b.png")]


@pytest.mark.parametrize("missing", [1, 7])
def test_image_without_mask_names_up_to_five(tmp_path: Path, missing: int) -> None:
    for k in range(8):
        draw(tmp_path / "images" / f"{k}.jpg")
        if k >= missing:
            draw(tmp_path / "masks" / f"{k}.png")
    with pytest.raises(DataError) as error:
        open_dataset(tmp_path)
    text = str(error.value)
    assert f"{missing} image{'s' if missing > 1 else ''} without a mask" in text
    assert text.count(".jpg") == min(missing, 5)
    assert ("and 2 more" in text) == (missing == 7)


def test_defects_of_folders(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.jpg")
    draw(tmp_path / "masks" / "a.png")
    draw(tmp_path / "masks" / "z.png")
    with pytest.raises(DataError, match=r"1 mask without an image.*z\.png"):
        open_dataset(tmp_path)
    draw(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"same stem.*a\.jpg and a\.png"):
        open_dataset(tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no images \(jpeg jpg\).*nothing"):
        open_dataset(tmp_path / "nothing")
    (tmp_path / "hollow/images").mkdir(parents=True)
    (tmp_path / "hollow/masks").mkdir()
    with pytest.raises(DataError, match="no images"):
        open_dataset(tmp_path / "hollow")


def test_a_data_set_is_opened_by_whatever_a_user_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one/im", "one/gt", "two/pictures", "two/outlines"):
        draw(tmp_path / folder / ("a.jpg" if folder.endswith(("im", "pictures")) else "a.png"))
    assert open_dataset(tmp_path / "one")[0].key == "one/a.jpg"
    assert open_dataset(f"{tmp_path}/two/pictures:{tmp_path}/two/outlines")[0].objects[0].mask.parent.name == "outlines"
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("one")) == len(open_dataset("two/pictures:two/outlines")) == 1
    for name in ("three", "two/pictures:two/nothing"):
        with pytest.raises(DataError, match=f"no data set '{name}'.*hqseg44k_train"):
            open_dataset(name)


def write_pack(folder: Path, entries: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return folder


def entry(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    for part, suffix in (("images", "jpg"), ("masks", "png")):
        draw(folder / part / f"{name}.{suffix}")
    box = {"area": 3, "bbox_xyxy": [0, 1, 2, 3], "thin": 0.1}
    plain = {"image": f"images/{name}.jpg", "mask": f"masks/{name}.png", "source": "birds", "kind": "binary"}
    return {**plain, "objects": [{"label": -1, "name": "bird", **box}], **changes}


def test_index_pack(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    draw(folder / "alpha/b.png")
    objects = [{"label": 5, "name": "leg"}, {"label": -1, "name": "all"}]
    entries = [
        entry(folder, "c", objects=[]),
        entry(folder, "b", alpha="alpha/b.png"),
        entry(folder, "a", kind="index", objects=objects, source="cells"),
    ]
    write_pack(folder, entries)
    records = open_dataset(folder)  # in the order of the index
    assert records == open_dataset(folder / "index.json")
    assert [(r.key, r.set_name, r.source) for r in records] == [
        ("pack/images/b.jpg", "pack", "birds"),
        ("pack/images/a.jpg", "pack", "cells"),
    ]
    assert [(o.label, o.name, o.alpha) for o in records[1].objects] == [(5, "leg", None), (-1, "all", None)]
    assert records[0].objects == (
        ObjectRecord(
            mask=folder / "masks/b.png",
            label=-1,
            name="bird",
            alpha=folder / "alpha/b.png",
            area=3,
            bbox_xyxy=(0, 1, 2, 3),
            thin=0.1,
        ),
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "soup"}, "entry 0: kind must be 'binary' or 'index', got 'soup'"),
        ({"kind": "index", "objects": [{}]}, "entry 0 lacks 'label'"),
        ({"objects": None}, "entry 0 is malformed"),
        ({"objects": [{"bbox_xyxy": [1, 2]}]}, "entry 0 is malformed"),
        ({"mask": "masks/none.png"}, r"1 missing files: masks/none\.png"),
        ({"objects": []}, "lists no object"),
    ],
)
def test_malformed_entries(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    write_pack(tmp_path, [entry(tmp_path, "a", **change)])
    with pytest.raises(DataError, match=text):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("content", "text"), [("{", "cannot be read"), ("{}", "list of entries"), ("[]", "no object")])
def test_malformed_index(tmp_path: Path, content: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        open_dataset(write_pack(tmp_path, content))


def test_an_image_listed_twice(tmp_path: Path) -> None:
    write_pack(tmp_path, [entry(tmp_path, "a"), entry(tmp_path, "a")])
    with pytest.raises(DataError, match=r"more than once.*images/a\.jpg"):
        open_dataset(tmp_path)


def test_cards_name_the_members_of_hqseg44k() -> None:
    assert set(cards()) == TRAIN.union(VAL, *OTHERS.values())
    assert set(group_members("hqseg44k_train")) == TRAIN
    assert set(group_members("hqseg44k_val")) == VAL
    assert group_members("ecssd") == []
    for card in cards().values():
        assert all([card.title, card.origin, card.terms, card.groups])


@pytest.mark.parametrize("group", OTHERS)
def test_other_groups(group: str) -> None:
    assert set(group_members(group)) == OTHERS[group]


def test_images_and_masks_of_one_folder_by_their_endings(tmp_path: Path) -> None:
    folder = tmp_path / "BIG/test"
    for name in ("b_im.png", "b_gt.png", "b_seg.png", "a_im.jpg", "a_gt.png", "a_seg.png", "a_seg.jpg", "sub/c_im.jpg"):
        draw(folder / name)
    with pytest.raises(DataError, match=r"1 image without a mask.*c_im\.jpg"):
        open_dataset("big_test", root=tmp_path)
    draw(folder / "sub/c_gt.png")
    records = open_dataset("big_test", root=tmp_path)
    assert [(r.key, r.objects[0].mask.name) for r in records] == [  # type: ignore[union-attr]
        ("big_test/a_im.jpg", "a_gt.png"),
        ("big_test/b_im.png", "b_gt.png"),
        ("big_test/sub/c_im.jpg", "c_gt.png"),
    ]
    assert [r.image for r in open_dataset(folder)] == [r.image for r in records]
    draw(folder / "a_im.png")
    with pytest.raises(DataError, match=r"same stem.*a_im\.jpg and a_im\.png"):
        open_dataset(folder)


def test_endings_that_belong_to_the_names(tmp_path: Path) -> None:
    """`x_gt` without `x_im` is a name as any other."""
    for name in ("x_gt.jpg", "x_gt.png", "y_im.jpg", "y_im.png"):
        draw(tmp_path / name)
    assert [r.image.name for r in open_dataset(tmp_path)] == ["x_gt.jpg", "y_im.jpg"]


def test_a_named_set_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "DIS5K/DIS-VD/im/a.jpg")
    draw(tmp_path / "DIS5K/DIS-VD/gt/a.png")
    draw(tmp_path / "cascade_psp/ecssd/b.jpg")
    draw(tmp_path / "cascade_psp/ecssd/b.png")
    assert [r.key for r in open_dataset("dis5k_vd", root=tmp_path)] == ["dis5k_vd/a.jpg"]
    monkeypatch.setenv("HQSAM_DATA", str(tmp_path))
    assert [r.key for r in open_dataset("ecssd")] == ["ecssd/b.jpg"]
    with pytest.raises(DataError, match=r"COIFT.*expected .*thin_object_detection/COIFT/images.*HQSAM_DATA"):
        open_dataset("hqseg44k_val")


def record(name: str, source: str = "a") -> ImageRecord:
    return ImageRecord(key=f"s/{name}", set_name="s", source=source, image=Path("x") / name, objects=())


def test_the_reserved_tenth_goes_by_the_sha1_of_the_file_name() -> None:
    names = [f"{k:03d}.jpg" for k in range(300)]
    expected = [n for n in names if int(hashlib.sha1(n.encode()).hexdigest(), 16) % 10 == 0]
    assert [n for n in names if is_held_out(Path("any/folder") / n)] == expected
    records = [record(n) for n in names]
    val, train = select_records(records, holdout="val"), select_records(records, holdout="train")
    assert [r.image.name for r in val] == expected
    assert len(val) + len(train) == 300
    assert select_records(records) == records


def test_selection_by_source_and_list(tmp_path: Path) -> None:
    records = [record("a.jpg"), record("b.jpg", "b"), record("c.jpg", "b")]
    listed = tmp_path / "list.txt"
    listed.write_text("# comment\nb.jpg train/1.jpg\n\na.jpg\n")
    assert select_records(records, sources=["b"]) == records[1:]
    assert select_records(records, exclude_files=[listed]) == records[2:]
    with pytest.raises(DataError, match="no image of source z; the data has a, b"):
        select_records(records, sources=["z"])
    with pytest.raises(DataError, match="leaves none of 1 images"):
        select_records(records[:1], exclude_files=[listed])
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        select_records(records, exclude_files=[tmp_path / "nowhere.txt"])
    with pytest.raises(ValueError, match="holdout"):
        select_records(records, holdout="test")  # type: ignore[arg-type]


def test_research_packs_open(shared_data: Path) -> None:
    train = open_dataset(shared_data / "train512")
    kept = select_records(train, holdout="train", exclude_files=[shared_data / "bsds_in_train512.txt"])
    assert len(train) == 2019
    assert {r.source for r in train} == {"ecssd", "ccp", "weizmann", "pennfudan", "dsb2018", "gfm_pseudo"}
    assert not any(is_held_out(r.image) for r in kept)
    assert len(train) > len(kept) > 1600
    assert len(open_dataset(shared_data / "eval_hq")) == 193
    assert len(open_dataset(shared_data / "davis")) == 194
