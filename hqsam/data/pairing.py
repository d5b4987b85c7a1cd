"""Images and the label maps or JSON files about them, in folders: they belong together by their path up to the suffix.

Folders of one mask for each image are stricter (`hqsam.data.folders`). Here an image about which nothing is written is
no part of the set: Pascal VOC has labels for some of its images, and a run of `hqsam auto` may have been interrupted.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hqsam.data.annotation_files import listing
from hqsam.data.folders import IMAGE_SUFFIXES, MASK_SUFFIXES, files_by_stem
from hqsam.errors import DataError

logger = logging.getLogger(__name__)

_JPEG, _PNG, _JSON = frozenset({".jpg", ".jpeg"}), frozenset({".png"}), frozenset({".json"})


def pair_label_maps(images: Path, labels: Path, set_name: str) -> dict[str, tuple[Path, Path]]:
    """Image and label map by their common path, sorted.

    Args:
        images: folder of the images.
        labels: folder of the label maps. The same folder means: JPEG images beside PNG maps.
        set_name: for messages.

    Raises:
        DataError: no label maps, one without its image, or two files that differ only in their suffix.
    """
    together = images.resolve() == labels.resolve()
    of_images = files_by_stem(images, _JPEG if together else IMAGE_SUFFIXES)
    of_labels = files_by_stem(labels, _PNG if together else MASK_SUFFIXES)
    if not of_labels:
        raise DataError(f"data set {set_name}: no label maps ({' '.join(sorted(MASK_SUFFIXES))}) in {labels}")
    if orphans := [path.name for stem, path in of_labels.items() if stem not in of_images]:
        count = f"{len(orphans)} label maps without an image"
        raise DataError(f"data set {set_name}: {count} in {images}: {listing(orphans)}")
    _warn_unlabelled(set(of_images) - set(of_labels), len(of_images), set_name)
    return {stem: (of_images[stem], path) for stem, path in of_labels.items()}


def json_files(images: Path, annotations: Path, set_name: str) -> dict[str, Path]:
    """The JSON files by their path without suffix, if these are folders of images and one JSON file for each.

    They are if a JSON file is called like an image and no mask is; otherwise the answer is empty.

    Args:
        images: folder of the images.
        annotations: folder of the JSON files; may be the same.
        set_name: for messages.
    """
    files = files_by_stem(annotations, _JSON)
    if not files:
        return {}
    together = images.resolve() == annotations.resolve()
    stems = _stems(images, IMAGE_SUFFIXES)
    beside_masks = _stems(images, _JPEG) if together else stems
    if not stems & set(files) or beside_masks & _stems(annotations, _PNG if together else MASK_SUFFIXES):
        return {}
    _warn_unlabelled(beside_masks - set(files), len(beside_masks), set_name)
    return files


def _warn_unlabelled(stems: set[str], total: int, set_name: str) -> None:
    """Say how many images nothing is written about, if any."""
    if stems:
        logger.warning("%s: %d of %d images have no annotation and are left out", set_name, len(stems), total)


def _stems(folder: Path, suffixes: frozenset[str]) -> set[str]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return {path.relative_to(folder).with_suffix("").as_posix() for path in files}
