"""All accepted objects as one COCO file, kept up to date: what `hqsam check-data` and `train.py` read."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hqsam import __version__
from hqsam.checkpoints import atomic_path
from hqsam.errors import HqsamError
from hqsam.exchange import CocoAnnotation
from hqsam.rle import rle_area, rle_box
from hqsam.serve.locks import locked
from hqsam.serve.messages import MaskObject
from hqsam.serve.pictures import Picture
from hqsam.serve.store import AnnotationStore, DamagedFileError

logger = logging.getLogger(__name__)

FILE_NAME = "annotations.json"
UNNAMED = "object"
"""The category of objects without a label."""
_PAUSE, _SHARE = 1.0, 10
"""Seconds between a change and the file; and how many times longer than writing it the next one waits."""


class Written(NamedTuple):
    """What a rebuilt file holds.

    Attributes:
        path: the file.
        images: that are done or have an accepted object.
        objects: accepted ones with a pixel.
        damaged: what is wrong with files that could not be read, whose objects are missing.
        strange: files of pictures that are not in the folder, whose objects are missing.
    """

    path: Path
    images: int
    objects: int
    damaged: list[str]
    strange: list[str]


def write_coco(store: AnnotationStore, labels: Sequence[str] = (), path: Path | None = None) -> Written:
    """Write `annotations.json` anew from the annotation files.

    Image files are named relative to the folder of the file, so that the file is enough to find them.

    Args:
        store: the annotation files.
        labels: the first categories, in this order; others follow by name.
        path: another file in place of `annotations.json`, which is left alone then.

    Raises:
        OutputError: the file cannot be written; the old one stays.
    """
    path = store.folder / FILE_NAME if path is None else path
    # Held from the first file read to the last byte written: of two servers the later one has seen everything.
    with locked(store.folder / ".coco.lock"):
        images, items, damaged = _collect(store)
        content = _content(path.parent, images, items, labels)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    strange = _strange_files(store)
    for problem in damaged:
        logger.error("%s; its objects are not in %s", problem, FILE_NAME)
    if strange:
        logger.warning("%d annotation files are of pictures that are not there, such as %s", len(strange), strange[0])
    return Written(path, len(images), len(content["annotations"]), damaged, strange)


class CocoKeeper:
    """Writes the file in a thread of its own, soon after a change and when it is closed.

    Args:
        store: the annotation files.
        labels: as in `write_coco`.
    """

    def __init__(self, store: AnnotationStore, labels: Sequence[str] = ()) -> None:
        self.store, self.labels = store, labels
        self._dirty, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="hqsam-coco", daemon=True)

    def start(self) -> None:
        """Write once, since files may have changed while no server ran, and begin to wait for changes."""
        self._dirty.set()
        self._thread.start()

    def changed(self) -> None:
        """An annotation file was written."""
        self._dirty.set()

    def close(self) -> None:
        """Write what is not written yet, and end."""
        self._closed.set()
        self._dirty.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        pause = 0.0
        while True:
            self._dirty.wait()
            last = self._closed.wait(pause)
            self._dirty.clear()
            start = time.monotonic()
            try:
                write_coco(self.store, self.labels)
            except (HqsamError, OSError) as error:  # the annotation files have everything; the next change tries again
                logger.error("%s", error)
            if last:
                return
            pause = max(_PAUSE, _SHARE * (time.monotonic() - start))


def _collect(store: AnnotationStore) -> tuple[list[Picture], list[tuple[int, MaskObject]], list[str]]:
    """Images that count, accepted objects with the place of their image, and what is wrong with damaged files."""
    images: list[Picture] = []
    items: list[tuple[int, MaskObject]] = []
    damaged = []
    for picture in store.pictures.values():
        try:
            content = store.load(picture)
        except DamagedFileError as error:
            damaged.append(str(error))
            continue
        accepted = content.accepted()
        if accepted or content.state == "done":
            images.append(picture)
            items += [(len(images), item) for item in accepted]
    return images, items, damaged


def _content(
    folder: Path, images: list[Picture], items: list[tuple[int, MaskObject]], labels: Sequence[str]
) -> dict[str, Any]:
    named = dict.fromkeys([*labels, *sorted({item.label or UNNAMED for _, item in items})])
    numbers = {name: number for number, name in enumerate(named, start=1)}
    annotations: list[CocoAnnotation] = []
    for image_id, item in items:
        rle = item.rle.as_rle()
        area = rle_area(rle)
        if area == 0:
            continue  # everything was erased: nothing to learn from
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": numbers[item.label or UNNAMED],
                "segmentation": rle,
                "area": area,
                "bbox": rle_box(rle),
                "iscrowd": 0,
                "score": 1.0 if item.score is None else item.score,
            }
        )
    return {
        "info": {"description": f"hqsam serve {__version__}"},
        "images": [
            {"id": number, "file_name": _file_name(folder, item), "width": item.width, "height": item.height}
            for number, item in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }


def _file_name(folder: Path, picture: Picture) -> str:
    path = picture.root / picture.relative
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _strange_files(store: AnnotationStore) -> list[str]:
    names = (path.name for path in store.folder.iterdir() if re.fullmatch(r"[0-9a-f]{16}\.json", path.name))
    return sorted(name for name in names if name.removesuffix(".json") not in store.pictures)
