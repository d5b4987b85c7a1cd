"""Folders of label maps: PNG files whose numbers name instances or classes, without a list of what is in them."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from hqsam.data.masks import read_stored
from hqsam.data.records import ImageRecord, ObjectRecord
from hqsam.errors import DataError

logger = logging.getLogger(__name__)

LabelKind = Literal["instances", "classes"]
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
_BACKGROUND = 0
_FILES_AT_ONCE = 8
_LOG_FROM, _LOG_EVERY = 200, 5000


def read_label_folder(
    pairs: dict[str, tuple[Path, Path]], images: Path, kind: LabelKind, set_name: str
) -> list[ImageRecord]:
    """One record for each image whose label map has objects, in order; each label is one object.

    All maps are read to see which labels occur.

    Args:
        pairs: image and label map by their common path.
        images: folder of the images, to which keys are relative.
        kind: what the numbers say. "classes": the largest number of the depth (255, or 65535 of 16 bits) is void;
            "instances": so it is in palette files alone, which Pascal VOC and DAVIS use.
        set_name: name of the set, first part of each key.

    Raises:
        DataError: a map cannot be read or is coloured, or no map has an object.
    """
    records = []
    found = _scan([labels for _, labels in pairs.values()], kind, set_name)
    for (image, path), labels in zip(pairs.values(), found, strict=True):
        if labels:
            objects = tuple(ObjectRecord(mask=path, label=label) for label in labels)
            key = f"{set_name}/{image.relative_to(images).as_posix()}"
            records.append(ImageRecord(key=key, set_name=set_name, source=set_name, image=image, objects=objects))
    if not records:
        raise DataError(f"data set {set_name}: none of {len(pairs)} label maps has a label other than 0 and void")
    return records


def object_labels(path: Path, kind: LabelKind) -> list[int]:
    """The labels of a map that are objects, rising.

    Raises:
        DataError: the file cannot be read or is no label map.
    """
    values, is_palette = read_stored(path)
    if values.dtype == np.uint8 or values.dtype == np.bool_:
        present, void = np.flatnonzero(np.bincount(values.reshape(-1), minlength=2)), 255
    elif np.issubdtype(values.dtype, np.integer) and (values.size == 0 or values.min() >= 0):
        present, void = np.unique(values), 65535
    else:
        raise DataError(f"a label map holds whole numbers from 0: {path} has {values.dtype}, lowest {values.min():g}")
    has_void = kind == "classes" or is_palette
    return [int(label) for label in present if label != _BACKGROUND and not (has_void and label == void)]


def _scan(paths: list[Path], kind: LabelKind, set_name: str) -> Iterator[list[int]]:
    """Labels of each map, in order; several are read at once."""
    if len(paths) >= _LOG_FROM:
        logger.info("%s: reading %d label maps to see which labels occur", set_name, len(paths))
    pool = ThreadPoolExecutor(min(_FILES_AT_ONCE, os.cpu_count() or 1))
    try:
        for number, labels in enumerate(pool.map(functools.partial(object_labels, kind=kind), paths), start=1):
            if number % _LOG_EVERY == 0:
                logger.info("%s: %d of %d label maps", set_name, number, len(paths))
            yield labels
    finally:
        pool.shutdown(cancel_futures=True)
