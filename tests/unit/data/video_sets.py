"""Stand-ins for sets of videos, in the layouts in which the published ones are distributed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqsam.rle import encode_rle, rle_area, rle_box

HW = (48, 64)


def label_map(frame: int, hw: tuple[int, int] = HW, objects: int = 2) -> NDArray[np.uint8]:
    """Squares 1, 2, ... that move to the right by two pixels a frame."""
    labels = np.zeros(hw, dtype=np.uint8)
    for number in range(1, objects + 1):
        top, left = 20 * (number - 1) + 4, 6 + 2 * frame + 6 * number
        labels[top : top + 14, left : left + 16] = number
    return labels


def picture(labels: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Objects of one colour each on noise."""
    noise = np.random.default_rng(seed).integers(0, 60, (*labels.shape, 3)).astype(np.uint8)
    colors = np.array([[0, 0, 0], [200, 60, 40], [40, 180, 60], [60, 60, 200]], dtype=np.uint8)
    return np.asarray(noise + colors[np.minimum(labels, 3)], dtype=np.uint8)


def save_palette(path: Path, labels: NDArray[np.uint8]) -> None:
    """As DAVIS stores labels: indices into a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette([value for k in range(256) for value in (k, 255 - k, (7 * k) % 256)])
    image.save(path)


def save_jpeg(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, quality=95)


def write_davis(root: Path, year: int, sequences: dict[str, int], split: str = "val", lists: str = "") -> Path:
    """DAVIS with moving squares.

    Args:
        root: becomes the folder that holds `JPEGImages`.
        year: 2016 writes grey 0/255 masks of one object, 2017 palettes with two objects and some void.
        sequences: name -> number of frames.
        split: name of the list.
        lists: folder of the list; "" for the year.
    """
    rows = []
    for seed, (name, frames) in enumerate(sequences.items()):
        for frame in range(frames):
            labels = label_map(frame, objects=1 if year == 2016 else 2)
            save_jpeg(root / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg", picture(labels, seed))
            path = root / "Annotations" / "480p" / name / f"{frame:05d}.png"
            if year == 2016:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels * np.uint8(255)).save(path)
            else:
                labels[-2:, :5] = 255
                save_palette(path, labels)
            rows.append(f"/JPEGImages/480p/{name}/{frame:05d}.jpg /Annotations/480p/{name}/{frame:05d}.png ")
    file = root / "ImageSets" / (lists or str(year)) / f"{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows if lists else sequences) + "\n")
    return root


def youtube_vis_content(frames: int = 3, videos: int = 2) -> dict[str, Any]:
    """Annotations of the same squares: object 1 is of class 1, object 2 of class 2 and absent from the last frame."""
    content: dict[str, Any] = {
        "info": {},
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "videos": [],
        "annotations": [],
    }
    for video in range(1, videos + 1):
        names = [f"v{video}/{frame:05d}.jpg" for frame in range(frames)]
        content["videos"].append({"id": video, "width": HW[1], "height": HW[0], "length": frames, "file_names": names})
        for number in (1, 2):
            masks = [encode_rle(label_map(frame) == number) for frame in range(frames)]
            shown: list[Any] = [m if number == 1 or k < frames - 1 else None for k, m in enumerate(masks)]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "video_id": video,
                    "category_id": number,
                    "iscrowd": 0,
                    "width": HW[1],
                    "height": HW[0],
                    "length": frames,
                    "segmentations": shown,
                    "areas": [None if m is None else rle_area(m) for m in shown],
                    "bboxes": [None if m is None else rle_box(m) for m in shown],
                }
            )
    return content


def write_youtube_vis(root: Path, content: dict[str, Any] | None = None, name: str = "ytvis_hq-test.json") -> Path:
    """`annotations/NAME` and `train/JPEGImages`, as HQ-YTVIS is laid out; returns the annotation file."""
    content = content or youtube_vis_content()
    for video in content["videos"]:
        for frame, file in enumerate(video["file_names"]):
            save_jpeg(root / "train" / "JPEGImages" / file, picture(label_map(frame), video["id"]))
    file = root / "annotations" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_pack(folder: Path, sequences: dict[str, int], kind: str = "binary") -> list[dict[str, Any]]:
    """Images and masks of a pack, without its index, which is returned."""
    entries = []
    for seed, (name, frames) in enumerate(sequences.items()):
        for frame in range(frames):
            labels = label_map(frame, objects=1 if kind == "binary" else 2)
            save_jpeg(folder / "images" / name / f"{frame:05d}.jpg", picture(labels, seed))
            save_palette(folder / "masks" / name / f"{frame:05d}.png", labels)
            objects = [{"label": -1}] if kind == "binary" else [{"label": 1}, {"label": 2}]
            entries.append(
                {
                    "image": f"images/{name}/{frame:05d}.jpg",
                    "mask": f"masks/{name}/{frame:05d}.png",
                    "kind": kind,
                    "seq": name,
                    "frame": frame,
                    "objects": objects,
                }
            )
    return entries
