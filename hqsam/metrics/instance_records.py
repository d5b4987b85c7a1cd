"""What instance segmentation is scored from: the annotated instances, and one record of masks for each image."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from hqsam.rle import Rle

ImageId = int | str
Score = Literal["box", "iou", "product"]
"""What ranks the masks: the detector's score of the box, the predicted IoU of SAM's mask, or one times the other."""

SCORES: tuple[Score, ...] = ("box", "iou", "product")
COLUMNS: tuple[Literal["sam", "hq", "sum"], ...] = ("sam", "hq", "sum")


class TrueImage(NamedTuple):
    """An image of a set.

    Attributes:
        size_hw: (height, width) in pixels.
        negative: LVIS: categories that were looked for and are not in it.
        not_exhaustive: LVIS: categories of which not every instance was annotated.
    """

    size_hw: tuple[int, int]
    negative: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()


class TrueInstance(NamedTuple):
    """An annotated instance.

    Attributes:
        image: id of its image.
        category: id of its category.
        rle: its mask, at the size of its image.
        area: pixels as the data set states them: sizes (small, medium, large) go by this number.
        crowd: whether it outlines many objects at once, which no single mask has to match.
    """

    image: ImageId
    category: int
    rle: Rle
    area: float
    crowd: bool = False


@dataclass(frozen=True)
class InstanceTruth:
    """The images, categories and instances of a set.

    Attributes:
        images: by id.
        categories: id -> frequency in the training images, "r", "c" or "f", as LVIS has it; "" where a set has none.
        instances: in the order of the data set, on which ties depend.

    Raises:
        ValueError: no image, ids of mixed types, an instance of an unknown image or category, a mask of another size
            than its image, an area that is no number.
    """

    images: Mapping[ImageId, TrueImage]
    categories: Mapping[int, str]
    instances: tuple[TrueInstance, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.images or len({type(image) for image in self.images}) > 1:
            raise ValueError("a set needs at least one image, and ids that are all numbers or all text")
        for position, item in enumerate(self.instances):
            where = f"instance {position} of image {item.image}"
            if item.image not in self.images:
                raise ValueError(f"{where}: the image is not listed")
            if item.category not in self.categories:
                raise ValueError(f"{where}: category {item.category} is not listed")
            if tuple(item.rle["size"]) != self.images[item.image].size_hw:
                raise ValueError(
                    f"{where}: its mask is {item.rle['size']}, the image {self.images[item.image].size_hw}"
                )
            if not (math.isfinite(item.area) and item.area >= 0):
                raise ValueError(f"{where}: area must be a number of pixels, got {item.area}")

    def of_images(self, images: Collection[ImageId]) -> InstanceTruth:
        """The same set with some of its images alone.

        Raises:
            ValueError: one of them is not in the set, or none is left.
        """
        wanted = set(images)
        if unknown := sorted(wanted - self.images.keys(), key=str):
            raise ValueError(f"{len(unknown)} images are not in the set, the first is {unknown[0]}")
        kept = {number: image for number, image in self.images.items() if number in wanted}
        return replace(self, images=kept, instances=tuple(item for item in self.instances if item.image in kept))

    def without_categories(self) -> InstanceTruth:
        """The same set as if every instance were of one category, number 1."""
        return replace(self, categories={1: ""}, instances=tuple(item._replace(category=1) for item in self.instances))


@dataclass(frozen=True)
class InstanceRecord:
    """The masks of one image's boxes; one line of `records.jsonl`. An image without boxes has empty lists.

    Attributes:
        set: name of the data set.
        image: id of the image in the set.
        categories: category id of each box.
        box_scores: the detector's score of each box; equal ones rank in this order.
        iou_scores: column -> predicted IoU of each mask.
        masks: column -> mask of each box, at the size of the image.

    Raises:
        ValueError: lists of different lengths, no column or an unknown one, a score that is not finite, masks of
            several sizes.
    """

    set: str
    image: ImageId
    categories: list[int]
    box_scores: list[float]
    iou_scores: dict[str, list[float]]
    masks: dict[str, list[Rle]]

    def __post_init__(self) -> None:
        where, count = f"{self.set}, image {self.image}", len(self.categories)
        if not self.masks or self.masks.keys() != self.iou_scores.keys() or not self.masks.keys() <= set(COLUMNS):
            raise ValueError(
                f"{where}: masks and iou_scores need the same columns of {', '.join(COLUMNS)}, got "
                f"{sorted(self.masks)} and {sorted(self.iou_scores)}"
            )
        lists: Iterable[list[Any]] = (self.box_scores, *self.iou_scores.values(), *self.masks.values())
        if any(len(values) != count for values in lists):
            raise ValueError(
                f"{where}: {count} categories, but {sorted({len(v) for v in lists} - {count})} other values"
            )
        for values in (self.box_scores, *self.iou_scores.values()):
            if not all(map(math.isfinite, values)):
                raise ValueError(f"{where}: scores must be finite numbers, got {values}")
        if len({tuple(rle["size"]) for rles in self.masks.values() for rle in rles}) > 1:
            raise ValueError(f"{where}: masks of one image must be of one size")

    @property
    def key(self) -> tuple[str, ImageId]:
        """What makes a record unique."""
        return self.set, self.image

    @property
    def columns(self) -> Collection[str]:
        """How its masks were made."""
        return self.masks.keys()

    def as_dict(self) -> dict[str, Any]:
        """Plain data; the constructor takes it back as keywords."""
        return asdict(self)

    def scores(self, column: str, by: Score) -> list[float]:
        """What ranks the masks of a column."""
        if by == "box":
            return self.box_scores
        if by == "iou":
            return self.iou_scores[column]
        return [box * iou for box, iou in zip(self.box_scores, self.iou_scores[column], strict=True)]
