"""Results of items that are done, on disk while an evaluation runs: one that is broken off goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from hqsam.engine.distributed import World, from_main, gather_on_main
from hqsam.errors import OutputError

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
"""{"item": key, "records": [...], "left_out": [...]}"""


class KeptResults:
    """Lines of JSON in a folder that is removed when the evaluation is done; each process writes a file of its own.

    Only results of the same evaluation are taken: same protocol, weights, data and items.

    Args:
        folder: where the files are; None keeps nothing.
        identity: what makes the evaluation what it is, as JSON data.
        world: the group.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any], world: World) -> None:
        self.folder = folder
        self.world = world
        text = json.dumps(identity, sort_keys=True, default=str)
        self._head = json.dumps({"evaluation": hashlib.sha256(text.encode()).hexdigest()})
        self._file: IO[str] | None = None

    def open(self) -> tuple[frozenset[str], dict[str, Entry]]:
        """What is there of this evaluation; every process calls this.

        Returns:
            The items that are done, the same on every process, and their entries on the first one alone: a hundred
            masks an image, in each of many processes, would not fit into memory.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.folder is None:
            return frozenset(), {}
        files = {path: self._read(path) for path in sorted(self.folder.glob("*.jsonl"))}
        found = {entry["item"]: entry for entries in files.values() for entry in entries or []}
        known = from_main(lambda: frozenset(found), self.world)
        lacking = {key: entry for key, entry in found.items() if key not in known}  # of another machine's disk
        parts = gather_on_main(lacking, self.world)
        together = {**found, **{key: entry for part in parts for key, entry in part.items()}}
        done = from_main(lambda: frozenset(together), self.world)
        if self.world.is_main:  # everybody has read by now
            strangers = [path for path, entries in files.items() if entries is None]
            if strangers:
                logger.warning("results of another evaluation in %s are removed", self.folder)
            for path in strangers:
                path.unlink(missing_ok=True)
            if together:
                logger.info("%d items are done already", len(together))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"{uuid.uuid4().hex}.jsonl").open("w", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error
        self._write(self._head)
        return done, together if self.world.is_main else {}

    def _read(self, path: Path) -> list[Entry] | None:
        """Entries of a file; None if they are of another evaluation. A line that was not written to its end is lost."""
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            entries: list[Entry] = [json.loads(line) for line in lines[1:]]
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            return None
        return entries if lines and lines[0] == self._head else None

    def add(self, entry: Entry) -> None:
        """Keep the results of one item.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._file is not None:
            self._write(json.dumps(entry, allow_nan=False))

    def _write(self, line: str) -> None:
        if self._file is None:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write results to {self.folder}: {error.strerror or error}")

    def close(self) -> None:
        """Stop writing; what is there stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the folder: the evaluation is done. Called by the first process when all have closed."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
