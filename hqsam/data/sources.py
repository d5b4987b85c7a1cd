"""Where training images come from: files, or scenes that are generated on the spot."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hqsam.data.masks import load_object_masks, upright_hw
from hqsam.data.records import ImageRecord
from hqsam.errors import DataError
from hqsam.images import read_image


class RawSample(NamedTuple):
    """An image and its objects before augmentation."""

    image: NDArray[np.uint8] | None  # (H, W, 3) RGB; None if it was not asked for
    masks: list[NDArray[np.uint8]]  # (H, W) 0..255, one for each object
    image_file: Path | None = None  # the file that holds the image


@runtime_checkable
class SampleSource(Protocol):
    """What `TrainingSet` draws from."""

    def __len__(self) -> int:
        """Number of images."""

    def key(self, index: int) -> str:
        """Stable and unique name of an image."""

    def source(self, index: int) -> str:
        """Kind of picture, for weighted sampling."""

    def read(self, index: int, scene_seed: int, *, with_image: bool = True) -> RawSample:
        """Image and masks.

        Args:
            index: which one.
            scene_seed: for what is generated: the same seed gives the same pixels. Files ignore it.
            with_image: False: the image may be left out if `RawSample.image_file` says where it is: a view is planned
                from the masks, then the file is read no finer than the view needs.

        Raises:
            DataError: a file is unusable; the message names it.
        """


class FileSource:
    """Images and masks from files."""

    def __init__(self, records: Sequence[ImageRecord], *, use_alpha: bool = True) -> None:
        self.records = list(records)
        self.use_alpha = use_alpha

    def __len__(self) -> int:
        return len(self.records)

    def key(self, index: int) -> str:
        """The record's key."""
        return self.records[index].key

    def source(self, index: int) -> str:
        """The record's source."""
        return self.records[index].source

    def read(self, index: int, scene_seed: int, *, with_image: bool = True) -> RawSample:
        """Image and masks of one record; see `SampleSource.read`."""
        record = self.records[index]
        image = read_image(record.image) if with_image else None
        size = upright_hw(record.image) if image is None else image.shape[:2]
        height, width = size
        masks = load_object_masks(record.objects, (height, width), record.image, use_alpha=self.use_alpha)
        return RawSample(image, masks, record.image)


class SyntheticSource:
    """Generated scenes with exact masks, a new scene for every view.

    Args:
        length: nominal number of images, its part in an epoch without weights.
        size: side of the square scenes in pixels, as a rule the model's input size.
        name: source name, and first part of the keys.
        kinds: kinds of objects, as for `generate_scene`; `hqsam.data.synthetic.OBJECT_KINDS` when empty.

    Raises:
        ValueError: a length below 1, or no such kind.
    """

    def __init__(
        self, length: int = 1000, size: int = 1024, *, name: str = "synthetic", kinds: Sequence[str] = ()
    ) -> None:
        from hqsam.data.synthetic.scene import check_kinds

        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.kinds = check_kinds(kinds) if kinds else None
        self.length = length
        self.size = size
        self.name = name

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        """The name, the kinds where they were chosen, and the index."""
        return "/".join([self.name, *self.kinds] if self.kinds else [self.name]) + f"/{index:06d}"

    def source(self, index: int) -> str:
        """The same for every scene."""
        return self.name

    def read(self, index: int, scene_seed: int, *, with_image: bool = True) -> RawSample:
        """Generate a scene; the image comes with it in any case."""
        from hqsam.data.synthetic import generate_scene

        scene = generate_scene(scene_seed, self.size, kinds=self.kinds)
        return RawSample(scene.image, scene.masks)


class ConcatSource:
    """Several sources, one after the other.

    Raises:
        DataError: two images have the same key.
    """

    def __init__(self, parts: Sequence[SampleSource]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(len(part) for part in self.parts))
        seen: set[str] = set()
        for index in range(len(self)):
            key = self.key(index)
            if key in seen:
                raise DataError(f"image {key} occurs twice in the training data; list each data set once")
            seen.add(key)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def key(self, index: int) -> str:
        """Key in the part that the image is of."""
        part, inner = self._locate(index)
        return part.key(inner)

    def source(self, index: int) -> str:
        """Source in the part that the image is of."""
        part, inner = self._locate(index)
        return part.source(inner)

    def read(self, index: int, scene_seed: int, *, with_image: bool = True) -> RawSample:
        """See `SampleSource.read`."""
        part, inner = self._locate(index)
        return part.read(inner, scene_seed, with_image=with_image)

    def _locate(self, index: int) -> tuple[SampleSource, int]:
        number = bisect_right(self.ends, index)
        return self.parts[number], index - (self.ends[number - 1] if number else 0)
