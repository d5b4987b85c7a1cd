"""Contact sheets of suspects: the image with the outline of the mask that was found fault with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqsam.boxes import mask_to_box
from hqsam.data.check.findings import Finding
from hqsam.data.masks import load_object_masks
from hqsam.data.records import ImageRecord
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.visualize import BLUE, RED, YELLOW, draw_box, draw_mask, enlarge, side_by_side

SUSPECTS = 12
_ROW, _SIDE, _TITLE = 4, 256, 30
_NO_PICTURE = np.full((_SIDE, _SIDE, 3), 215, np.uint8)

Picture = NDArray[np.uint8]


def contact_sheet(findings: Sequence[Finding], records: Mapping[str, ImageRecord], *, use_alpha: bool) -> Picture:
    """The first `SUSPECTS` findings of one kind, each under the name of its file.

    Args:
        findings: at least one.
        records: the images by key.
        use_alpha: mattes are the targets where there are some.

    Returns:
        (H, W, 3) uint8 RGB. A file that cannot be read is a grey square; an object gets a box where it is small.
    """
    panels: list[Picture] = []
    titles: list[str] = []
    for finding in findings[:SUSPECTS]:
        for panel, title in _panels(finding, records.get(finding.key), use_alpha):
            panels.append(np.pad(panel, ((1, 1), (1, 1), (0, 0)), constant_values=150))  # white masks on white
            titles.append(title if len(title) <= _TITLE else f"...{title[-_TITLE + 3 :]}")
    rows = [
        side_by_side(panels[start : start + _ROW], titles[start : start + _ROW])
        for start in range(0, len(panels), _ROW)
    ]
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )


def _panels(finding: Finding, record: ImageRecord | None, use_alpha: bool) -> Iterator[tuple[Picture, str]]:
    path = Path(finding.file)
    if record is None or finding.other or finding.kind == "image_unreadable":
        for file in (path, Path(finding.other)) if finding.other else (path,):
            yield _plain(file), file.name
        return
    try:
        image = read_image(record.image)
    except DataError:
        yield _NO_PICTURE, path.name
        return
    mask = _mask(record, finding.object, (image.shape[0], image.shape[1]), use_alpha)
    if mask is None:  # side by side, since they do not fit on each other
        yield _small(image), record.image.name
        if path != record.image:
            yield _plain(path), path.name
        return
    yield _outlined(image, mask), path.name


def _mask(
    record: ImageRecord, number: int | None, size_hw: tuple[int, int], use_alpha: bool
) -> NDArray[np.bool_] | None:
    try:
        mask = load_object_masks([record.objects[number or 0]], size_hw, record.image, use_alpha=use_alpha)[0]
    except DataError:
        return None
    inside: NDArray[np.bool_] = mask > 0
    return inside


def _outlined(image: Picture, mask: NDArray[np.bool_]) -> Picture:
    # Scaled first: an outline of one pixel in a large picture would not survive.
    from PIL import Image

    small = _small(image)
    reduced = Image.fromarray(mask.view(np.uint8) * np.uint8(255)).resize(small.shape[1::-1], Image.Resampling.BOX)
    drawn = draw_mask(small, np.asarray(reduced) > 0, BLUE, alpha=0.35)
    box = mask_to_box(mask)
    if box is None:
        return draw_box(small, (0, 0, small.shape[1] - 1, small.shape[0] - 1), RED)
    scale = np.tile([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]], 2)
    scaled = box * scale + np.array([-4, -4, 4, 4])
    if max(scaled[2:] - scaled[:2]) < _SIDE / 8:
        drawn = draw_box(drawn, scaled.tolist(), YELLOW)
    return drawn


def _small(image: Picture) -> Picture:
    return enlarge(image, (0, 0, image.shape[1], image.shape[0]), _SIDE)


def _plain(path: Path) -> Picture:
    try:
        return _small(read_image(path))
    except DataError:
        return _NO_PICTURE
