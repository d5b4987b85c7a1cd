"""Segmentations out of annotation files: polygons and run lengths, kept small until they are asked for.

An annotation file may hold a million of them, in every process that loads data. They are packed into one array for
each file: processes that were forked share its memory, and nothing is drawn before an image is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqsam.errors import DataError
from hqsam.rle import (
    Rle,
    checked_rle,
    compress_runs,
    decode_polygons,
    decode_rle,
    is_run_text,
    polygons_rle,
)

_RUNS, _HUNDREDTHS, _DOUBLES = b"R", b"H", b"D"
_AT_MOST_ONE_RUN = re.compile(rb"(?:[P-o]*[0-O])?")
_FARTHEST = 1e5
"""Coordinates beyond are a mistake: no image is that large, and pycocotools needs memory for each pixel of an edge."""


class SegmentationTable:
    """The segmentations of one annotation file.

    Args:
        file: the annotation file, for error messages.
        ids: of the annotations.
        sizes: (height, width) of the image that each was drawn on, (0, 0) where the file does not say.
        packed: each from `pack_segmentation`.
    """

    def __init__(
        self, file: Path, ids: Sequence[int | str], sizes: Sequence[tuple[int, int]], packed: Sequence[bytes]
    ) -> None:
        self.file = file
        self._ids = np.asarray(ids)
        self._sizes = np.asarray(sizes, dtype=np.int32).reshape(-1, 2)
        self._ends = np.cumsum([len(data) for data in packed], dtype=np.int64)
        self._data = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""
        return sum(array.nbytes for array in (self._ids, self._sizes, self._ends, self._data))

    def name(self, row: int) -> str:
        """What messages call one of them."""
        return f"annotation {self._ids[row]} of {self.file}"

    def size_hw(self, row: int) -> tuple[int, int]:
        """(height, width) of the image that one was drawn on; (0, 0) where the file does not say."""
        return int(self._sizes[row, 0]), int(self._sizes[row, 1])

    def content(self, row: int) -> bytes:
        """What one of them draws, the stated size included; equal bytes, equal masks."""
        return bytes(self._sizes[row].tobytes()) + self._packed(row)

    def _packed(self, row: int) -> bytes:
        return bytes(self._data[self._ends[row - 1] if row else 0 : self._ends[row]])

    def decode(self, row: int, size_hw: tuple[int, int], image: Path) -> NDArray[np.uint8]:
        """Draw one of them.

        Args:
            row: its place in the table.
            size_hw: (height, width) of the upright image.
            image: the image file, for error messages.

        Returns:
            (H, W) uint8, 0 and 255.

        Raises:
            DataError: it was drawn on an image of another size, or its run lengths are damaged.
        """
        stated = self.size_hw(row)
        if stated not in ((0, 0), size_hw):
            raise DataError(
                f"annotation and image differ in size: {self.name(row)} is drawn on "
                f"{stated[1]} x {stated[0]}, {image} is {size_hw[1]} x {size_hw[0]} (width x height, upright)"
            )
        try:
            mask = _draw(self._packed(row), size_hw)
        except ValueError as error:
            raise DataError(f"{self.name(row)} is damaged: {error}") from error
        return mask.astype(np.uint8) * np.uint8(255)


@dataclass(frozen=True, slots=True)
class Segmentation:
    """One row of a table."""

    table: SegmentationTable
    row: int

    def __str__(self) -> str:
        return self.table.name(self.row)

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the image that it was drawn on; (0, 0) where the file does not say."""
        return self.table.size_hw(self.row)

    def content(self) -> bytes:
        """See `SegmentationTable.content`."""
        return self.table.content(self.row)

    def decode(self, size_hw: tuple[int, int], image: Path) -> NDArray[np.uint8]:
        """See `SegmentationTable.decode`."""
        return self.table.decode(self.row, size_hw, image)


