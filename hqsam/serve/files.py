"""Folders of files for the browser: a request names an entry of a list, never a path."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
"""Other kinds of files are not handed out. The system's own table differs from machine to machine."""


class FileFolder:
    """The files of a folder and those below, without links and without hidden ones.

    Args:
        folder: may come into being later.
        kinds: suffixes of the files that are handed out.
    """

    def __init__(self, folder: Path, kinds: Collection[str] = MEDIA_TYPES.keys()) -> None:
        self.folder, self.kinds = folder, kinds
        self._found: dict[str, Path] = {}

    def names(self) -> list[str]:
        """Paths relative to the folder, with "/" between their parts."""
        self._found = {
            path.relative_to(self.folder).as_posix(): path
            for path in (sorted(self.folder.rglob("*")) if self.folder.is_dir() else ())
            if path.suffix in self.kinds and path.is_file() and self._is_own(path)
        }
        return list(self._found)

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Content and media type of a file; None if there is no such one."""
        if name not in self._found:
            self.names()  # files may come while the server runs
        path = self._found.get(name)
        if path is None or not path.is_file():
            return None
        return path.read_bytes(), MEDIA_TYPES[path.suffix]

    def _is_own(self, path: Path) -> bool:
        parts = path.relative_to(self.folder).parts
        hidden = any(part.startswith(".") for part in parts)
        return not hidden and path.resolve() == self.folder.resolve() / Path(*parts)
