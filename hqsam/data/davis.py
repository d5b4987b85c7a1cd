"""DAVIS 2016 and 2017 as they are distributed, and packs of frames that are parts of videos.

    ROOT/JPEGImages/480p/SEQUENCE/00000.jpg
    ROOT/Annotations/480p/SEQUENCE/00000.png
    ROOT/ImageSets/2016/val.txt, ROOT/ImageSets/2017/val.txt      names of sequences
    ROOT/ImageSets/480p/val.txt                                   older archives of 2016: an image and a mask a line

In 2016 the object is every pixel that is not 0. In 2017 the annotations are label maps (palette PNG): an object is a
number of the first frame, 0 is background and 255 void, which is background too in the semi-supervised evaluation. What
appears later, under a number that the first frame does not have, is no object.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hqsam.data.annotation_files import listing
from hqsam.data.index_pack import read_index_pack
from hqsam.data.masks import read_stored, upright_hw
from hqsam.data.records import ANY_LABEL, ImageRecord, ObjectRecord
from hqsam.data.videos import VideoObject, VideoRecord, VideoSet
from hqsam.errors import DataError

_VOID = 255


def read_davis(root: Path, year: int, split: str = "val", resolution: str = "480p") -> VideoSet:
    """Open DAVIS in its official layout.

    Args:
        root: the folder that holds `JPEGImages`, `Annotations` and `ImageSets`.
        year: 2016 (one object, foreground) or 2017 (several objects).
        split: "train" or "val".
        resolution: name of the folders below `JPEGImages` and `Annotations`.

    Raises:
        DataError: a folder or the list of the split is missing, a sequence has no frames, a frame has no mask or a mask
            no frame, or the first frame of a sequence shows no object; says which.
        ValueError: another year.
    """
    if year not in (2016, 2017):
        raise ValueError(f"year must be 2016 or 2017, got {year}")
    images, masks = root / "JPEGImages" / resolution, root / "Annotations" / resolution
    if missing := [str(folder) for folder in (images, masks) if not folder.is_dir()]:
        raise DataError(f"DAVIS {year} is not in {root}: expected {' and '.join(missing)}")
    names = _sequences(root, year, split, resolution)
    absent = [f"{folder / name}" for name in names for folder in (images, masks) if not (folder / name).is_dir()]
    if absent:
        raise DataError(f"DAVIS {year}, {split}: {len(absent)} folders of sequences are missing: {listing(absent)}")
    set_name = f"davis{year}_{split}"
    return VideoSet(
        name=set_name, videos=tuple(_sequence(set_name, name, images / name, masks / name, year) for name in names)
    )


def _sequences(root: Path, year: int, split: str, resolution: str) -> list[str]:
    lists = [root / "ImageSets" / str(year) / f"{split}.txt"]
    if year == 2016:
        lists.append(root / "ImageSets" / resolution / f"{split}.txt")
    found = next((path for path in lists if path.is_file()), None)
    if found is None:
        raise DataError(f"DAVIS {year}: the list of its split is missing: expected {' or '.join(map(str, lists))}")
    rows = [line.split() for line in found.read_text(encoding="utf-8").splitlines()]
    # A row names a sequence, or one of its images: /JPEGImages/480p/SEQUENCE/00000.jpg.
    names = [Path(row[0]).parent.name if "/" in row[0] else row[0] for row in rows if row]
    if not names:
        raise DataError(f"{found} lists no sequence")
    return list(dict.fromkeys(names))


def _sequence(set_name: str, name: str, images: Path, masks: Path, year: int) -> VideoRecord:
    frames = sorted(path for path in images.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not frames:
        raise DataError(f"sequence {name} has no frames in {images}")
    known = {path.stem for path in masks.iterdir() if path.suffix.lower() == ".png"}
    stems = {path.stem for path in frames}
    if unpaired := sorted(stems ^ known):
        kind = "frames without a mask" if stems - known else "masks without a frame"
        raise DataError(f"sequence {name}: {len(unpaired)} {kind}: {listing(unpaired)}; looked in {images} and {masks}")
    files = [masks / f"{path.stem}.png" for path in frames]
    labels = [ANY_LABEL] if year == 2016 else _labels_of_first_frame(files[0])
    objects = tuple(
        VideoObject(number=max(label, 1), masks=tuple(ObjectRecord(mask=file, label=label) for file in files))
        for label in labels
    )
    return VideoRecord(
        key=f"{set_name}/{name}", name=name, size_hw=upright_hw(frames[0]), frames=tuple(frames), objects=objects
    )


def _labels_of_first_frame(path: Path) -> list[int]:
    values, _ = read_stored(path)
    labels = [int(value) for value in np.unique(values) if value not in (0, _VOID)]
    if not labels:
        raise DataError(
            f"no object in the first frame: {path} has no value but 0 and {_VOID}, which is void in DAVIS 2017; "
            "masks of a single object are those of 2016"
        )
    return labels


def read_video_pack(index: Path) -> VideoSet:
    """Open an `index.json` pack whose entries have `seq`, the name of a video, and `frame`, a number that orders it.

    An entry without objects is a frame in which nothing is. An object of kind "binary" has number 1, one of kind
    "index" has its label.

    Raises:
        DataError: as in `read_index_pack`; an entry without `seq` and `frame`, the same frame of a video twice, or
            frames of different sizes.
    """
    set_name = index.resolve().parent.name
    known = {record.key: record for record in read_index_pack(index, set_name)}
    videos: dict[str, dict[int, tuple[Path, ImageRecord | None]]] = {}
    for position, entry in enumerate(json.loads(index.read_text(encoding="utf-8"))):
        name, frame = entry.get("seq"), entry.get("frame")
        if not isinstance(name, str) or not name or type(frame) is not int:
            raise DataError(f"{index}, entry {position}: seq (a name) and frame (a number) are needed in a video")
        frames = videos.setdefault(name, {})
        if frame in frames:
            raise DataError(f"{index}: frame {frame} of {name} comes twice")
        frames[frame] = index.parent / entry["image"], known.get(f"{set_name}/{entry['image']}")
    return VideoSet(
        name=set_name,
        videos=tuple(
            _pack_video(set_name, name, [videos[name][frame] for frame in sorted(videos[name])])
            for name in sorted(videos)
        ),
    )


def _pack_video(set_name: str, name: str, frames: Sequence[tuple[Path, ImageRecord | None]]) -> VideoRecord:
    of_frames: list[dict[int, ObjectRecord]] = []
    for path, record in frames:
        objects = record.objects if record else ()
        of_frames.append({max(obj.label or 0, 1): obj for obj in objects})
        if len(of_frames[-1]) < len(objects):
            raise DataError(f"{set_name}, {name}: two objects of {path} have the same label")
    numbers: Any = sorted(set().union(*of_frames))
    if not numbers:
        raise DataError(f"{set_name}, {name}: no frame has an object")
    return VideoRecord(
        key=f"{set_name}/{name}",
        name=name,
        size_hw=upright_hw(frames[0][0]),
        frames=tuple(path for path, _ in frames),
        objects=tuple(
            VideoObject(number=number, masks=tuple(objects.get(number) for objects in of_frames)) for number in numbers
        ),
    )
