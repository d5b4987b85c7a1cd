"""Opening a data set by whatever a user has: a name, a folder, an index file."""

from __future__ import annotations

import os
from pathlib import Path

from hqsam.data.annotation_files import read_annotation_file
from hqsam.data.boundaries import BSDS, SPLITS, read_bsds_regions
from hqsam.data.cards import find_card, group_members, known_names, read_card_set
from hqsam.data.coco import read_coco
from hqsam.data.folders import read_folder_pair
from hqsam.data.index_pack import INDEX_NAME, read_index_pack
from hqsam.data.label_maps import LABEL_KINDS, read_label_folder
from hqsam.data.pairing import json_files, pair_label_maps
from hqsam.data.records import ImageRecord
from hqsam.data.sa1b import read_sa1b_folder
from hqsam.errors import DataError

Pairs = tuple[tuple[str, str], ...]

_PAIRS: Pairs = (("images", "masks"), ("im", "gt"), ("image", "mask"), ("imgs", "masks"))
_LABEL_PAIRS: dict[str, Pairs] = {
    "instances": (("images", "labels"), *_PAIRS, ("JPEGImages", "SegmentationObject")),
    "classes": (("images", "labels"), *_PAIRS, ("JPEGImages", "SegmentationClass")),
}
"""The last ones are Pascal VOC's."""


def data_root(root: str | Path | None = None) -> Path:
    """Where named sets are: the argument, else `$HQSAM_DATA`, else `data` in the working directory."""
    return Path(root or os.environ.get("HQSAM_DATA") or "data")


def open_dataset(name: str | Path, *, root: str | Path | None = None) -> list[ImageRecord]:
    """Open a data set.

    Args:
        name: one of the forms of data/README.md:
            the name of a card or a group of cards (`hqseg44k_train`), or `bsds500_SPLIT` for the regions of one person;
            a JSON file: an `index.json` pack, or COCO or LVIS annotations; `IMAGES:FILE.json` says where the images
            are;
            a folder that holds an `index.json`, images with masks beside them or in sub-folders such as `images` and
            `masks`, or images with JSON files like SA-1B's; or two folders, `IMAGES:MASKS` or `IMAGES:JSON_FILES`;
            `instances:` or `classes:` before one or two folders: label maps in place of masks.
            Relative paths are tried as they are, then below the root.
        root: see `data_root`.

    Returns:
        Its images, sorted; those of a pack in its order.

    Raises:
        DataError: nothing of that name, or what is there is not a data set; says what was looked for.
    """
    text = str(name)
    members = group_members(text)
    if members:
        return [record for member in members for record in open_dataset(member, root=root)]
    card = find_card(text)
    if card is not None:
        return read_card_set(card, data_root(root))
    if text.startswith(BSDS) and text.removeprefix(BSDS) in SPLITS:
        return read_bsds_regions(data_root(root), text.removeprefix(BSDS))
    bases = (Path(), data_root(root))
    for base in bases:
        found = _open_path(base, text)
        if found is not None:
            return found
    if text.startswith(BSDS):
        raise DataError(f"no data set {text!r}: the parts of BSDS500 are {', '.join(SPLITS)}, as in {BSDS}{SPLITS[0]}")
    raise DataError(_nothing_found(text, bases))


def _open_path(base: Path, text: str) -> list[ImageRecord] | None:
    kind, _, rest = text.partition(":")
    for known in LABEL_KINDS:
        if kind == known and rest:
            folders = _two_folders(base, rest, _LABEL_PAIRS[known])
            if folders is None:
                return None
            images, labels, name = folders
            return read_label_folder(pair_label_maps(images, labels, name), images, known, name)
    path = base / text
    if path.is_file():
        return _open_json(path)
    if (path / INDEX_NAME).is_file():
        return _open_json(path / INDEX_NAME)
    folders = _two_folders(base, text, _PAIRS)
    if folders is not None:
        return _open_folders(*folders)
    images_dir, separator, file = text.rpartition(":")
    if separator and (base / images_dir).is_dir() and (base / file).is_file():
        return _open_json(base / file, base / images_dir)
    return None


def _two_folders(base: Path, text: str, pairs: Pairs) -> tuple[Path, Path, str] | None:
    """Folder of the images, folder of what is about them, and the set's name."""
    path = base / text
    if path.is_dir():
        for images, others in pairs:
            if (path / images).is_dir() and (path / others).is_dir():
                return path / images, path / others, path.resolve().name
        return path, path, path.resolve().name
    images_dir, separator, others_dir = text.rpartition(":")
    if separator and (base / images_dir).is_dir() and (base / others_dir).is_dir():
        return base / images_dir, base / others_dir, Path(images_dir).resolve().name
    return None


def _open_folders(images: Path, others: Path, set_name: str) -> list[ImageRecord]:
    files = json_files(images, others, set_name)
    if files:
        return read_sa1b_folder(images, others, files, set_name)
    try:
        return read_folder_pair(images, others, set_name)
    except DataError as error:
        if any(others.glob("*.json")):
            raise DataError(
                f"{error}; a COCO file is opened by its own path, such as {others.name}/FILE.json"
            ) from error
        raise


def _open_json(file: Path, images: Path | None = None) -> list[ImageRecord]:
    if images is None and is_index_file(file):
        return read_index_pack(file)
    content = read_annotation_file(file)
    if "images" in content:
        return read_coco(file, content, images)
    return read_sa1b_folder(images or file.parent, file.parent, {file.stem: file}, file.stem)


def is_index_file(file: Path) -> bool:
    """Whether a JSON file is the index of a pack, a list, and not a file of annotations.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with file.open(encoding="utf-8") as text:
            return text.read(100).lstrip().startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"annotation file cannot be read: {file} ({error})") from error


def _nothing_found(text: str, bases: tuple[Path, ...]) -> str:
    kind, _, rest = text.partition(":")
    paths = [part for part in (rest if kind in LABEL_KINDS else text).rpartition(":") if part not in ("", ":")]
    tried = [f"{path} ({'found' if any((base / path).exists() for base in bases) else 'not found'})" for path in paths]
    return (
        f"no data set {text!r}: looked for {' and '.join(tried)} here and in {bases[-1]}. A data set is a folder, a "
        "JSON file, IMAGES:MASKS, IMAGES:FILE.json, instances:IMAGES:LABELS, classes:IMAGES:LABELS, or one of the "
        "names "
        f"{', '.join(known_names())}"
    )
