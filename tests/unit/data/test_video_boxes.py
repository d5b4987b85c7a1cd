"""Boxes of another model: every form says the same, and what cannot be is found at the start."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqsam.data.davis import read_davis
from hqsam.data.video_boxes import BoxTrack, read_video_boxes
from hqsam.data.videos import VideoSet
from hqsam.data.youtube_vis import read_youtube_vis
from hqsam.errors import DataError
from hqsam.rle import encode_rle
from tests.unit.data.video_sets import HW, label_map, save_palette, write_davis, write_youtube_vis

Items = list[dict[str, Any]]


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    return read_davis(write_davis(tmp_path_factory.mktemp("davis"), 2017, {"swan": 3}), 2017)


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    return read_youtube_vis(write_youtube_vis(tmp_path_factory.mktemp("vis")))


def read(folder: Path, items: Any, videos: VideoSet) -> dict[str, tuple[BoxTrack, ...]]:
    file = folder / "boxes.json"
    file.write_text(json.dumps(items))
    return read_video_boxes(file, videos)


TRACK: dict[str, Any] = {"video_id": 1, "category_id": 2, "score": 0.5, "bboxes": [[1, 2, 10, 20], None, [3, 4, 5, 6]]}
BOXES = (1.0, 2.0, 11.0, 22.0), None, (3.0, 4.0, 8.0, 10.0)


def test_tracks_and_single_boxes_say_the_same(tmp_path: Path, instances: VideoSet) -> None:
    expected = BoxTrack(boxes=BOXES, category=2, score=0.5)
    for video in (1, "v1"):
        tracks = read(tmp_path, [{**TRACK, "video_id": video}], instances)
        assert tracks == {"ytvis_hq-test/1": (expected,), "ytvis_hq-test/2": ()}
    common = {"video_id": 1, "object_id": "a", "category_id": 2}
    single: Items = [
        {**common, "frame": "00002.jpg", "bbox": [3, 4, 5, 6], "score": 0.75},
        {**common, "frame": 0, "bbox": [1, 2, 10, 20], "score": 0.25},
        {**common, "frame": 1, "object_id": "b", "bbox": [0, 0, 1, 1], "score": 1},
    ]
    first, second = read(tmp_path, single, instances)["ytvis_hq-test/1"]
    assert first == expected and second.boxes == (None, (0.0, 0.0, 1.0, 1.0), None)


def test_boxes_of_masks_hold_inclusive_pixels(tmp_path: Path, instances: VideoSet) -> None:
    masks = [encode_rle(label_map(0) == 1), encode_rle(np.zeros(HW, dtype=bool)), None]
    (track,) = read(tmp_path, [{"video_id": 1, "category_id": 1, "score": 1, "segmentations": masks}], instances)[
        "ytvis_hq-test/1"
    ]
    assert track.boxes == ((12.0, 4.0, 27.0, 17.0), None, None)


def test_sets_without_classes_need_the_number_of_the_object(tmp_path: Path, davis: VideoSet) -> None:
    track = {"video_id": "swan", "object_id": 2, "bboxes": TRACK["bboxes"]}
    assert read(tmp_path, [track], davis) == {"davis2017_val/swan": (BoxTrack(boxes=BOXES, number=2),)}
    for wrong in (3, None, "2"):
        with pytest.raises(DataError, match="none of the objects of swan, which are 1, 2"):
            read(tmp_path, [{**track, "object_id": wrong}], davis)
    with pytest.raises(DataError, match="two tracks of object 2"):
        read(tmp_path, [track, track], davis)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 9}, "item 0: video_id 9 is not in the set, which has v1, v2"),
        ({"video_id": None}, "video_id None"),
        ({"video_id": [1]}, "video_id"),
        ({"category_id": 3}, "category_id 3 is not in the set"),
        ({"category_id": "cat"}, "category_id 'cat'"),
        ({"score": None}, "score must be a finite number, got None"),
        ({"score": math.nan}, "score must be a finite number, got nan"),
        ({"score": math.inf}, "score must be a finite number"),
        ({"score": True}, "score must be a finite number"),
        ({"bboxes": [[1, 2, 3, 4]] * 2}, "each of 3 frames, got 2"),
        ({"bboxes": None}, "got no list of them"),
        ({"bboxes": [[1, 2, 3]] * 3}, "a box is"),
        ({"bboxes": [[1, 2, math.nan, 4]] * 3}, "a box is"),
        ({"bboxes": [[1, 2, -3, 4]] * 3}, "must not be negative"),
        ({"bboxes": [[64, 2, 3, 4]] * 3}, "outside the 64 x 48 frames"),
        ({"bboxes": [[-9, 2, 3, 4]] * 3}, "outside the 64 x 48 frames"),
    ],
)
def test_defects_of_tracks(tmp_path: Path, instances: VideoSet, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, [{**TRACK, **change}], instances)


def test_boxes_partly_outside_and_without_extent_are_taken(tmp_path: Path, instances: VideoSet) -> None:
    boxes = [[-5, -5, 10, 10], [60, 40, 100, 100], [7, 7, 0, 0]]
    (track,) = read(tmp_path, [{**TRACK, "bboxes": boxes}], instances)["ytvis_hq-test/1"]
    assert track.boxes == ((-5.0, -5.0, 5.0, 5.0), (60.0, 40.0, 160.0, 140.0), (7.0, 7.0, 7.0, 7.0))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [48, 64]}, "size and compressed counts"),
        ({"size": [48, 64], "counts": "~~"}, "size and compressed counts"),
        ({"size": [47, 64], "counts": "0"}, "must fill"),
        ({"size": [48, 64], "counts": "5"}, "must fill"),
        ([[1, 2, 3, 4, 5, 6]], "size and compressed counts"),
    ],
)
def test_defects_of_masks_that_boxes_come_from(tmp_path: Path, instances: VideoSet, mask: Any, message: str) -> None:
    item = {"video_id": 1, "category_id": 1, "score": 1, "segmentations": [mask, None, None]}
    with pytest.raises(DataError, match=message):
        read(tmp_path, [item], instances)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[1].update(frame=0), "object 4 has two boxes in frame 0"),
        (lambda items: items[1].update(frame="00009"), "frame '00009' is none of the 3 frames of v1"),
        (lambda items: items[1].update(frame=3), "frame 3 is none"),
        (lambda items: items[1].update(frame=True), "frame True is none"),
        (lambda items: items[1].update(category_id=1), "of different categories"),
        (lambda items: items[1].pop("object_id"), "item 1: object_id must be a number or a name"),
        (lambda items: items[1].pop("bbox"), "item 1: a box is"),
    ],
)
def test_defects_of_single_boxes(
    tmp_path: Path, instances: VideoSet, change: Callable[[Items], Any], message: str
) -> None:
    items: Items = [
        {"video_id": 1, "frame": k, "object_id": 4, "category_id": 2, "score": 1, "bbox": [1, 1, 5, 5]} for k in (0, 1)
    ]
    change(items)
    with pytest.raises(DataError, match=message):
        read(tmp_path, items, instances)


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", '{"annotations": []}'])
def test_files_that_hold_no_boxes(tmp_path: Path, instances: VideoSet, content: str) -> None:
    (tmp_path / "boxes.json").write_text(content)
    with pytest.raises(DataError, match=r"boxes\.json"):
        read_video_boxes(tmp_path / "boxes.json", instances)
    with pytest.raises(DataError, match="cannot be read"):
        read_video_boxes(tmp_path / "nothing.json", instances)


def write_maps(folder: Path) -> Path:
    for frame in range(3):
        labels = label_map(frame)
        labels[-1, 0] = 255
        if frame == 1:
            labels[labels == 2] = 0
        save_palette(folder / "swan" / f"{frame:05d}.png", labels)
    return folder


def test_label_maps_of_another_model_give_boxes(tmp_path: Path, davis: VideoSet) -> None:
    first, second = read_video_boxes(write_maps(tmp_path), davis)["davis2017_val/swan"]
    assert (first.number, second.number) == (1, 2)
    assert first.boxes == ((12.0, 4.0, 27.0, 17.0), (14.0, 4.0, 29.0, 17.0), (16.0, 4.0, 31.0, 17.0))
    assert second.boxes == ((18.0, 24.0, 33.0, 37.0), None, (22.0, 24.0, 37.0, 37.0))


def test_label_maps_of_one_object_are_everything_that_is_not_zero(tmp_path: Path) -> None:
    videos = read_davis(write_davis(tmp_path / "data", 2016, {"swan": 3}), 2016)
    (track,) = read_video_boxes(tmp_path / "data/Annotations/480p", videos)["davis2016_val/swan"]
    assert track.number == 1 and track.boxes[0] == (12.0, 4.0, 27.0, 17.0)


def test_defects_of_label_maps(tmp_path: Path, davis: VideoSet, instances: VideoSet) -> None:
    folder = write_maps(tmp_path)
    with pytest.raises(DataError, match="no classes and scores"):
        read_video_boxes(folder, instances)
    save_palette(folder / "swan/00001.png", label_map(1, objects=3)[:, ::-1])
    with pytest.raises(DataError, match=r"00001\.png has 3, the objects of swan are 1, 2"):
        read_video_boxes(folder, davis)
    save_palette(folder / "swan/00001.png", label_map(1, (40, 40)))
    with pytest.raises(DataError, match=r"00001\.png has \(height, width\) \(40, 40\)"):
        read_video_boxes(folder, davis)
    (folder / "swan/00001.png").unlink()
    with pytest.raises(DataError, match=r"1 label maps of swan are missing: .*00001\.png"):
        read_video_boxes(folder, davis)
