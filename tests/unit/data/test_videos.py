"""Readers of videos, on generated stand-ins in the layouts of the published sets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqsam.data.davis import read_davis, read_video_pack
from hqsam.data.video_opening import open_videos, video_cards
from hqsam.data.videos import check_frame, every_nth_frame, load_frame_masks
from hqsam.data.youtube_vis import read_youtube_vis
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.rle import encode_rle
from tests.helpers import shared_dir
from tests.unit.data.video_sets import (
    HW,
    label_map,
    save_palette,
    write_davis,
    write_pack,
    write_youtube_vis,
    youtube_vis_content,
)


def test_davis_2017_has_the_objects_of_the_first_frame(tmp_path: Path) -> None:
    write_davis(tmp_path, 2017, {"swan": 4, "dog": 3})
    labels = label_map(2)
    labels[40:44, 50:60] = 3  # appears later: no object
    save_palette(tmp_path / "Annotations/480p/swan/00002.png", labels)
    videos = read_davis(tmp_path, 2017)
    assert videos.name == "davis2017_val" and not videos.categories
    assert [(video.name, len(video.frames), video.size_hw) for video in videos.videos] == [
        ("swan", 4, HW),
        ("dog", 3, HW),
    ]
    swan = videos.videos[0]
    assert [obj.number for obj in swan.objects] == [1, 2]
    for frame in range(4):
        for number, mask in enumerate(load_frame_masks(swan, frame), start=1):
            assert (mask == (label_map(frame) == number)).all()  # void (255) is in none of them
    check_frame(swan, 0, read_image(swan.frames[0]))


@pytest.mark.parametrize("lists", ["", "480p"])
def test_davis_2016_has_one_object(tmp_path: Path, lists: str) -> None:
    write_davis(tmp_path, 2016, {"swan": 3}, lists=lists)
    (swan,) = read_davis(tmp_path, 2016).videos
    assert swan.key == "davis2016_val/swan" and [obj.number for obj in swan.objects] == [1]
    assert (load_frame_masks(swan, 1)[0] == (label_map(1, objects=1) > 0)).all()


def test_davis_2016_takes_every_object_of_2017s_annotations_as_one(tmp_path: Path) -> None:
    write_davis(tmp_path, 2017, {"swan": 3})
    (tmp_path / "ImageSets/2016").mkdir()
    (tmp_path / "ImageSets/2016/val.txt").write_text("swan\n")
    (swan,) = read_davis(tmp_path, 2016).videos
    assert load_frame_masks(swan, 0)[0][label_map(0) > 0].all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "Annotations/480p/swan/00001.png").unlink(), "1 frames without a mask: 00001"),
        (lambda root: (root / "JPEGImages/480p/swan/00001.jpg").unlink(), "1 masks without a frame: 00001"),
        (lambda root: (root / "ImageSets/2017/val.txt").unlink(), "list of its split is missing"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("\n"), "lists no sequence"),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("swan\ncat\n"), "2 folders .* missing: .*cat"),
        (lambda root: (root / "Annotations").rename(root / "Masks"), "expected .*Annotations"),
        (
            lambda root: save_palette(root / "Annotations/480p/swan/00000.png", np.full(HW, 255, np.uint8)),
            "no object in the first frame",
        ),
    ],
)
def test_defects_of_davis(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    write_davis(tmp_path, 2017, {"swan": 3})
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        read_davis(tmp_path, 2017)


def test_an_empty_sequence_and_another_year(tmp_path: Path) -> None:
    write_davis(tmp_path, 2017, {"swan": 1})
    for file in tmp_path.rglob("0*.*"):
        file.unlink()
    with pytest.raises(DataError, match="sequence swan has no frames"):
        read_davis(tmp_path, 2017)
    with pytest.raises(ValueError, match="2016 or 2017"):
        read_davis(tmp_path, 2018)


def test_masks_and_frames_of_another_size_are_found_when_read(tmp_path: Path) -> None:
    write_davis(tmp_path, 2017, {"swan": 3})
    save_palette(tmp_path / "Annotations/480p/swan/00001.png", label_map(1, (40, 40)))
    (swan,) = read_davis(tmp_path, 2017).videos
    with pytest.raises(DataError, match=r"00001\.(jpg|png)"):
        load_frame_masks(swan, 1)
    with pytest.raises(DataError, match="frames of a video have one size"):
        check_frame(swan, 2, np.zeros((10, 20, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["binary", "index"])
def test_packs_are_put_together_to_videos(tmp_path: Path, kind: str) -> None:
    entries = write_pack(tmp_path, {"b": 3, "a": 2}, kind)
    entries[1]["objects"] = []  # the objects are hidden in this frame
    (tmp_path / "index.json").write_text(json.dumps(entries[::-1]))
    videos = read_video_pack(tmp_path / "index.json")
    assert [(video.name, len(video.frames)) for video in videos.videos] == [("a", 2), ("b", 3)]
    hidden = videos.videos[1]
    assert [path.stem for path in hidden.frames] == ["00000", "00001", "00002"]
    assert [len(video.objects) for video in videos.videos] == ([1, 1] if kind == "binary" else [2, 2])
    assert not any(mask.any() for mask in load_frame_masks(hidden, 1))
    assert all(mask.any() for mask in load_frame_masks(hidden, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries[1].pop("seq"), "entry 1: seq"),
        (lambda entries: entries[1].update(frame="1"), "entry 1: seq"),
        (lambda entries: entries[1].update(frame=0), "frame 0 of a comes twice"),
        (lambda entries: entries[1].update(objects=[{"label": 1}, {"label": 1}]), "the same label"),
        (lambda entries: [entry.update(objects=[]) for entry in entries[:2]], "a: no frame has an object"),
    ],
)
def test_defects_of_packs(tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], message: str) -> None:
    entries = write_pack(tmp_path, {"a": 2, "b": 2}, "index")
    change(entries)
    (tmp_path / "index.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=message):
        read_video_pack(tmp_path / "index.json")


def test_youtube_vis_objects_may_be_absent_from_frames(tmp_path: Path) -> None:
    content = youtube_vis_content()
    corners = [18, 24, 34, 24, 34, 38, 18, 38]
    content["annotations"][1]["segmentations"][0] = [corners]
    content["annotations"][1]["areas"] = [100, None, 0]
    del content["annotations"][0]["areas"]
    content["videos"].append({**content["videos"][0], "id": 7})  # nothing in it
    videos = read_youtube_vis(write_youtube_vis(tmp_path, content))
    assert videos.name == "ytvis_hq-test" and videos.categories == {1: "cat", 2: "dog"}
    first, _, bare = videos.videos
    assert (first.name, first.number, first.key, len(bare.objects)) == ("v1", 1, "ytvis_hq-test/1", 0)
    assert [(obj.number, obj.category, obj.area) for obj in first.objects] == [(1, 1, None), (2, 2, 100.0)]
    for frame in range(3):
        masks = load_frame_masks(first, frame)
        assert (masks[0] == (label_map(frame) == 1)).all()
        assert (masks[1] == ((label_map(frame) == 2) & (frame < 2))).all()


def test_refined_masks_are_taken_where_there_are_some(tmp_path: Path) -> None:
    content = youtube_vis_content()
    better = np.zeros(HW, dtype=bool)
    better[:5, :7] = True
    content["annotations"][0]["segmentations_refined"] = [encode_rle(better), None, None]
    (video, _) = read_youtube_vis(write_youtube_vis(tmp_path, content)).videos
    assert load_frame_masks(video, 0)[0].sum() == 35 and not load_frame_masks(video, 1)[0].any()


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0]["segmentations"].pop(), "annotation 1 needs .* each of 3 frames, got 2"),
        (lambda c: c["annotations"][0].update(segmentations=None), "got NoneType"),
        (lambda c: c["annotations"][0].update(video_id=9), "video_id 9, which is not listed"),
        (lambda c: c["annotations"][0].update(category_id=9), "category_id 9, which is not listed"),
        (lambda c: c["annotations"][0].update(id=2), "1 annotation ids come more than once: 2"),
        (lambda c: c["annotations"][0].update(id=None), "annotation 0 of the list must have an id"),
        (lambda c: c["videos"][0].update(id=2), "1 video ids come more than once"),
        (lambda c: c["videos"][0].update(file_names=[]), "video 1 has no list of file_names"),
        (lambda c: c["videos"][0].pop("height"), "height and width"),
        (lambda c: c["videos"][0].update(height=47), r"annotation 1, frame 0 is drawn on \(48, 64\)"),
        (lambda c: c["videos"][0]["file_names"].append("v1/9.jpg"), "needs .* each of 4 frames"),
        (lambda c: c["annotations"][0]["segmentations"].__setitem__(1, 5), "annotation 1, frame 1: a segmentation is"),
        (lambda c: c.pop("annotations"), "truth .* is not public"),
        (lambda c: c.pop("categories"), "lists of videos, categories"),
        (lambda c: c.update(categories=[{"id": 1}, {"id": 1}]), "1 category ids come more than once"),
    ],
)
def test_defects_of_youtube_vis_files(tmp_path: Path, change: Change, message: str) -> None:
    file = write_youtube_vis(tmp_path)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_youtube_vis(file)


def test_missing_frames_of_youtube_vis(tmp_path: Path) -> None:
    file = write_youtube_vis(tmp_path)
    (tmp_path / "train/JPEGImages/v2/00001.jpg").unlink()
    with pytest.raises(DataError, match=r"1 frames that are not in .*JPEGImages: v2/00001\.jpg"):
        read_youtube_vis(file)
    (tmp_path / "train/JPEGImages/v1/00000.jpg").unlink()
    with pytest.raises(DataError, match=r"frame v1/00000\.jpg not found, looked for in JPEGImages of"):
        read_youtube_vis(file)
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_youtube_vis(file)


def test_videos_are_opened_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_davis(tmp_path / "root/DAVIS", 2017, {"swan": 3})
    write_youtube_vis(tmp_path / "root/ytvis")
    entries = write_pack(tmp_path / "root/pack", {"a": 2})
    (tmp_path / "root/pack/index.json").write_text(json.dumps(entries))
    opened = open_videos("davis2017_val", root="root")
    assert opened.videos[0].name == "swan"
    assert "davis2017_val has 1 videos, the published set 30" in caplog.text
    assert open_videos("hq_ytvis_test", root="root").name == "hq_ytvis_test"
    (tmp_path / "root/ytvis/train").rename(tmp_path / "root/ytvis/valid")
    assert open_videos("hq_ytvis_test", root="root").videos[0].frames[0].is_file()
    (tmp_path / "root/ytvis/valid").rename(tmp_path / "root/ytvis/train")
    monkeypatch.setenv("HQSAM_DATA", "root")
    for name in ("pack", "pack/index.json", "root/pack"):
        assert open_videos(name).name == "pack"
    for name in ("ytvis/annotations/ytvis_hq-test.json", "ytvis/train/JPEGImages:ytvis/annotations/ytvis_hq-test.json"):
        assert len(open_videos(name).videos) == 2


def test_what_cannot_be_opened_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"DAVIS 2016, validation .* expected .*DAVIS.* comes from .*HQSAM_DATA"):
        open_videos("davis2016_val", root=tmp_path)
    with pytest.raises(DataError, match=r"no set of videos 'nothing'.*davis2017_val"):
        open_videos("nothing", root=tmp_path)


def test_every_card_of_videos_is_complete() -> None:
    assert {"davis2016_val", "davis2017_val", "hq_ytvis_val", "hq_ytvis_test"} <= set(video_cards())
    for card in video_cards().values():
        assert card.origin and card.terms and (card.images or (card.year and card.split))
        assert not re.search(r"^/|\.\.", card.path)


def test_every_nth_frame(tmp_path: Path) -> None:
    (video, _) = read_youtube_vis(write_youtube_vis(tmp_path)).videos
    short = every_nth_frame(video, 2)
    assert [path.stem for path in short.frames] == ["00000", "00002"]
    assert [obj.masks for obj in short.objects] == [obj.masks[::2] for obj in video.objects]
    with pytest.raises(ValueError, match="at least 1"):
        every_nth_frame(video, 0)


def test_the_research_pack_has_three_whole_sequences() -> None:
    shared = shared_dir()
    if shared is None:
        pytest.skip("needs shared/data/davis")
    videos = open_videos(shared / "data/davis")
    assert [(video.name, len(video.frames)) for video in videos.videos] == [
        ("blackswan", 50),
        ("breakdance", 84),
        ("dog", 60),
    ]
    assert all(video.size_hw == (480, 854) and len(video.objects) == 1 for video in videos.videos)
