"""Verdicts of earlier checks, so that a restart or a resumed run looks only at files that changed.

One JSON file for each folder of images lies in `$HQSAM_CHECK_CACHE`, by default in `data_check` below the folder for
weights (`$HQSAM_CACHE` or `~/.cache/hqsam`). They can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from hqsam.data.check.findings import Verdict
from hqsam.data.records import ImageRecord
from hqsam.data.segmentations import Segmentation
from hqsam.hub import weights_folder

logger = logging.getLogger(__name__)

CHECK_VERSION = 1
"""To be raised whenever equal files may get another verdict."""


def default_cache_folder() -> Path:
    """Where verdicts are kept."""
    own = os.environ.get("HQSAM_CHECK_CACHE")
    return Path(own).expanduser() if own else weights_folder() / "data_check"


class VerdictCache:
    """Verdicts by image, its objects and the size and time of change of every file among them.

    A folder that cannot be read or written makes it forgetful, not an error.

    Args:
        folder: where the files lie; None keeps nothing beyond this object.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._parts: dict[Path, dict[str, Any]] = {}
        self._changed: set[Path] = set()
        self._states: dict[str, list[list[Any]]] = {}

    def get(self, record: ImageRecord, *, use_alpha: bool) -> Verdict | None:
        """The verdict on these files as they are now, or None."""
        identity = _identity(record, use_alpha)
        # kept for `put`: a file that changes while it is looked at must be looked at again
        self._states[identity] = _state_of_files(record)
        entry = self._part(record).get(identity)
        if not isinstance(entry, dict) or entry.get("files") != self._states[identity]:
            return None
        try:
            return Verdict.from_json(entry["verdict"])
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, record: ImageRecord, verdict: Verdict, *, use_alpha: bool) -> None:
        """Remember a verdict on the files as they were when `get` was called."""
        identity = _identity(record, use_alpha)
        state = self._states.get(identity) or _state_of_files(record)
        self._part(record)[identity] = {"files": state, "verdict": verdict.to_json()}
        self._changed.add(record.image.parent)

    def save(self) -> None:
        """Write what is new."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for images in self._changed:
                path = self._path(images)
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                content = {"version": CHECK_VERSION, "entries": self._parts[images]}
                temporary.write_text(json.dumps(content), encoding="utf-8")
                os.replace(temporary, path)
        except OSError as error:
            logger.info("the verdicts of the data check cannot be kept in %s (%s)", self.folder, error.strerror)
        self._changed.clear()

    def _part(self, record: ImageRecord) -> dict[str, Any]:
        images = record.image.parent
        if images not in self._parts:
            self._parts[images] = self._load(images)
        return self._parts[images]

    def _load(self, images: Path) -> dict[str, Any]:
        if self.folder is None:
            return {}
        try:
            content = json.loads(self._path(images).read_text(encoding="utf-8"))
            entries = content["entries"] if content["version"] == CHECK_VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return entries if isinstance(entries, dict) else {}

    def _path(self, images: Path) -> Path:
        name = hashlib.sha256(os.path.abspath(images).encode()).hexdigest()[:24]
        return (self.folder or Path()) / f"{name}.json"


def _identity(record: ImageRecord, use_alpha: bool) -> str:
    digest = hashlib.sha256(f"{os.path.abspath(record.image)}\n{record.key}\n{use_alpha}\n".encode())
    for obj in record.objects:
        if isinstance(obj.mask, Segmentation):  # by what it draws: the file around it may change
            digest.update(obj.mask.content())
        else:
            digest.update(repr(obj).encode())
    return digest.hexdigest()[:24]


def _state_of_files(record: ImageRecord) -> list[list[Any]]:
    """Path, size and time of change of each file of a record; without the latter two where there is no file."""
    files = [record.image, *(p for obj in record.objects for p in (obj.mask, obj.alpha) if isinstance(p, Path))]
    states: list[list[Any]] = []
    for path in dict.fromkeys(files):
        try:
            status = path.stat()
            states.append([os.path.abspath(path), status.st_size, status.st_mtime_ns])
        except OSError:
            states.append([os.path.abspath(path)])
    return states