def pack_segmentation(value: Any) -> tuple[bytes, tuple[int, int] | None]:
    """Check a "segmentation" of a COCO file and make it small, without loss.

    Args:
        value: a list of polygons, or {"size", "counts"} with compressed or plain run lengths.

    Returns:
        The packed form, empty if nothing is inside (no polygon of three corners, or a single run), and the (height,
        width) that run lengths state.

    Raises:
        ValueError: it is none of these.
    """
    if value is None:
        return b"", None
    if isinstance(value, dict):
        return _pack_runs(value)
    if not isinstance(value, list):
        raise ValueError(f"a segmentation is a list of polygons or has size and counts, got {type(value).__name__}")
    if value and not isinstance(value[0], list):
        raise ValueError(f"polygons are lists of numbers within a list, got {str(value[0])[:40]!r} in their place")
    return _pack_polygons(value), None


def packed_rle(packed: bytes, size_hw: tuple[int, int]) -> Rle:
    """Run lengths of what `pack_segmentation` returned.

    Raises:
        ValueError: run lengths that do not fill the image.
    """
    height, width = size_hw
    if not packed:
        return Rle(size=[height, width], counts=compress_runs([height * width], height, width))
    if packed[:1] == _RUNS:
        return checked_rle(packed[1:], height, width)
    return polygons_rle(_unpack_polygons(packed), height, width)


def _pack_runs(value: dict[str, Any]) -> tuple[bytes, tuple[int, int]]:
    try:
        height, width = (int(side) for side in value["size"])
        counts = value["counts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"run lengths come with size [height, width] and counts ({error})") from error
    if height < 1 or width < 1:
        raise ValueError(f"size must be [height, width] in pixels, got {value['size']}")
    if isinstance(counts, list):
        counts = compress_runs(counts, height, width)
    data = counts.encode() if isinstance(counts, str) else b""
    if not isinstance(counts, str) or not is_run_text(data):
        raise ValueError(f"counts are neither numbers nor compressed run lengths: {str(counts)[:40]!r}")
    return (b"" if _AT_MOST_ONE_RUN.fullmatch(data) else _RUNS + data), (height, width)


def _pack_polygons(polygons: list[Any]) -> bytes:
    parts = []
    for polygon in polygons:
        try:
            values = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"a polygon is a list of numbers, got {str(polygon)[:40]!r}") from error
        if values.ndim != 1 or len(values) % 2:
            raise ValueError(f"a polygon is x0, y0, x1, y1, ..., got {len(values)} values")
        if not (np.abs(values) <= _FARTHEST).all():
            raise ValueError(f"a corner of a polygon is not finite or beyond {_FARTHEST:g} pixels")
        if len(values) >= 6:
            parts.append(values)
    if not parts:
        return b""
    kind, values = _DOUBLES, np.concatenate(parts)
    hundredths = np.rint(values * 100)
    if hundredths.min() >= 0 and hundredths.max() <= 65535 and (hundredths / 100 == values).all():
        kind, values = _HUNDREDTHS, hundredths.astype("<u2")  # COCO and LVIS: two decimals, images within 640 pixels
    lengths = struct.pack(f"<{len(parts)}I", *map(len, parts))
    return kind + struct.pack("<I", len(parts)) + lengths + values.tobytes()


def _draw(data: bytes, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    if data[:1] == _RUNS:
        return decode_rle({"size": size_hw, "counts": data[1:]})
    return decode_polygons(_unpack_polygons(data), *size_hw)


def _unpack_polygons(data: bytes) -> list[list[float]]:
    (count,) = struct.unpack_from("<I", data, 1)
    lengths = struct.unpack_from(f"<{count}I", data, 5)
    values = np.frombuffer(data, dtype="<u2" if data[:1] == _HUNDREDTHS else "<f8", offset=5 + 4 * count)
    corners = values / 100 if data[:1] == _HUNDREDTHS else values
    return [part.tolist() for part in np.split(corners, np.cumsum(lengths)[:-1])]
