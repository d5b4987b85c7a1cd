"""Data sets that are folders: an image and a mask belong together when their paths agree up to the suffix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hqsam.data.records import ImageRecord, ObjectRecord
from hqsam.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff"})
_ENDINGS = ("_im", "_gt")
"""How BIG tells images and masks of one folder apart; its other files (`_seg`) are somebody's answers."""
_NAMED = 5


@dataclass(frozen=True)
class FolderDefect:
    """A file of an image/mask folder that belongs to no pair.

    Attributes:
        kind: what is wrong.
        path: the file.
        text: one sentence that names it.
    """

    kind: Literal["image_without_mask", "mask_without_image", "same_stem"]
    path: Path
    text: str


_collected: ContextVar[list[FolderDefect] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting_defects() -> Iterator[list[FolderDefect]]:
    """Within this context a folder with files that belong to no pair opens without them.

    Yields:
        The list to which such files are added. Of files that share a stem none is taken.
    """
    defects: list[FolderDefect] = []
    token = _collected.set(defects)
    try:
        yield defects
    finally:
        _collected.reset(token)


def read_folder_pair(images: Path, masks: Path, set_name: str) -> list[ImageRecord]:
    """One record per image, sorted by path; sub-folders included, hidden files ignored.

    Args:
        images: folder of images.
        masks: folder of lossless masks, one object each. The same folder as `images` means: JPEG images beside PNG
            masks, or where any such pair is there, `NAME_im` of any kind beside `NAME_gt.png` and nothing else.
        set_name: name of the set, first part of each key.

    Raises:
        DataError: a folder is missing or has no images, an image has no mask, a mask has no image, or two files of
            one folder differ only in their suffix. Within `collecting_defects` the last three are collected instead.
    """
    collected = _collected.get()
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"data set {set_name}: folder not found: {folder}")
    image_groups, mask_groups = _grouped(images, masks, set_name)
    defects = [*_twins(image_groups, images), *_twins(mask_groups, masks)]
    defects += _unpaired(image_groups, mask_groups, images, masks)
    if collected is not None:
        collected += defects
    elif defects:
        raise DataError(_message(defects, set_name, images, masks))
    pairs = {
        stem: (paths[0], mask_groups[stem][0])
        for stem, paths in image_groups.items()
        if len(paths) == len(mask_groups.get(stem, ())) == 1
    }
    return [
        ImageRecord(
            key=f"{set_name}/{path.relative_to(images).as_posix()}",
            set_name=set_name,
            source=set_name,
            image=path,
            objects=(ObjectRecord(mask=mask),),
        )
        for path, mask in pairs.values()
    ]


def _grouped(images: Path, masks: Path, set_name: str) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The files of both kinds by what their names have in common."""
    suffixes, png = IMAGE_SUFFIXES, frozenset({".png"})
    if images.resolve() != masks.resolve():
        image_groups, mask_groups = _by_stem(images, suffixes), _by_stem(masks, MASK_SUFFIXES)
    else:
        image_groups, mask_groups = _by_stem(images, suffixes, _ENDINGS[0]), _by_stem(masks, png, _ENDINGS[1])
        if not image_groups.keys() & mask_groups.keys():
            suffixes = frozenset({".jpg", ".jpeg"})
            image_groups, mask_groups = _by_stem(images, suffixes), _by_stem(masks, png)
    if not image_groups:
        raise DataError(f"data set {set_name}: no images ({_listing(suffixes)}) in {images}")
    return image_groups, mask_groups


def files_by_stem(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """The files of a folder and its sub-folders, sorted, by path without suffix; hidden ones are left out.

    Raises:
        DataError: two files differ only in their suffix.
    """
    groups = _by_stem(folder, suffixes)
    if twins := list(_twins(groups, folder)):
        raise DataError("; ".join(twin.text for twin in twins))
    return {stem: paths[0] for stem, paths in groups.items()}


def _by_stem(folder: Path, suffixes: frozenset[str], ending: str = "") -> dict[str, list[Path]]:
    """Files by their path without suffix and ending; those whose stem ends otherwise are left out."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in inside.parts):
            continue
        stem = inside.with_suffix("").as_posix()
        if stem.endswith(ending):
            found.setdefault(stem.removesuffix(ending), []).append(path)
    return found


def _twins(groups: dict[str, list[Path]], folder: Path) -> Iterator[FolderDefect]:
    for paths in groups.values():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            yield FolderDefect("same_stem", paths[0], f"two files of the same stem in {folder}: {names}; keep one")


def _unpaired(
    image_groups: dict[str, list[Path]], mask_groups: dict[str, list[Path]], images: Path, masks: Path
) -> Iterator[FolderDefect]:
    """Files without a partner, images first."""
    for stem, (path, *_) in image_groups.items():
        if stem not in mask_groups:
            yield FolderDefect("image_without_mask", path, f"image without a mask in {masks}: {path}")
    for stem, (path, *_) in mask_groups.items():
        if stem not in image_groups:
            yield FolderDefect("mask_without_image", path, f"mask without an image in {images}: {path}")


def _message(defects: list[FolderDefect], set_name: str, images: Path, masks: Path) -> str:
    """All defects of the first kind in one line."""
    kind = defects[0].kind
    paths = [defect.path for defect in defects if defect.kind == kind]
    if kind == "same_stem":
        return defects[0].text
    noun, missing = (
        ("image", f"a mask in {masks}") if kind == "image_without_mask" else ("mask", f"an image in {images}")
    )
    return f"data set {set_name}: {_count(paths, noun)} without {missing}: {_names(paths)}"


def _count(paths: list[Path], noun: str) -> str:
    return f"{len(paths)} {noun}{'s' if len(paths) > 1 else ''}"


def _names(paths: list[Path]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(path.name for path in paths[:_NAMED]) + more


def _listing(suffixes: Iterable[str]) -> str:
    return " ".join(sorted(suffix.lstrip(".") for suffix in suffixes))
