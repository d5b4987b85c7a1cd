"""Training samples: a view, prompts of its objects, and the points of the loss.

Everything random about a sample comes from generators seeded by (seed, stream, view or epoch, key of the image), so
that it depends neither on rank nor on worker, nor on what else is in the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hqsam.data.augment import OBJECT_THRESHOLD
from hqsam.data.batch import Sample
from hqsam.data.feature_store import FeatureStore
from hqsam.data.options import TrainDataOptions
from hqsam.data.records import ImageRecord
from hqsam.data.seeding import derive_seed, make_generator
from hqsam.data.sources import ConcatSource, FileSource, SampleSource
from hqsam.data.views import View, draw_view
from hqsam.errors import DataError

_VIEW_RULES = 2
"""To be raised whenever equal options no longer give equal views: kept features of older rules are then refused."""
_PUBLISHED_FILL = (128, 128, 128)
_MEAN_FILL = (124, 116, 104)
"""SAM's mean colour: what is about zero after normalisation."""
_VIEW_OPTIONS = (
    "pad",
    "jitter",
    "flip_prob",
    "max_enlargement",
    "min_pixels",
    "min_share",
    "max_tries",
    "photometric",
    "degradation",
    "use_alpha",
)


class TrainingSet(Dataset[Sample]):
    """Samples by (epoch, index).

    Args:
        records: what to train on: records, or any `SampleSource`.
        options: how samples are made.
        image_size: side S of the model's input.
        seed: of everything random.
        store: kept encoder outputs. A view that it has comes with `features` and without `image`.

    Raises:
        DataError: no images, or two of the same key.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord] | SampleSource,
        options: TrainDataOptions,
        image_size: int,
        seed: int,
        store: FeatureStore | None = None,
    ) -> None:
        data = records if isinstance(records, SampleSource) else FileSource(records, use_alpha=options.use_alpha)
        self.data = ConcatSource([data])
        if len(self.data) == 0:
            raise DataError("no images to train on: the training data is empty")
        self.options = options
        self.image_size = image_size
        self.seed = seed
        self.store = store
        self.sources = [self.data.source(index) for index in range(len(self.data))]
        self._crop = options.crop_rule()
        self._pixel_rule = options.pixel_rule()
        self._prompts = options.prompt_rule()

    def __len__(self) -> int:
        return len(self.data)

    def view_key(self, epoch: int, index: int) -> str:
        """Identifies the view that (epoch, index) shows; with kept views the epoch may be the view's number."""
        image, view = self._locate(epoch, index)
        return f"{self.data.key(image)}#{view}"

    def view_fingerprint(self) -> str:
        """Short hash of everything that views depend on, for `FeatureStore`; it changes with seed and augmentation."""
        options = {name: getattr(self.options, name) for name in _VIEW_OPTIONS}
        text = json.dumps([_VIEW_RULES, self.seed, self.image_size, options], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        """The sample of (epoch, index); index + k * len(self) is the same image with other random choices.

        Raises:
            DataError: a file is unusable or an image shows no object; the message names it.
        """
        epoch, index = item
        image_index, view_number = self._locate(epoch, index)
        key, view_key = self.data.key(image_index), self.view_key(epoch, index)
        kept = self.store is not None and self.store.has(view_key)
        view = self._view(image_index, view_number)
        rng = make_generator(self.seed, "prompt", epoch, index // len(self), key)
        chosen = view.choose(self.options.prompts_per_image, rng)
        warped = {number: view.mask(number) for number in dict.fromkeys(chosen)}
        masks = np.stack([warped[number] for number in chosen])
        points = make_generator(self.seed, "loss", epoch, index // len(self), key)
        candidates, uniform = self._loss_points(len(masks), points)
        clicks, paths = (make_generator(self.seed, name, epoch, index // len(self), key) for name in ("click", "path"))
        published = self.options.pad == "published"
        image = None if kept else self._pixels(view)
        return Sample(
            key=key,
            source=self.sources[image_index],
            view_key=view_key,
            image=image,
            features=self.store.load(view_key) if kept and self.store is not None else None,
            input_hw=(self.image_size, self.image_size) if published else view.params.visible_hw,
            masks=torch.from_numpy(masks),
            prompts=self._prompts.draw(masks, rng),
            loss_candidates=candidates,
            loss_uniform=uniform,
            click_draws=torch.from_numpy(clicks.random((len(masks), self.options.click_draws), dtype=np.float32)),
            path_draws=torch.from_numpy(paths.random(self.options.path_draws, dtype=np.float32)),
        )

    def _locate(self, epoch: int, index: int) -> tuple[int, str]:
        """Image and view of (epoch, index); a repetition within an epoch shows another view where there is one."""
        repeat, image_index = divmod(index, len(self))
        if self.options.views:
            return image_index, str((epoch + repeat) % self.options.views)
        return image_index, f"{epoch}.{repeat}" if repeat else str(epoch)

    def _view(self, image_index: int, number: str) -> View:
        key = self.data.key(image_index)
        sample = self.data.read(image_index, derive_seed(self.seed, "scene", number, key), with_image=False)
        change = self._pixel_rule.draw(make_generator(self.seed, "pixels", number, key))
        rng = make_generator(self.seed, "view", number, key)
        view = draw_view(sample, self.image_size, self._crop, rng, change)
        if view is None:
            highest = max((int(mask.max()) for mask in sample.masks), default=0)
            raise DataError(
                f"{key} shows no object: its masks have no pixel above {OBJECT_THRESHOLD} of 255, the largest value is "
                f"{highest}; leave the image out or correct the mask"
            )
        return view

    def _pixels(self, view: View) -> Tensor:
        fill = _PUBLISHED_FILL if self.options.pad == "published" else _MEAN_FILL
        return torch.from_numpy(np.ascontiguousarray(view.image(fill).transpose(2, 0, 1)))

    def _loss_points(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Candidates (P, C, 2) and uniform points (P, U, 2), xy in 0..1."""
        sizes = (self.options.num_candidates, self.options.num_uniform)
        candidates, uniform = (torch.from_numpy(rng.random((count, size, 2), dtype=np.float32)) for size in sizes)
        return candidates, uniform
