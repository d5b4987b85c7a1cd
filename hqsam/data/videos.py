"""What a video is to the rest of the package: frames in order, and objects that keep their number from one to the next.

Frames are files; nothing is decoded before it is asked for, one frame at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqsam.data.masks import load_object_masks
from hqsam.data.records import ObjectRecord
from hqsam.errors import DataError

INSIDE = 128
"""Grey values above this are inside a true mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoObject:
    """One object of a video.

    Attributes:
        number: what its data set calls it, unique within the video: a label of DAVIS, an annotation id of YouTube-VIS.
        masks: for each frame; None where the object is not there.
        category: id of its class; None in sets without classes.
        is_crowd: whether it outlines many objects at once.
        area: mean area over the frames in which it is, as the data set states it, in pixels.
    """

    number: int
    masks: tuple[ObjectRecord | None, ...]
    category: int | None = None
    is_crowd: bool = False
    area: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRecord:
    """One video and its true objects.

    Attributes:
        key: unique, "<set>/<name>".
        name: of the sequence, or the folder of its frames.
        number: id in its annotation file; None where it has a name alone.
        size_hw: (height, width) of all frames.
        frames: image files, in order.
        objects: may be empty in sets with classes.
    """

    key: str
    name: str
    number: int | None = None
    size_hw: tuple[int, int]
    frames: tuple[Path, ...]
    objects: tuple[VideoObject, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSet:
    """Videos that are averaged over.

    Attributes:
        name: of the set.
        videos: sorted by name, or in the order of the annotation file.
        categories: id -> name; empty for sets whose objects have no class (DAVIS).
    """

    name: str
    videos: tuple[VideoRecord, ...]
    categories: Mapping[int, str] = field(default_factory=dict)


def every_nth_frame(video: VideoRecord, step: int) -> VideoRecord:
    """The video with its frames 0, step, 2 step, ...

    Raises:
        ValueError: `step` is below 1.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    objects = tuple(replace(obj, masks=obj.masks[::step]) for obj in video.objects)
    return replace(video, frames=video.frames[::step], objects=objects)


def load_frame_masks(video: VideoRecord, frame: int) -> list[NDArray[np.bool_]]:
    """The true mask of every object in one frame, in the order of `video.objects`.

    Returns:
        (H, W) bool each, all False where the object is not there.

    Raises:
        DataError: a mask is missing, unreadable or of another size than the video.
    """
    there = [obj.masks[frame] for obj in video.objects]
    known = [mask for mask in there if mask is not None]
    loaded = iter(load_object_masks(known, video.size_hw, video.frames[frame]))
    return [np.zeros(video.size_hw, dtype=bool) if mask is None else next(loaded) > INSIDE for mask in there]


def check_frame(video: VideoRecord, frame: int, image: NDArray[np.uint8]) -> None:
    """Refuse a frame of another size than its video is stated, or its first frame is, to have.

    Raises:
        DataError: it is.
    """
    if image.shape[:2] != video.size_hw:
        (height, width), (own_height, own_width) = video.size_hw, image.shape[:2]
        raise DataError(
            f"frames of a video have one size: {video.frames[frame]} is {own_width} x {own_height}, "
            f"{video.key} is {width} x {height} (width x height)"
        )
