"""A folder of files that can be made again, kept below a size."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from pathlib import Path


class BoundedFolder:
    """Deletes the files used longest ago, one after the other, when the folder grows beyond its limit.

    The time of the last use is the file's own time of change, so that it survives a restart. The file used last always
    stays. Not for several threads; another process may delete or add files at any time.

    Args:
        folder: searched with all folders below, when the first file is used; need not exist.
        suffix: of the files that count; no other is deleted.
        limit: bytes.
    """

    def __init__(self, folder: Path, suffix: str, limit: float) -> None:
        self.folder, self.suffix, self.limit = folder, suffix, limit
        self._sizes: OrderedDict[Path, int] | None = None

    def use(self, path: Path) -> None:
        """A file was read or written: it goes last, and others go now if it is too much."""
        if self._sizes is None:
            self._sizes = self._found()
        try:
            os.utime(path)
            size = path.stat().st_size
        except OSError:  # deleted meanwhile, or not ours to touch
            self._sizes.pop(path, None)
            return
        self._sizes[path] = size
        self._sizes.move_to_end(path)
        total = sum(self._sizes.values())
        while total > self.limit and len(self._sizes) > 1:
            oldest, size = self._sizes.popitem(last=False)
            with contextlib.suppress(OSError):
                oldest.unlink()
            total -= size

    def _found(self) -> OrderedDict[Path, int]:
        seen: list[tuple[float, Path, int]] = []
        for path in self.folder.rglob(f"*{self.suffix}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                seen.append((status.st_mtime, path, status.st_size))
        return OrderedDict((path, size) for _, path, size in sorted(seen))
