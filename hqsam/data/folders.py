"""Data sets that are folders: an image and a mask belong together when their paths agree up to the suffix."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hqsam.data.records import ImageRecord, ObjectRecord
from hqsam.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"})
_NAMED = 5


def read_folder_pair(images: Path, masks: Path, set_name: str) -> list[ImageRecord]:
    """One record per image, sorted by path; sub-folders included, hidden files ignored.

    Args:
        images: folder of images.
        masks: folder of lossless masks, one object each. The same folder as `images` means: JPEG images beside PNG
            masks.
        set_name: name of the set, first part of each key.

    Raises:
        DataError: a folder is missing or has no images, an image has no mask, a mask has no image, or two files of
            one folder differ only in their suffix.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"data set {set_name}: folder not found: {folder}")
    together = images.resolve() == masks.resolve()
    image_suffixes = frozenset({".jpg", ".jpeg"}) if together else IMAGE_SUFFIXES
    image_files = files_by_stem(images, image_suffixes)
    mask_files = files_by_stem(masks, frozenset({".png"}) if together else MASK_SUFFIXES)
    if not image_files:
        raise DataError(f"data set {set_name}: no images ({_listing(image_suffixes)}) in {images}")
    if missing := [path for stem, path in image_files.items() if stem not in mask_files]:
        count = _count(missing, "image")
        raise DataError(f"data set {set_name}: {count} without a mask in {masks}: {_names(missing)}")
    if orphans := [path for stem, path in mask_files.items() if stem not in image_files]:
        count = _count(orphans, "mask")
        raise DataError(f"data set {set_name}: {count} without an image in {images}: {_names(orphans)}")
    return [
        ImageRecord(
            key=f"{set_name}/{path.relative_to(images).as_posix()}",
            set_name=set_name,
            source=set_name,
            image=path,
            objects=(ObjectRecord(mask=mask_files[stem]),),
        )
        for stem, path in image_files.items()
    ]


def files_by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """The files of a folder and its sub-folders, sorted, by path without suffix; hidden ones are left out.

    Raises:
        DataError: two files differ only in their suffix.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in inside.parts):
            continue
        stem = inside.with_suffix("").as_posix()
        if stem in found:
            raise DataError(f"two files of the same stem in {folder}: {found[stem].name} and {path.name}; keep one")
        found[stem] = path
    return found


def _count(paths: list[Path], noun: str) -> str:
    return f"{len(paths)} {noun}{'s' if len(paths) > 1 else ''}"


def _names(paths: list[Path]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(path.name for path in paths[:_NAMED]) + more


def _listing(suffixes: Iterable[str]) -> str:
    return " ".join(sorted(suffix.lstrip(".") for suffix in suffixes))
