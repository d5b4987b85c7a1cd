"""What a data set is to the rest of the package: a sorted list of images, each with the objects drawn on it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hqsam.data.segmentations import Segmentation
from hqsam.errors import DataError

Holdout = Literal["train", "val", "all"]
"""Which part of a set: all but the reserved tenth, the reserved tenth, or everything."""

ANY_LABEL = -1
"""Label of an object that is every non-zero pixel of its mask file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRecord:
    """One object of an image; `hqsam.data.masks.load_object_mask` reads its pixels.

    Attributes:
        mask: the mask file, or polygons or run lengths out of an annotation file.
        label: which pixels of a mask file. None: the mask's grey value (0..255) is the object, soft edges included; -1:
            every non-zero pixel; another number: the pixels that equal it. Out of an annotation file always None.
        name: class or instance name, free text.
        alpha: matte of the same object, soft grey.
        area: pixels, as the data set states it.
        bbox_xyxy: box in image pixels, exclusive maximum, as the data set states it.
        thin: share of the area lost under a small opening, as the data set states it; 0.05 and more is thin.
    """

    mask: Path | Segmentation
    label: int | None = None
    name: str = ""
    alpha: Path | None = None
    area: int | None = None
    bbox_xyxy: tuple[int, int, int, int] | None = None
    thin: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image and its objects.

    Attributes:
        key: stable and unique, "<set>/<image path inside the set>".
        set_name: the set it was opened from.
        source: the kind of picture inside the set; sampling and averages go by it. The set's name where a set is of
            one kind.
        image: the image file.
        objects: at least one.
    """

    key: str
    set_name: str
    source: str
    image: Path
    objects: tuple[ObjectRecord, ...]


def is_held_out(image: Path) -> bool:
    """Whether an image is of the reserved tenth: sha1 of its file name, hex digest as a number, divisible by 10."""
    return int(hashlib.sha1(image.name.encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0


def select_records(
    records: Iterable[ImageRecord],
    *,
    sources: Collection[str] | None = None,
    holdout: Holdout = "all",
    exclude_files: Sequence[Path] = (),
    max_images: int | None = None,
) -> list[ImageRecord]:
    """Keep a part of a data set, in order.

    Args:
        records: from `open_dataset`.
        sources: only these sources.
        holdout: "train" leaves the reserved tenth out (see `is_held_out`), "val" keeps only it.
        exclude_files: text files that list images to leave out: file name in the first column, `#` starts a comment.
        max_images: of what is left, only so many, see `take_images`; None for all.

    Raises:
        DataError: an exclusion list cannot be read, a source does not occur, or nothing is left.
    """
    if holdout not in ("train", "val", "all"):
        raise ValueError(f"holdout must be 'train', 'val' or 'all', got {holdout!r}")
    records = list(records)
    known = {record.source for record in records}
    if sources is not None and (unknown := sorted(set(sources) - known)):
        raise DataError(f"no image of source {', '.join(unknown)}; the data has {', '.join(sorted(known)) or 'none'}")
    excluded = set().union(*map(_listed_names, exclude_files))
    kept = [
        record
        for record in records
        if (sources is None or record.source in sources)
        and (holdout == "all" or is_held_out(record.image) == (holdout == "val"))
        and record.image.name not in excluded
    ]
    if not kept:
        raise DataError(f"the selection leaves none of {len(records)} images (sources={sources}, holdout={holdout!r})")
    return kept if max_images is None else take_images(kept, max_images)


def take_images(records: Sequence[ImageRecord], count: int) -> list[ImageRecord]:
    """A part of some images, the same on every machine, each source about as frequent as in the whole.

    Images of a source are ordered by a hash of their keys and the sources dealt evenly: a smaller part is inside every
    larger one, and no source is left out where there is an image for each.

    Args:
        records: from one or several data sets.
        count: images to keep; with as many or fewer records all are kept.

    Returns:
        The chosen ones in their old order.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"max_images must be at least 1 or None, got {count}")
    by_source: dict[str, list[tuple[str, int]]] = {}
    for index, record in enumerate(records):
        digest = hashlib.sha1(record.key.encode(), usedforsecurity=False).hexdigest()
        by_source.setdefault(record.source, []).append((digest, index))
    order = []
    for members in by_source.values():
        order += [(rank / len(members), *member) for rank, member in enumerate(sorted(members))]
    chosen = {index for _, _, index in sorted(order)[:count]}
    return [record for index, record in enumerate(records) if index in chosen]


def _listed_names(path: Path) -> set[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list of excluded images cannot be read: {path} ({error})") from error
    rows = [line.partition("#")[0].split() for line in lines]
    return {row[0] for row in rows if row}
