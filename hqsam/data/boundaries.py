"""Images with regions and boundaries drawn by several people: the Berkeley Segmentation Data Set 500.

Two layouts below a folder: the published one, `images/SPLIT/ID.jpg` with `groundTruth/SPLIT/ID.mat`, and
`gt/SPLIT/ID.npz`, which holds `bnd`, the (K, H, W) boundaries packed to bits along the last axis, their `shape`, and
`seg`, the (K, H, W) labels of the regions from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.data.masks import upright_hw
from hqsam.data.records import ImageRecord, ObjectRecord
from hqsam.data.segmentations import Segmentation, SegmentationTable, pack_segmentation
from hqsam.errors import DataError
from hqsam.rle import encode_rle

BSDS = "bsds500_"
"""Begins the names of its sets, a split follows."""
SPLITS = ("train", "val", "test")
_BELOW = ("", "data", "BSDS500", "BSDS500/data", "BSR/BSDS500/data", "bsds500")
_ANNOTATIONS = {"groundTruth": ".mat", "gt": ".npz"}
_ORIGIN = (
    "the Berkeley Segmentation Data Set and Benchmarks 500 (BSR_bsds500.tgz), Berkeley Computer Vision Group, "
    "for non-commercial research and education"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundaryRecord:
    """One image and the file of its annotations.

    Attributes:
        key: stable and unique, "bsds500_SPLIT/ID".
        set_name: "bsds500_SPLIT".
        image: the image file.
        annotations: the file that `load_boundaries` and `load_regions` read.
    """

    key: str
    set_name: str
    image: Path
    annotations: Path


def read_bsds(root: str | Path, split: str = "test") -> list[BoundaryRecord]:
    """The images of a split, sorted by number.

    Args:
        root: the folder that holds `images`, or one above it as the archive unpacks.
        split: "train", "val" or "test".

    Raises:
        DataError: the folders are not there, or an image and its annotations do not come together.
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    base, folder = _find(Path(root), split)
    images = {path.stem: path for path in (base / "images" / split).glob("*.jpg")}
    truths = {path.stem: path for path in (base / folder / split).glob(f"*{_ANNOTATIONS[folder]}")}
    alone = sorted(images.keys() ^ truths.keys())
    if alone or not images:
        what = f"{alone[0]} has only one of image and annotations" if alone else "there is no image"
        raise DataError(f"BSDS500 {split} is not complete: {what} in {base}. It comes from {_ORIGIN}")
    name = f"{BSDS}{split}"
    return [
        BoundaryRecord(key=f"{name}/{stem}", set_name=name, image=images[stem], annotations=truths[stem])
        for stem in sorted(images)
    ]


def read_bsds_regions(root: str | Path, split: str = "test") -> list[ImageRecord]:
    """The images of a split with the regions that one person drew as objects; `load_regions` says who.

    Args:
        root: see `read_bsds`.
        split: "train", "val" or "test".

    Raises:
        DataError: see `read_bsds`; annotations that cannot be read or are of another size than their image.
        ValueError: another split.
    """
    records = []
    for record in read_bsds(root, split):
        hw = upright_hw(record.image)
        drawn = load_regions(record.annotations, hw)
        labels = [label for label in np.unique(drawn).tolist() if label]
        packed = [pack_segmentation(dict(encode_rle(drawn == label)))[0] for label in labels]
        table = SegmentationTable(record.annotations, labels, [hw] * len(labels), packed)
        objects = tuple(ObjectRecord(mask=Segmentation(table, row), name="region") for row in range(len(labels)))
        name = record.set_name
        if objects:
            records.append(ImageRecord(key=record.key, set_name=name, source=name, image=record.image, objects=objects))
    return records


def _find(root: Path, split: str) -> tuple[Path, str]:
    """The folder that holds `images`, and the name of the one with annotations beside it."""
    for below in _BELOW:
        base = root / below
        for folder in _ANNOTATIONS:
            if (base / "images" / split).is_dir() and (base / folder / split).is_dir():
                return base, folder
    raise DataError(
        f"BSDS500 {split} is not in {root}: expected images/{split} and groundTruth/{split} there or in BSDS500/data. "
        f"It comes from {_ORIGIN}"
    )


def load_boundaries(path: Path, hw: tuple[int, ...] | None = None) -> NDArray[np.bool_]:
    """Everybody's boundaries of one image.

    Args:
        path: a file of `BoundaryRecord.annotations`.
        hw: (H, W) of the image, to be sure; None does not check.

    Returns:
        (K, H, W) bool, K at least 1.

    Raises:
        DataError: the file cannot be read, is of another kind or without annotations, or of another size.
    """
    return _load(path, _packed_boundaries if path.suffix == ".npz" else _matlab_boundaries, hw)


def load_regions(path: Path, hw: tuple[int, ...] | None = None) -> NDArray[np.int64]:
    """The regions that one person drew: who drew the median number of them.

    Of an even number of annotations the lower median counts, of several with that number the first in the file.

    Args:
        path: a file of `BoundaryRecord.annotations`.
        hw: (H, W) of the image, to be sure; None does not check.

    Returns:
        (H, W) labels from 1; 0, which the published files do not have, is no region.

    Raises:
        DataError: see `load_boundaries`.
    """
    labels = _load(path, _packed_regions if path.suffix == ".npz" else _matlab_regions, hw)
    counts = [np.count_nonzero(np.unique(drawn)) for drawn in labels]
    chosen: NDArray[np.int64] = labels[np.argsort(counts, kind="stable")[(len(counts) - 1) // 2]].astype(np.int64)
    return chosen


def _load(path: Path, read: Callable[[Path], NDArray[Any]], hw: tuple[int, ...] | None) -> NDArray[Any]:
    try:
        truths = read(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise DataError(f"annotations cannot be read: {path} ({error})") from error
    if truths.ndim != 3 or not len(truths):
        raise DataError(f"no annotation in {path}: it holds an array of shape {truths.shape}, not (K, H, W)")
    if hw is not None and truths.shape[1:] != tuple(hw):
        raise DataError(f"{path} annotates an image of {truths.shape[1:]} (height, width), the image has {tuple(hw)}")
    return truths


def _packed_boundaries(path: Path) -> NDArray[np.bool_]:
    with np.load(path) as arrays:
        width = int(arrays["shape"][2])
        return np.unpackbits(arrays["bnd"], axis=-1)[..., :width].astype(np.bool_)


def _packed_regions(path: Path) -> NDArray[Any]:
    with np.load(path) as arrays:
        return np.asarray(arrays["seg"])


def _matlab_boundaries(path: Path) -> NDArray[np.bool_]:
    return _matlab_field(path, "Boundaries").astype(np.bool_)


def _matlab_regions(path: Path) -> NDArray[Any]:
    return _matlab_field(path, "Segmentation")


def _matlab_field(path: Path, field: str) -> NDArray[Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        cells: Any = loadmat(path)["groundTruth"]
    except MatReadError as error:
        raise ValueError(str(error)) from error
    return np.stack([cell[field][0, 0] for cell in cells.reshape(-1)])
