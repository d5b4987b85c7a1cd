"""Opening a set of videos by whatever a user has: a name, a folder, a file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from hqsam.data.cards import read_cards
from hqsam.data.davis import read_davis, read_video_pack
from hqsam.data.index_pack import INDEX_NAME
from hqsam.data.opening import data_root
from hqsam.data.videos import VideoSet
from hqsam.data.youtube_vis import read_youtube_vis
from hqsam.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoCard:
    """A known set of videos.

    Attributes:
        name: what `open_videos` calls it.
        title: its published name.
        layout: how its files lie.
        path: below the data root: the folder of DAVIS, or an annotation file.
        year: of DAVIS, which decides what an object is; 0 in other layouts.
        split: name of the part of DAVIS; empty in other layouts.
        images: below the data root, folder of the frames of an annotation file, which is looked for if it is not there;
            empty in other layouts.
        videos: how many there are in the published set; None: not checked.
        origin: where it comes from.
        terms: terms of use, as its authors state them.
    """

    name: str
    title: str
    layout: Literal["davis", "youtube_vis"]
    path: str
    year: int = 0
    split: str = ""
    images: str = ""
    videos: int | None = None
    origin: str
    terms: str


@cache
def video_cards() -> dict[str, VideoCard]:
    """All cards of videos by name."""
    return {name: VideoCard(name=name, **values) for name, values in read_cards("video").items()}


def open_videos(name: str | Path, *, root: str | Path | None = None) -> VideoSet:
    """Open a set of videos.

    Args:
        name: the name of a card (`davis2017_val`); an `index.json` pack with `seq` and `frame`, or its folder; an
            annotation file of YouTube-VIS's format, or `IMAGES:FILE.json` where its frames lie elsewhere. Relative
            paths are tried as they are, then below the root.
        root: where named sets are; None: `$HQSAM_DATA`, else `data` in the working directory.

    Raises:
        DataError: nothing of that name, or what is there is not such a set; says what was looked for.
    """
    text, base = str(name), data_root(root)
    if card := video_cards().get(text):
        return _open_card(card, base)
    for folder in (Path(), base):
        path = folder / text
        if path.is_dir():
            path = path / INDEX_NAME
        if path.is_file():
            return read_video_pack(path) if path.name == INDEX_NAME else read_youtube_vis(path)
        images, _, file = text.rpartition(":")
        if images and (folder / images).is_dir() and (folder / file).is_file():
            return read_youtube_vis(folder / file, folder / images)
    raise DataError(
        f"no set of videos {text!r}: looked for it here and in {base}. It is an {INDEX_NAME} pack with seq and frame, "
        f"a YouTube-VIS annotation file, IMAGES:FILE.json, or one of the names {', '.join(video_cards())}"
    )


def _open_card(card: VideoCard, root: Path) -> VideoSet:
    path = root / card.path
    if not path.exists():
        raise DataError(
            f"{card.title} ({card.name}) is not there: expected {path}. It comes from {card.origin}; "
            "set HQSAM_DATA to the folder that holds it"
        )
    if card.layout == "davis":
        opened = read_davis(path, card.year, card.split)
    else:
        images = root / card.images
        opened = read_youtube_vis(path, images if images.is_dir() else None, card.name)
    if card.videos is not None and len(opened.videos) != card.videos:
        logger.warning(
            "%s has %d videos, the published set %d: its numbers are not those of the benchmark",
            card.name,
            len(opened.videos),
            card.videos,
        )
    return opened
