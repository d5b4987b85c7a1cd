"""Encoded images: made once, kept in memory for the images at hand and on disk for all."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hqsam.errors import DataError, OutputError
from hqsam.features import PredictorFeatures, image_hash, model_fingerprint
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.serve.bounded_folder import BoundedFolder
from hqsam.serve.pictures import Picture
from hqsam.serve.worker import Job, Urgency, Worker

logger = logging.getLogger(__name__)

IN_MEMORY = 16
"""Images whose features stay in memory, about 20 MB each at an input size of 1024."""
SUFFIX = ".safetensors"
ON_DISK = 20e9
"""Bytes of features on disk, of all models together: 6000 images of the embedded model."""
_NEXT = 2
"""Images after the current one in the list that are encoded while nobody waits."""


class Embeddings:
    """Predictors whose image is set, made on the worker's thread.

    Features are rounded to half precision when they are made, as they are on disk: an image has the same answers
    before and after a restart.

    Args:
        model: the model.
        pictures: by id, in the order of the page.
        folder: of the files; one sub-folder for each model.
        worker: the thread of the model.
        capacity: images in memory.
        disk: bytes that the files of all models may take; those used longest ago are deleted.
        encoded: called on the worker's thread with each picture that was set without anybody waiting for it.
    """

    def __init__(
        self,
        model: Sam,
        pictures: Mapping[str, Picture],
        folder: Path,
        worker: Worker,
        *,
        capacity: int = IN_MEMORY,
        disk: float = ON_DISK,
        encoded: Callable[[Picture], None] = lambda _: None,
    ) -> None:
        self.model, self.pictures, self.worker, self.capacity = model, pictures, worker, capacity
        self.fingerprint = model_fingerprint(model)
        self.folder = folder / self.fingerprint[:16]
        self._kept = BoundedFolder(folder, SUFFIX, disk)
        self.encoded = encoded
        self._order = list(pictures)
        self._predictors: OrderedDict[str, tuple[str, SamPredictor]] = OrderedDict()  # with the tag of the file
        self._jobs: dict[str, Job[SamPredictor]] = {}
        self._lock = threading.Lock()

    def use_model(self, model: Sam) -> None:
        """Go on with another model that has the same encoder. On the worker's thread alone.

        Raises:
            DataError: its encoder is another one, so that nothing that is kept is of it.
        """
        if model_fingerprint(model) != self.fingerprint:
            raise DataError("its encoder is another one; start the server again")
        self.model = model
        self._predictors.clear()  # made again from what is on disk

    def path(self, picture: Picture) -> Path:
        """Where the features of a picture are kept."""
        return self.folder / f"{picture.id}{SUFFIX}"

    def is_encoded(self, picture: Picture) -> bool:
        """Whether an answer need not wait for the encoder, going by what there is."""
        return picture.id in self._predictors or self.path(picture).is_file()

    def request(self, picture: Picture, urgency: Urgency) -> Job[SamPredictor]:
        """A job that ends with a predictor whose image is set. The jobs of one picture are one."""
        with self._lock:
            job = self._jobs.get(picture.id)
            if job is not None and not job.future.cancelled():
                self.worker.hurry(job, urgency)
                return job
            job = self.worker.submit(lambda: self._run(picture), urgency)
            self._jobs[picture.id] = job
            return job

    def current(self, picture: Picture) -> Job[SamPredictor]:
        """The same for an image that a person looks at; those after it in the list follow while nobody waits."""
        job = self.request(picture, Urgency.CURRENT)
        place = self._order.index(picture.id)
        for name in self._order[place + 1 : place + 1 + _NEXT]:
            self._prepare(self.pictures[name])
        return job

    def hint(self, pictures: Sequence[Picture]) -> None:
        """What is likely to be looked at next; earlier hints that were not followed yet are forgotten."""
        with self._lock:
            for name, job in list(self._jobs.items()):
                if job.urgency >= Urgency.HINT and job.future.cancel():
                    del self._jobs[name]
        for picture in pictures[: self.capacity]:
            self._prepare(picture)

    def predictor(self, picture: Picture) -> SamPredictor:
        """A predictor whose image is set. On the worker's thread alone, which does more urgent jobs between two layers.

        Raises:
            DataError: the picture cannot be read.
        """
        tag = picture.tag()
        known, found = self._predictors.get(picture.id, ("", None))
        if found is None or known != tag:  # a picture may be replaced by one of the same size
            found = SamPredictor(self.model)
            found.load_features(self._features(picture))
            self._predictors[picture.id] = tag, found
            while len(self._predictors) > self.capacity:
                self._predictors.popitem(last=False)
        self._predictors.move_to_end(picture.id)
        return found

    def _prepare(self, picture: Picture) -> None:
        if picture.id not in self._predictors:
            self.request(picture, Urgency.HINT)

    def _run(self, picture: Picture) -> SamPredictor:
        with self._lock:
            job = self._jobs[picture.id]
        try:
            predictor = self.predictor(picture)
        finally:
            with self._lock:
                del self._jobs[picture.id]
        if job.urgency >= Urgency.HINT:
            self.encoded(picture)
        return predictor

    def _features(self, picture: Picture) -> PredictorFeatures:
        image, path = picture.read(), self.path(picture)
        features = self._from_disk(path, image)
        if features is None:
            predictor = SamPredictor(self.model)
            with _pausing(self.model.image_encoder, self.worker.run_more_urgent):
                predictor.set_image(image)
            features = _with_dtype(predictor.get_features(), torch.float16)
            try:
                features.save(path)
            except OutputError as error:  # a full disk makes the next start slower, and no more
                logger.warning("%s", error)
        self._kept.use(path)
        return _with_dtype(features, self.model.dtype)

    def _from_disk(self, path: Path, image: NDArray[np.uint8]) -> PredictorFeatures | None:
        if not path.is_file():
            return None
        try:
            features = PredictorFeatures.load(path)
        except DataError as error:
            logger.warning("%s; the image is encoded again", error)
            return None
        belongs = features.model_fingerprint == self.fingerprint and features.image_hash == image_hash(image)
        return features if belongs else None


@contextlib.contextmanager
def _pausing(encoder: nn.Module, pause: Callable[[], None]) -> Iterator[None]:
    """Have an encoder do something else before each of its layers: on a CPU it takes seconds, and a click does not."""

    def before(*_: Any) -> None:
        pause()

    hooks = [module.register_forward_pre_hook(before) for module in encoder.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _with_dtype(features: PredictorFeatures, dtype: torch.dtype) -> PredictorFeatures:
    """In another number type, and in the memory layout of files: sums in another order would be rounded otherwise."""

    def converted(tensor: Tensor) -> Tensor:
        largest = torch.finfo(dtype).max
        return tensor.float().clamp(-largest, largest).to(dtype).contiguous()

    return replace(
        features,
        image_embedding=converted(features.image_embedding),
        early_feature=converted(features.early_feature),
    )
