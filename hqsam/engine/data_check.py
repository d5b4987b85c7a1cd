"""The check of images and masks that a training run makes before its first step."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hqsam.checkpoints import atomic_path
from hqsam.data import ImageRecord
from hqsam.data.check import (
    KINDS,
    Finding,
    Hashes,
    OpenedSet,
    VerdictCache,
    check_records,
    default_cache_folder,
    same_photos,
)
from hqsam.data.folders import FolderDefect, collecting_defects
from hqsam.engine.distributed import World, from_main
from hqsam.engine.terminal import progress_bar, terminal
from hqsam.engine.train_config import DataConfig, TrainConfig
from hqsam.engine.train_data import RunRecords, open_train_records, open_val_records
from hqsam.errors import DataError

logger = logging.getLogger(__name__)

SKIPPED_FILE = "skipped_data.json"
_AT_ONCE = 2000
"""Images between two meetings of the processes: those that wait for the first one give up after a while."""


def open_sets(data: DataConfig, *, tolerant: bool) -> list[OpenedSet]:
    """The training and the validation data of a configuration, those that are named.

    Args:
        data: which.
        tolerant: open folders without the files that belong to no pair, and list these.

    Raises:
        DataError: something cannot be opened.
    """
    opened = []
    for name, read, use_alpha in (("train", open_train_records, data.use_alpha), ("val", open_val_records, False)):
        defects: list[FolderDefect] = []
        if tolerant:
            with collecting_defects() as defects:
                records = read(data)
        else:
            records = read(data)
        if records:
            opened.append(OpenedSet(name, records, defects, use_alpha))
    return opened


def checked_records(config: TrainConfig, world: World) -> RunRecords:
    """Open the data of a run and look at every file, as `data.check` and `data.on_defect` say.

    The first process looks, all get its answer; every process of the group calls this.

    Raises:
        DataError: something is unusable and `data.on_defect` is "error", or nothing is left.
    """
    data = config.data
    skip = data.check == "full" and data.on_defect == "skip"
    sets = open_sets(data, tolerant=skip)
    defects: dict[str, list[Finding]] = {part.name: _of_folders(part) for part in sets}
    if data.check == "full" and sets:
        start = time.perf_counter()
        total = sum(len(part.records) for part in sets)
        with progress_bar(visible=world.is_main and terminal().is_terminal) as bar:
            task = bar.add_task("data check", total=total)
            cache = VerdictCache(default_cache_folder() if world.is_main else None)
            looks = [_Look(part, data.workers, cache, lambda count: bar.advance(task, count)) for part in sets]
            for part, look in zip(sets, looks, strict=True):
                for first in range(0, from_main(look.count, world), _AT_ONCE):
                    defects[part.name] += from_main(functools.partial(look.errors, first), world)
        logger.info("data check: %d images in %.1f s", total, time.perf_counter() - start)
        if world.is_main and len(looks) > 1:
            _warn_of_overlap(*looks)
    found = [(name, finding) for name, findings in defects.items() for finding in findings]
    if found and not skip:
        raise DataError(_describe([finding for _, finding in found]))
    left = {part.name: without_defects(part.records, defects[part.name]) for part in sets}
    for name, records in left.items():
        if not records:
            raise DataError(f"the data check leaves no image of data.{name}: {_describe(defects[name])}")
    if found:
        counts = Counter(KINDS[finding.kind].title for _, finding in found)
        listing = ", ".join(f"{count} x {title}" for title, count in counts.items())
        logger.warning("data check: left out %s; %s in the run folder lists them", listing, SKIPPED_FILE)
    return RunRecords(
        left.get("train", []),
        left.get("val", []),
        partial=_objects_left_out(left.get("train", []), defects.get("train", [])),
        skipped=[{"part": name, **vars(finding)} for name, finding in found],
    )


@dataclasses.dataclass(frozen=True)
class _Look:
    """Finds the errors among some images of a set."""

    part: OpenedSet
    workers: int
    cache: VerdictCache
    advance: Callable[[int], None]
    hashes: list[Hashes | None] = dataclasses.field(default_factory=list)
    """Of the images looked at so far, in the process that looks."""

    def count(self) -> int:
        """Number of images."""
        return len(self.part.records)

    def errors(self, first: int) -> list[Finding]:
        """Of the images from `first` on, up to the next meeting."""
        verdicts = check_records(
            self.part.records[first : first + _AT_ONCE],
            use_alpha=self.part.use_alpha,
            workers=self.workers,
            cache=self.cache,
            advance=self.advance,
        )
        self.hashes.extend(verdict.hashes for verdict in verdicts)
        return [finding for verdict in verdicts for finding in verdict.errors]


def _warn_of_overlap(train: _Look, val: _Look) -> None:
    """Say which photographs are both trained on and held out; two names, a copy or a mirror image do not hide them."""
    pairs = list(same_photos(train.hashes, val.hashes))
    if pairs:
        logger.warning(
            "photographs of data.val that are trained on: %d, such as %s, which is %s in data.train. Validation will "
            "say too much; `hqsam check-data CONFIG` lists them, and data.exclude_files leaves files out of training",
            len({pair.second for pair in pairs}),
            val.part.records[pairs[0].second].image.name,
            train.part.records[pairs[0].first].image.name,
        )


def without_defects(records: Sequence[ImageRecord], defects: Sequence[Finding]) -> list[ImageRecord]:
    """Records without the images and objects that have a defect; an image that keeps no object goes, too."""
    whole = {finding.key for finding in defects if finding.object is None}
    parts: dict[str, set[int]] = {}
    for finding in defects:
        if finding.object is not None:
            parts.setdefault(finding.key, set()).add(finding.object)
    kept = []
    for record in records:
        bad = parts.get(record.key, set())
        objects = tuple(obj for number, obj in enumerate(record.objects) if number not in bad)
        if record.key not in whole and objects:
            kept.append(dataclasses.replace(record, objects=objects) if bad else record)
    return kept


def write_skipped(folder: Path, records: RunRecords) -> None:
    """List in the run folder what was left out; without such there is no file."""
    path = folder / SKIPPED_FILE
    if not records.skipped:
        path.unlink(missing_ok=True)
        return
    rows: list[dict[str, Any]] = [dict(row) for row in records.skipped]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _of_folders(part: OpenedSet) -> list[Finding]:
    return [Finding(defect.kind, str(defect.path), defect.text) for defect in part.folder_defects]


def _objects_left_out(records: Sequence[ImageRecord], defects: Sequence[Finding]) -> dict[str, list[int]]:
    kept = {record.key for record in records}
    numbers: dict[str, set[int]] = {}
    for finding in defects:
        if finding.key in kept and finding.object is not None:
            numbers.setdefault(finding.key, set()).add(finding.object)
    return {key: sorted(found) for key, found in numbers.items()}


def _describe(defects: Sequence[Finding]) -> str:
    texts = list(dict.fromkeys(finding.text for finding in defects))
    more = f" (and {len(texts) - 1} more defects)" if len(texts) > 1 else ""
    return (
        f"{texts[0]}{more}; `hqsam check-data CONFIG` shows everything, data.on_defect=skip leaves out what is unusable"
    )
