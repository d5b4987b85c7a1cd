"""Boxes of objects in videos and which of them belong together, from another model: a JSON list or label maps.

    {"video_id", "category_id", "score", "bboxes": [[x, y, width, height] or null, ...]}      a track, a box each frame
    {"video_id", "category_id", "score", "segmentations": [run lengths or null, ...]}         YouTube-VIS results
    {"video_id", "frame", "object_id", "bbox": [x, y, width, height], ...}                    one box of a track

All items are of one form. `video_id` is the id in the annotation file or the video's name. Boxes of the second form are
the tight ones of the masks. In the third form `frame` is a position from 0 or a file name, `object_id` says which boxes
belong together, and the score of a track is the mean over its boxes.

Sets with classes (YouTube-VIS) need `category_id` and `score`. Sets without (DAVIS) need `object_id` in every form: the
number of the true object that the track is meant to be.

Models for DAVIS write label maps, FOLDER/SEQUENCE/00000.png with the objects' numbers as the annotations have them; the
boxes are the tight ones of each number, 0 and 255 are none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hqsam.boxes import mask_to_box
from hqsam.data.annotation_files import listing
from hqsam.data.masks import read_stored
from hqsam.data.records import ANY_LABEL
from hqsam.data.videos import VideoRecord, VideoSet
from hqsam.errors import DataError
from hqsam.rle import read_runs, rle_box

Box = tuple[float, float, float, float]
"""XYXY in pixels of the frame; x1 = x + width for boxes of a detector, inclusive pixels for boxes of masks."""
_VOID = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxTrack:
    """The boxes of one object in all frames of a video.

    Attributes:
        boxes: for each frame; None where the object is not there.
        number: of the true object that it is meant to be; None in sets with classes.
        category: id of its class; None in sets without.
        score: any finite number; 1.0 where none is stated.
    """

    boxes: tuple[Box | None, ...]
    number: int | None = None
    category: int | None = None
    score: float = 1.0


def read_video_boxes(file: Path, videos: VideoSet) -> dict[str, tuple[BoxTrack, ...]]:
    """Read and check tracks of boxes; see the module for the forms.

    Args:
        file: the JSON file, or a folder of label maps for a set without classes.
        videos: the set that they are of.

    Returns:
        Key of the video -> its tracks, in the order of the file; videos without a track have none.

    Raises:
        DataError: the file is no such list; an item is of an unknown video, class or object, has no score where one is
            needed or one that is not finite, another number of boxes than its video has frames, a box that is no box or
            wholly outside, or is there twice. The message has its position in the list. Of a folder: a map is missing,
            of another size than the video, or has a number that is none of its objects.
    """
    if file.is_dir():
        return {video.key: _tracks_of_maps(file, video, bool(videos.categories)) for video in videos.videos}
    try:
        items = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"boxes cannot be read: {file} ({error})") from error
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{file} must hold a list of tracks or boxes, at least one, each an object")
    by_name: dict[int | str, VideoRecord] = {video.name: video for video in videos.videos}
    by_name |= {video.number: video for video in videos.videos if video.number is not None}
    reader = _Reader(file, by_name, frozenset(videos.categories))
    merged = reader.of_boxes(items) if "bbox" in items[0] else [reader.track(k, item) for k, item in enumerate(items)]
    tracks: dict[str, list[BoxTrack]] = {video.key: [] for video in videos.videos}
    for video, track in merged:
        same = [other for other in tracks[video.key] if track.number is not None and other.number == track.number]
        if same:
            raise DataError(f"{file}: video {video.name} has two tracks of object {track.number}")
        tracks[video.key].append(track)
    return {key: tuple(found) for key, found in tracks.items()}


def _tracks_of_maps(folder: Path, video: VideoRecord, has_classes: bool) -> tuple[BoxTrack, ...]:
    if has_classes:
        raise DataError(
            f"{folder} is a folder of label maps, which have no classes and scores: {video.key} needs a JSON file"
        )
    paths = [folder / video.name / f"{frame.stem}.png" for frame in video.frames]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise DataError(f"{len(missing)} label maps of {video.name} are missing: {listing(missing)}")
    foreground = any(mask.label == ANY_LABEL for obj in video.objects for mask in obj.masks if mask is not None)
    numbers = [obj.number for obj in video.objects]
    boxes: dict[int, list[Box | None]] = {number: [] for number in numbers}
    for path in paths:
        values, _ = read_stored(path)
        if values.shape != video.size_hw:
            raise DataError(f"{path} has (height, width) {values.shape}, the frames of {video.name} {video.size_hw}")
        if foreground:
            values = (values != 0).astype(np.uint8)
        if others := sorted(set(np.unique(values).tolist()) - {0, _VOID, *numbers}):
            raise DataError(f"{path} has {listing(others)}, the objects of {video.name} are {listing(numbers)}")
        for number in numbers:
            box = mask_to_box(values == number)
            boxes[number].append(None if box is None else (float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    return tuple(BoxTrack(boxes=tuple(boxes[number]), number=number) for number in numbers)


class _Reader:
    """Items of one file to tracks."""

    def __init__(self, file: Path, videos: dict[int | str, VideoRecord], categories: frozenset[int]) -> None:
        self.file, self.videos, self.categories = file, videos, categories

    def track(self, position: int, item: dict[str, Any]) -> tuple[VideoRecord, BoxTrack]:
        """An item with a box or mask for each frame."""
        video = self._video(position, item)
        values = item.get("bboxes", item.get("segmentations"))
        if not isinstance(values, list) or len(values) != len(video.frames):
            received = len(values) if isinstance(values, list) else "no list of them"
            raise self._error(
                position, f"bboxes or segmentations need one for each of {len(video.frames)} frames, got {received}"
            )
        read = self._box if "bboxes" in item else self._box_of_mask
        boxes = tuple(None if value is None else read(position, value, video) for value in values)
        number, category = self._identity(position, item, video)
        return video, BoxTrack(boxes=boxes, number=number, category=category, score=self._score(position, item))

    def of_boxes(self, items: Sequence[dict[str, Any]]) -> list[tuple[VideoRecord, BoxTrack]]:
        """Items with one box each, put together to tracks."""
        groups: dict[tuple[str, int | str], list[int]] = {}
        for position, item in enumerate(items):
            number = item.get("object_id")
            if type(number) not in (int, str):
                raise self._error(position, f"object_id must be a number or a name, got {number!r}")
            groups.setdefault((self._video(position, item).key, number), []).append(position)  # type: ignore[arg-type]
        return [self._joined(positions, items) for positions in groups.values()]

    def _joined(self, positions: list[int], items: Sequence[dict[str, Any]]) -> tuple[VideoRecord, BoxTrack]:
        video = self._video(positions[0], items[positions[0]])
        identity = self._identity(positions[0], items[positions[0]], video)
        boxes: list[Box | None] = [None] * len(video.frames)
        stems = {path.stem: frame for frame, path in enumerate(video.frames)}
        for position in positions:
            item = items[position]
            value = item.get("frame")
            frame = stems.get(Path(value).stem) if isinstance(value, str) else value
            if type(frame) is not int or not 0 <= frame < len(boxes):
                raise self._error(position, f"frame {value!r} is none of the {len(boxes)} frames of {video.name}")
            if boxes[frame] is not None:
                raise self._error(position, f"object {item['object_id']} has two boxes in frame {value!r}")
            if self._identity(position, item, video) != identity:
                raise self._error(position, f"the boxes of object {item['object_id']} are of different categories")
            boxes[frame] = self._box(position, item.get("bbox"), video)
        scores = [self._score(position, items[position]) for position in positions]
        number, category = identity
        score = math.fsum(scores) / len(scores)
        return video, BoxTrack(boxes=tuple(boxes), number=number, category=category, score=score)

    def _video(self, position: int, item: dict[str, Any]) -> VideoRecord:
        value = item.get("video_id")
        video = self.videos.get(value) if isinstance(value, int | str) else None
        if video is None:
            names = listing(sorted({video.name for video in self.videos.values()}))
            raise self._error(position, f"video_id {value!r} is not in the set, which has {names}")
        return video

    def _identity(self, position: int, item: dict[str, Any], video: VideoRecord) -> tuple[int | None, int | None]:
        """Number of the true object, and category."""
        if self.categories:
            category = item.get("category_id")
            if type(category) is not int or category not in self.categories:
                raise self._error(position, f"category_id {category!r} is not in the set")
            return None, category
        number, known = item.get("object_id"), [obj.number for obj in video.objects]
        if type(number) is not int or number not in known:
            raise self._error(
                position, f"object_id {number!r} is none of the objects of {video.name}, which are {listing(known)}"
            )
        return number, None

    def _score(self, position: int, item: dict[str, Any]) -> float:
        score = item.get("score", None if self.categories else 1.0)
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise self._error(position, f"score must be a finite number, got {score!r}")
        return float(score)

    def _box(self, position: int, value: Any, video: VideoRecord) -> Box:
        if not isinstance(value, list) or len(value) != 4 or not all(_is_number(side) for side in value):
            raise self._error(position, f"a box is [x, y, width, height], finite numbers, got {value!r}")
        x, y, width, height = map(float, value)
        if width < 0 or height < 0:
            raise self._error(position, f"width and height of a box must not be negative, got {value!r}")
        frame_height, frame_width = video.size_hw
        if x + width < 0 or y + height < 0 or x >= frame_width or y >= frame_height:
            raise self._error(position, f"box {value!r} is outside the {frame_width} x {frame_height} frames")
        return x, y, x + width, y + height

    def _box_of_mask(self, position: int, value: Any, video: VideoRecord) -> Box | None:
        try:
            size, counts = tuple(value["size"]), value["counts"]
            runs = read_runs(counts)
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(position, f"a segmentation has size and compressed counts ({error})") from error
        if size != video.size_hw or (runs < 0).any() or runs.sum() != size[0] * size[1]:
            raise self._error(
                position, f"a segmentation must fill (height, width) {video.size_hw}, it is of size {size}"
            )
        x, y, width, height = rle_box({"size": list(size), "counts": counts})
        return None if width == 0 else (float(x), float(y), float(x + width - 1), float(y + height - 1))

    def _error(self, position: int, text: str) -> DataError:
        return DataError(f"{self.file}, item {position}: {text}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
