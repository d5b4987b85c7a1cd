"""YouTube-VIS and HQ-YTVIS annotations: one JSON file with `videos`, `annotations` and `categories`.

    videos       {"id", "width", "height", "length", "file_names": [FOLDER/00000.jpg, ...]}
    annotations  {"id", "video_id", "category_id", "iscrowd", "segmentations": [run lengths, polygons or null, ...],
                  "areas": [...], "bboxes": [...]}

HQ-YTVIS may bring its better masks as `segmentations_refined`; they are taken where they are.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from hqsam.data.annotation_files import listing, stated_size
from hqsam.data.records import ObjectRecord
from hqsam.data.segmentations import Segmentation, SegmentationTable, pack_segmentation
from hqsam.data.videos import VideoObject, VideoRecord, VideoSet
from hqsam.errors import DataError

_IMAGES = "JPEGImages"


def read_youtube_vis(file: Path, images: Path | None = None, set_name: str | None = None) -> VideoSet:
    """Open an annotation file of YouTube-VIS's format. Videos without annotations stay: predictions there are wrong.

    Args:
        file: the JSON file.
        images: folder to which `file_names` are relative; None: `JPEGImages` beside the file, in the folders beside it
            or one folder up.
        set_name: None for the file's name.

    Raises:
        DataError: malformed entries, ids that are unknown or come twice, another number of segmentations than frames,
            masks of another size than their video, missing images, or a file without annotations; names them.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"annotation file cannot be read: {file} ({error})") from error
    parts = [content.get(name) if isinstance(content, dict) else None for name in ("videos", "categories")]
    if not all(isinstance(part, list) and part for part in parts):
        raise DataError(f"{file} must be an object with lists of videos, categories and annotations (YouTube-VIS)")
    if not content.get("annotations"):
        raise DataError(
            f"{file} has no annotations: the truth of YouTube-VIS's validation and test videos is not public, "
            "their numbers come from its evaluation server"
        )
    videos = _by_id(content["videos"], "video", file)
    categories = _by_id(content["categories"], "category", file)
    annotations = _by_id(content["annotations"], "annotation", file)
    objects = _read_objects(annotations, videos, categories, file)
    folder = images or find_frames(file, _file_names(next(iter(videos.values())), file)[0])
    name = set_name or file.stem
    return VideoSet(
        name=name,
        videos=tuple(_video(name, video, folder, objects[number], file) for number, video in videos.items()),
        categories={number: str(category.get("name", number)) for number, category in categories.items()},
    )


def find_frames(file: Path, frame: str) -> Path:
    """The folder in which a frame is.

    Looked for in `JPEGImages`, then in the folder itself, of: the folder of the file, the one above, those in both.

    Raises:
        DataError: it is in none of them.
    """
    beside = file.absolute().parent
    below = [folder for base in (beside, beside.parent) for folder in sorted(base.iterdir()) if folder.is_dir()]
    bases = list(dict.fromkeys([beside, beside.parent, *below]))
    for base in bases:
        for folder in (base / _IMAGES, base):
            if (folder / frame).is_file():
                return folder
    raise DataError(f"{file}: frame {frame} not found, looked for in {_IMAGES} of {listing(bases)}")


def _video(set_name: str, video: dict[str, Any], folder: Path, objects: list[VideoObject], file: Path) -> VideoRecord:
    names = _file_names(video, file)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataError(f"{file} names {len(missing)} frames that are not in {folder}: {listing(missing)}")
    name = Path(names[0]).parent.name or str(video["id"])
    return VideoRecord(
        key=f"{set_name}/{video['id']}",
        name=name,
        number=video["id"],
        size_hw=_size(video, file),
        frames=tuple(folder / frame for frame in names),
        objects=tuple(objects),
    )


def _read_objects(
    annotations: dict[int, dict[str, Any]],
    videos: dict[int, dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    file: Path,
) -> dict[int, list[VideoObject]]:
    """Objects of each video, their masks in one table."""
    labels: list[str] = []
    sizes: list[tuple[int, int]] = []
    packed: list[bytes] = []
    rows: dict[int, list[int | None]] = {}
    for number, entry in annotations.items():
        video = _known(entry, "video_id", videos, file)
        _known(entry, "category_id", categories, file)
        size_hw, rows[number] = _size(video, file), []
        for frame, data in enumerate(_pack_frames(entry, len(_file_names(video, file)), size_hw, file)):
            rows[number].append(len(packed) if data else None)
            if data:
                labels.append(f"{number} (frame {frame})")
                sizes.append(size_hw)
                packed.append(data)
    table = SegmentationTable(file, labels, sizes, packed)
    objects: dict[int, list[VideoObject]] = {number: [] for number in videos}
    for number, entry in annotations.items():
        masks = tuple(None if row is None else ObjectRecord(mask=Segmentation(table, row)) for row in rows[number])
        objects[entry["video_id"]].append(
            VideoObject(
                number=number,
                masks=masks,
                category=entry["category_id"],
                is_crowd=bool(entry.get("iscrowd", 0)),
                area=_mean_area(entry),
            )
        )
    return objects


def _pack_frames(entry: dict[str, Any], length: int, size_hw: tuple[int, int], file: Path) -> list[bytes]:
    where = f"{file}: annotation {entry['id']}"
    values = entry.get("segmentations_refined", entry.get("segmentations"))
    if not isinstance(values, list) or len(values) != length:
        received = len(values) if isinstance(values, list) else type(values).__name__
        raise DataError(f"{where} needs a segmentation or null for each of {length} frames, got {received}")
    result = []
    for frame, value in enumerate(values):
        try:
            data, stated = pack_segmentation(value)
        except ValueError as error:
            raise DataError(f"{where}, frame {frame}: {error}") from error
        if stated not in (None, size_hw):
            raise DataError(f"{where}, frame {frame} is drawn on {stated}, its video is {size_hw} (height, width)")
        result.append(data)
    return result


def _mean_area(entry: dict[str, Any]) -> float | None:
    """Over the frames in which the object has an area, as YouTube-VIS's program takes it; None where none is stated."""
    areas = entry.get("areas")
    stated = [float(area) for area in areas if area] if isinstance(areas, list) else []
    return math.fsum(stated) / len(stated) if stated else None


def _by_id(entries: Any, kind: str, file: Path) -> dict[int, dict[str, Any]]:
    if not isinstance(entries, list):
        raise DataError(f"{file}: the {kind} entries must be a list, got {type(entries).__name__}")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise DataError(f"{file}: {kind} {position} of the list must have an id, a whole number")
    twice = [number for number, count in Counter(entry["id"] for entry in entries).items() if count > 1]
    if twice:
        raise DataError(f"{file}: {len(twice)} {kind} ids come more than once: {listing(twice)}")
    return {entry["id"]: entry for entry in entries}


def _known(entry: dict[str, Any], key: str, table: dict[int, dict[str, Any]], file: Path) -> dict[str, Any]:
    value = entry.get(key)
    if type(value) is not int or value not in table:
        raise DataError(f"{file}: annotation {entry['id']} has {key} {value!r}, which is not listed")
    return table[value]


def _file_names(video: dict[str, Any], file: Path) -> list[str]:
    names = video.get("file_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{file}: video {video['id']} has no list of file_names")
    return names


def _size(video: dict[str, Any], file: Path) -> tuple[int, int]:
    size = stated_size(video, f"{file}: video {video['id']}")
    if size is None:
        raise DataError(f"{file}: video {video['id']} needs height and width")
    return size
