"""What can be made again takes no more disk than it may."""

from __future__ import annotations

import os
from pathlib import Path

from hqsam.serve.bounded_folder import BoundedFolder


def write(path: Path, size: int, used: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    if used is not None:
        os.utime(path, (used, used))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_those_used_longest_ago_go(tmp_path: Path) -> None:
    kept = BoundedFolder(tmp_path, ".bin", 30)
    a, b, c = (write(tmp_path / f"{name}.bin", 10) for name in "abc")
    for path in (a, b, c, a):
        kept.use(path)
    assert names(tmp_path) == {"a.bin", "b.bin", "c.bin"}
    kept.use(write(tmp_path / "d.bin", 20))
    assert names(tmp_path) == {"a.bin", "d.bin"}


def test_files_of_before_and_of_folders_below(tmp_path: Path) -> None:
    """They count, in the order of their use, as do files that grow."""
    write(tmp_path / "old/model/a.bin", 10, used=1)
    first = write(tmp_path / "b.bin", 10, used=2)
    write(tmp_path / "c.bin", 10, used=3)
    write(tmp_path / "notes.txt", 1000, used=0)
    kept = BoundedFolder(tmp_path, ".bin", 30)
    kept.use(first)
    assert names(tmp_path) == {"a.bin", "b.bin", "c.bin", "notes.txt"}
    assert first.stat().st_mtime > 3  # the next start knows that it was used
    kept.use(write(first, 20))
    assert names(tmp_path) == {"b.bin", "c.bin", "notes.txt"}


def test_one_that_is_too_large_by_itself_stays(tmp_path: Path) -> None:
    kept = BoundedFolder(tmp_path, ".bin", 5)
    kept.use(write(tmp_path / "a.bin", 10))
    kept.use(write(tmp_path / "b.bin", 10))
    assert names(tmp_path) == {"b.bin"}


def test_files_that_somebody_else_deleted(tmp_path: Path) -> None:
    kept = BoundedFolder(tmp_path / "none", ".bin", 15)
    kept.use(tmp_path / "none/a.bin")
    a = write(tmp_path / "none/a.bin", 10)
    kept.use(a)
    a.unlink()
    kept.use(a)
    kept.use(write(tmp_path / "none/b.bin", 10))
    assert names(tmp_path) == {"b.bin"}
