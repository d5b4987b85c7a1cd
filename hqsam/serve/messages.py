"""What passes between the page and the server, checked. Coordinates are pixels of the upright original image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from hqsam.errors import HqsamError
from hqsam.rle import Rle, checked_rle, rle_area, rle_box

MAX_OBJECTS, MAX_POINTS, MAX_HINTS = 10_000, 1000, 200
_PLAIN = r"^[^\x00-\x1f\x7f]*$"

Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate, Literal[0, 1]]
"""x, y, and 1 inside the object or 0 outside."""
Box = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
"""x0, y0, x1, y1."""
Label = Annotated[str, Field(max_length=200, pattern=_PLAIN)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=_PLAIN)]
State = Literal["todo", "started", "done"]
Status = Literal["accepted", "proposed"]
Source = Literal["clicks", "box", "brush", "proposal", "file"]
Fusion = Literal["sam", "hq", "sum"]
Points = Annotated[list[Point], Field(max_length=MAX_POINTS)]


class RefusedError(HqsamError):
    """What a client asked for cannot be; the message says why."""


class RleMessage(BaseModel):
    """A mask in COCO's compressed run lengths."""

    size: tuple[int, int]  # height, width
    counts: str

    def as_rle(self) -> Rle:
        """The mask as it is, where it was checked before."""
        return Rle(size=list(self.size), counts=self.counts)

    def checked(self, height: int, width: int) -> Rle:
        """The mask, after checking that it is one of an image of this size.

        Raises:
            ValueError: another size, or no run lengths of it.
        """
        if self.size != (height, width):
            raise ValueError(f"the mask has size {list(self.size)}, its image {[height, width]} (height, width)")
        return checked_rle(self.counts.encode(), height, width)


class PromptsMessage(BaseModel):
    """What a person pointed at."""

    points: Points = []
    box: Box | None = None


class MaskObject(BaseModel):
    """One object of an image."""

    id: Name
    label: Label
    rle: RleMessage
    status: Status
    source: Source
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    prompts: PromptsMessage | None = None
    seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None

    def described(self, height: int, width: int) -> dict[str, Any]:
        """The object for the page, with `bbox` [x, y, width, height] and `area` in pixels."""
        rle = self.rle.checked(height, width)
        return {**self.model_dump(), "bbox": rle_box(rle), "area": rle_area(rle)}


Objects = Annotated[list[MaskObject], Field(max_length=MAX_OBJECTS)]


class SaveRequest(BaseModel):
    """All objects of an image; one that is left out is deleted."""

    revision: Annotated[int, Field(ge=0)]
    state: State
    objects: Objects


class PreviousMask(BaseModel):
    """A mask of an earlier answer, which is fed back."""

    answer: Annotated[str, Field(max_length=100)]
    candidate: Annotated[int, Field(ge=0, le=2)]


class PredictRequest(PromptsMessage):
    """A question to the model."""

    previous: PreviousMask | None = None
    fusion: Fusion | None = None
    multimask: bool = False


class PrefetchRequest(BaseModel):
    """What is likely to be looked at next, most likely first."""

    ids: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=MAX_HINTS)]


class Problem(BaseModel):
    """Any answer that is not the one asked for."""

    detail: str


def check_objects(objects: list[MaskObject], height: int, width: int) -> None:
    """Refuse objects that cannot be of an image of this size.

    Raises:
        RefusedError: an id twice, or a mask of another size or without proper run lengths; names the object.
    """
    seen: set[str] = set()
    for position, item in enumerate(objects):
        if item.id in seen:
            raise RefusedError(f"object {position}: the id {item.id!r} occurs twice")
        seen.add(item.id)
        try:
            item.rle.checked(height, width)
        except ValueError as error:
            raise RefusedError(f"object {position} ({item.id!r}): {error}") from error
