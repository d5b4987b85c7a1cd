"""The annotations of a round, as they were when it began: one part is trained on, one is measured on."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqsam.checkpoints import atomic_path
from hqsam.data import open_dataset
from hqsam.data.check import OpenedSet, VerdictCache, check_sets, default_cache_folder
from hqsam.errors import DataError
from hqsam.rounds.state import Counts
from hqsam.serve.coco import write_coco
from hqsam.serve.store import AnnotationStore
from hqsam.serve.tally import Tally, statistics, tally

TRAIN_FILE, HELD_OUT_FILE = "train.json", "held_out.json"
_ALL_FILE = "annotations.json"


@dataclass(frozen=True)
class Snapshot:
    """Annotations that do not change any more.

    Attributes:
        folder: where the files are.
        digest: of their content.
        annotated: everything.
        trained_on: the objects of `train.json`.
        held_out: those of `held_out.json`.
        untouched: objects of the latter that are proposals accepted as they were.
        statistics: of the server, see `hqsam.serve.tally.statistics`.
    """

    folder: Path
    digest: str
    annotated: Counts
    trained_on: Counts
    held_out: Counts
    untouched: int
    statistics: dict[str, Any]


def is_measured_on(name: str, tenths: int) -> bool:
    """Whether an image is held out, going by its file name alone: in every round and on every machine the same.

    With one tenth these are the images that the package's own training holds out (`hqsam.data.is_held_out`), and with
    more they are among them.
    """
    return int(hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(), 16) % 10 < tenths


def take_snapshot(store: AnnotationStore, folder: Path, tenths: int) -> Snapshot:
    """Write `train.json` and `held_out.json` (COCO) from the annotation files.

    Args:
        store: the annotation files; a server may go on changing them.
        folder: for the files; image names in them are relative to it.
        tenths: of the images are held out.

    Raises:
        DataError: an annotation file is damaged or of a picture that is not there: the round would forget its objects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _ALL_FILE
    written = write_coco(store, path=path)
    if written.damaged:
        raise DataError(f"{written.damaged[0]} ({len(written.damaged)} damaged files)")
    if written.strange:
        raise DataError(
            f"{len(written.strange)} annotation files are of pictures that are not in the folder, such as "
            f"{written.strange[0]}; name the folder that was annotated, or move these files away"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    parts = {}
    for name, wanted in ((TRAIN_FILE, False), (HELD_OUT_FILE, True)):
        parts[name] = _part(content, tenths, held_out=wanted)
        with atomic_path(folder / name) as temporary:
            temporary.write_text(json.dumps(parts[name]) + "\n", encoding="utf-8")
    trained_on, held_out = (_counts(parts[name]) for name in (TRAIN_FILE, HELD_OUT_FILE))
    tallies = {picture.relative: store.summary(picture, tally) for picture in store.pictures.values()}
    return Snapshot(
        folder,
        _digest(parts),
        Counts(images=trained_on.images + held_out.images, masks=trained_on.masks + held_out.masks),
        trained_on,
        held_out,
        _untouched(tallies, tenths),
        statistics(tallies.values()),
    )


def check_snapshot(snapshot: Snapshot) -> list[str]:
    """Look at every image and mask, as `hqsam check-data` does.

    Returns:
        Warnings, such as a photograph that is in both parts.

    Raises:
        DataError: something cannot be trained on.
    """
    sets = [
        OpenedSet(path.stem, open_dataset(str(path.absolute())))
        for path in (snapshot.folder / TRAIN_FILE, snapshot.folder / HELD_OUT_FILE)
    ]
    workers = min(16, os.cpu_count() or 1)
    report = check_sets(sets, workers=workers, cache=VerdictCache(default_cache_folder()))
    errors = report.findings("error")
    if errors:
        raise DataError(f"{errors[0].text} ({len(errors)} defects); hqsam check-data shows all of them")
    place = f"{snapshot.folder.absolute()}{os.sep}"
    return [finding.text.replace(place, "") for finding in report.findings("warning")]


def _part(content: dict[str, Any], tenths: int, *, held_out: bool) -> dict[str, Any]:
    named = {item["image_id"] for item in content["annotations"]}
    images = [
        image
        for image in content["images"]
        if image["id"] in named and is_measured_on(Path(image["file_name"]).name, tenths) == held_out
    ]
    chosen = {image["id"] for image in images}
    objects = [item for item in content["annotations"] if item["image_id"] in chosen]
    return {**content, "images": images, "annotations": objects}


def _counts(part: dict[str, Any]) -> Counts:
    return Counts(images=len(part["images"]), masks=len(part["annotations"]))


def _digest(parts: dict[str, dict[str, Any]]) -> str:
    """Of images and masks; not of numbers that change with the order."""
    rows = []
    for name, part in parts.items():
        names = {image["id"]: Path(image["file_name"]).as_posix() for image in part["images"]}
        rows += [f"{name} {names[item['image_id']]} {item['segmentation']['counts']}\n" for item in part["annotations"]]
    return hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()[:16]


def _untouched(tallies: dict[str, Tally], tenths: int) -> int:
    return sum(found.kept for name, found in tallies.items() if is_measured_on(Path(name).name, tenths))
