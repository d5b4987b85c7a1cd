"""Opening a data set by whatever a user has: a name, a folder, an index file."""

from __future__ import annotations

import os
from pathlib import Path

from hqsam.data.cards import find_card, group_members, known_names, read_card_set
from hqsam.data.folders import read_folder_pair
from hqsam.data.index_pack import read_index_pack
from hqsam.data.records import ImageRecord
from hqsam.errors import DataError

_PAIRS = (("images", "masks"), ("im", "gt"), ("image", "mask"), ("imgs", "masks"))


def data_root(root: str | Path | None = None) -> Path:
    """Where named sets are: the argument, else `$HQSAM_DATA`, else `data` in the working directory."""
    return Path(root or os.environ.get("HQSAM_DATA") or "data")


def open_dataset(name: str | Path, *, root: str | Path | None = None) -> list[ImageRecord]:
    """Open a data set.

    Args:
        name: the name of a card or a group of cards (`hqseg44k_train`); an `index.json` pack or a folder that holds
            one; a folder of images with masks beside them, or in sub-folders such as `images` and `masks`; or two
            folders written `IMAGES:MASKS`. Relative paths are tried as they are, then below the root.
        root: see `data_root`.

    Returns:
        Its images, sorted.

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
    for base in (Path(), data_root(root)):
        found = _open_path(base, text)
        if found is not None:
            return found
    raise DataError(
        f"no data set {text!r}: it is neither a folder, an index.json nor IMAGES:MASKS here or in {data_root(root)}, "
        f"nor one of the names {', '.join(known_names())}"
    )


def _open_path(base: Path, text: str) -> list[ImageRecord] | None:
    path = base / text
    if path.is_file():
        return read_index_pack(path)
    if path.is_dir():
        if (path / "index.json").is_file():
            return read_index_pack(path / "index.json")
        for images, masks in _PAIRS:
            if (path / images).is_dir() and (path / masks).is_dir():
                return read_folder_pair(path / images, path / masks, path.resolve().name)
        return read_folder_pair(path, path, path.resolve().name)
    images_dir, separator, masks_dir = text.rpartition(":")
    if separator and (base / images_dir).is_dir() and (base / masks_dir).is_dir():
        return read_folder_pair(base / images_dir, base / masks_dir, Path(images_dir).resolve().name)
    return None
