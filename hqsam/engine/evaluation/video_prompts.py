"""What each object of a video is prompted with, frame by frame.

| name | prompts of a frame |
|---|---|
| `TruthBoxes` | the tight box of each true mask |
| `GivenBoxes` | the boxes of another model, which also says which belong together |
| `Propagate` | box and inner point of each object's mask in the frame before; the true mask starts it |

A row is an object; rows keep their place in all frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hqsam.boxes import mask_to_box
from hqsam.data.video_boxes import BoxTrack
from hqsam.types import Fusion

Mask = NDArray[np.bool_]


class Prompted(NamedTuple):
    """Prompt of one object: a box, XYXY in pixels of the frame, and no point or one on the object (x, y)."""

    box: tuple[float, float, float, float]
    point: tuple[float, float] | None = None


class Prompter(Protocol):
    """Gives prompts for the frames of one video, in order."""

    rows: int
    """Number of objects."""

    def begin(self, frame: int, truths: Sequence[Mask]) -> frozenset[int]:
        """Start a frame. Returns the rows whose mask is given in it or not asked for yet: they are not scored.

        Args:
            frame: position in the video.
            truths: (H, W) bool of every true object; a prompter uses those that its protocol gives away.
        """

    def prompts(self, column: Fusion) -> Mapping[int, Prompted]:
        """Row -> prompt in this frame; a row that is absent gets an empty mask."""

    def given(self) -> Mapping[int, Mask]:
        """Row -> mask that needs no prediction in this frame."""

    def end(self, column: Fusion, masks: Sequence[Mask]) -> None:
        """Take notice of what a column predicted for all rows."""


class TruthBoxes:
    """The tight box, inclusive pixels, of every true mask that has a pixel in the frame."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._prompts: dict[int, Prompted] = {}

    def begin(self, frame: int, truths: Sequence[Mask]) -> frozenset[int]:
        """See `Prompter`; nothing is given but boxes."""
        boxes = {row: mask_to_box(truth) for row, truth in enumerate(truths)}
        self._prompts = {row: Prompted(_as_box(box)) for row, box in boxes.items() if box is not None}
        return frozenset()

    def prompts(self, column: Fusion) -> Mapping[int, Prompted]:
        """See `Prompter`; the same for every column."""
        return self._prompts

    def given(self) -> Mapping[int, Mask]:
        """See `Prompter`."""
        return {}

    def end(self, column: Fusion, masks: Sequence[Mask]) -> None:
        """See `Prompter`; nothing is remembered."""


class GivenBoxes:
    """The boxes of tracks that another model found, the same for every column."""

    def __init__(self, tracks: Sequence[BoxTrack]) -> None:
        self.rows = len(tracks)
        self._tracks = tracks
        self._frame = 0

    def begin(self, frame: int, truths: Sequence[Mask]) -> frozenset[int]:
        """See `Prompter`; the truth is not used."""
        self._frame = frame
        return frozenset()

    def prompts(self, column: Fusion) -> Mapping[int, Prompted]:
        """See `Prompter`."""
        boxes = {row: track.boxes[self._frame] for row, track in enumerate(self._tracks)}
        return {row: Prompted(box) for row, box in boxes.items() if box is not None}

    def given(self) -> Mapping[int, Mask]:
        """See `Prompter`."""
        return {}

    def end(self, column: Fusion, masks: Sequence[Mask]) -> None:
        """See `Prompter`; nothing is remembered."""


class Propagate:
    """A baseline without a memory: each object is looked for where it was in the frame before.

    An object is given by its true mask in the first frame in which it has a pixel. From then on the prompt is the box
    of its last mask, widened, and a point deep inside that mask. Where a mask is empty the last prompt is used again:
    an object that was hidden can be found where it was last seen. Every column goes on from its own masks.

    Args:
        rows: number of objects.
        margin: how far each side of the box is moved outwards, as a share of the box's width or height.
        point: whether to prompt with the point too.
    """

    def __init__(self, rows: int, margin: float, point: bool) -> None:
        self.rows, self._margin, self._with_point = rows, margin, point
        self._started: set[int] = set()
        self._given: dict[int, Mask] = {}
        self._last: dict[Fusion, dict[int, Prompted]] = {}

    def begin(self, frame: int, truths: Sequence[Mask]) -> frozenset[int]:
        """See `Prompter`; an object's first mask is given."""
        self._given = {row: truth for row, truth in enumerate(truths) if row not in self._started and truth.any()}
        self._started |= self._given.keys()
        return frozenset(row for row in range(self.rows) if row in self._given or row not in self._started)

    def prompts(self, column: Fusion) -> Mapping[int, Prompted]:
        """See `Prompter`."""
        return self._last.get(column, {})

    def given(self) -> Mapping[int, Mask]:
        """See `Prompter`."""
        return self._given

    def end(self, column: Fusion, masks: Sequence[Mask]) -> None:
        """See `Prompter`; the prompts of the next frame."""
        found = {row: self._prompt(mask) for row, mask in enumerate(masks)}
        known = self._last.get(column, {})
        self._last[column] = {**known, **{row: prompt for row, prompt in found.items() if prompt is not None}}

    def _prompt(self, mask: Mask) -> Prompted | None:
        box = mask_to_box(mask)
        if box is None:
            return None
        x0, y0, x1, y1 = _as_box(box)
        across, down = self._margin * (x1 - x0 + 1), self._margin * (y1 - y0 + 1)
        height, width = mask.shape
        wide = max(x0 - across, 0.0), max(y0 - down, 0.0), min(x1 + across, width - 1.0), min(y1 + down, height - 1.0)
        return Prompted(wide, inner_point(mask) if self._with_point else None)


def inner_point(mask: Mask) -> tuple[float, float]:
    """(x, y) of the pixel that is farthest from everything outside the mask, the first one of several.

    The edge of the image counts as inside, so the point of an object that is cut off may lie there.

    Raises:
        ValueError: the mask is empty.
    """
    import cv2

    box = mask_to_box(mask)
    if box is None:
        raise ValueError("an empty mask has no inner point")
    if mask.all():
        return (mask.shape[1] - 1) / 2, (mask.shape[0] - 1) / 2
    x0, y0, x1, y1 = (int(side) for side in box)
    top, left = max(y0 - 1, 0), max(x0 - 1, 0)
    window = np.ascontiguousarray(mask[top : y1 + 2, left : x1 + 2]).view(np.uint8)
    distance = cv2.distanceTransform(window, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    return float(left + column), float(top + row)


def _as_box(box: NDArray[np.float32]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(side) for side in box)
    return x0, y0, x1, y1
