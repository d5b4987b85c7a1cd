"""Masks that a person only has to accept: of everything in an image, or of a detector's boxes."""

from __future__ import annotations

import logging
import math
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hqsam.automatic import SamAutomaticMaskGenerator
from hqsam.data.detections import ImageBoxes, read_detections
from hqsam.metrics.instance_records import InstanceTruth, TrueImage
from hqsam.predictor import SamPredictor
from hqsam.rle import Rle, encode_masks, rle_area
from hqsam.serve.embeddings import Embeddings
from hqsam.serve.messages import MAX_OBJECTS, MaskObject, RleMessage, Source
from hqsam.serve.pictures import Picture
from hqsam.serve.store import Annotations, AnnotationStore, DamagedFileError, Proposal
from hqsam.serve.worker import Job, Urgency, Worker
from hqsam.types import without_zoom

logger = logging.getLogger(__name__)

MAX_PROPOSALS = 200
"""Of one image at a time, the best-scored."""
OVERLAP = 0.5
"""A proposal goes if more than this share of it, or of an object that is there, is common to both."""
SAME = 0.8
"""A proposal goes if it has a higher IoU with an earlier one: that was accepted, edited or deleted."""
_TOGETHER = {"cpu": 4}
"""Points and boxes decoded together, on other devices 64: a click waits until they are done."""


class _Found(NamedTuple):
    rle: Rle
    score: float
    label: str


class Proposer:
    """Makes proposals, on the worker's thread.

    Args:
        embeddings: encoded images.
        store: the annotation files.
        worker: the thread of the model.
        boxes: a detector's boxes by image id, to be segmented in place of a search; None searches.
        labels: names of the boxes' categories 1, 2, ...
        automatic: make proposals for every image that is encoded ahead and that nobody has begun with.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        store: AnnotationStore,
        worker: Worker,
        *,
        boxes: Mapping[str, ImageBoxes] | None = None,
        labels: Sequence[str] = (),
        automatic: bool = False,
    ) -> None:
        self.embeddings, self.store, self.worker = embeddings, store, worker
        self.boxes, self.labels, self.automatic = boxes, labels, automatic
        self._together = _TOGETHER.get(embeddings.model.device.type, 64)
        self._jobs: dict[str, Job[tuple[int, int]]] = {}
        self._tried: set[str] = set()
        self._lock = threading.Lock()

    def request(self, picture: Picture, urgency: Urgency = Urgency.PROPOSALS) -> Job[tuple[int, int]]:
        """A job that adds proposals and ends with the new revision and their number. The jobs of one image are one."""
        with self._lock:
            job = self._jobs.get(picture.id)
            if job is not None and not job.future.cancelled():
                self.worker.hurry(job, urgency)
                return job
            job = self._jobs[picture.id] = self.worker.submit(lambda: self._run(picture), urgency)
            return job

    def encoded(self, picture: Picture) -> None:
        """An image was encoded ahead."""
        if not self.automatic or picture.id in self._tried:
            return
        self._tried.add(picture.id)
        try:
            begun = self.store.load(picture).revision > 0
        except DamagedFileError:
            return
        if not begun:
            self.request(picture, Urgency.HINT)

    def _run(self, picture: Picture) -> tuple[int, int]:
        with self._lock:
            job = self._jobs[picture.id]
        try:
            found = self._search(picture) if self.boxes is None else self._from_boxes(picture)
            return self._add(picture, found, only_fresh=job.urgency >= Urgency.HINT)
        except Exception as error:
            if job.urgency >= Urgency.HINT:  # nobody waits who could be told
                logger.warning("no proposals for %r: %s", picture.relative, error)
            raise
        finally:
            with self._lock:
                del self._jobs[picture.id]

    def _search(self, picture: Picture) -> list[_Found]:
        predictor = self.embeddings.predictor(picture)
        generator = SamAutomaticMaskGenerator.preset(
            self.embeddings.model,
            "fast",
            output_mode="coco_rle",
            points_per_batch=self._together,
            progress=lambda *_: self.worker.run_more_urgent(),
        )
        records = generator.generate(picture.read(), features=predictor.get_features())
        return [_Found(_rle(record["segmentation"]), record["predicted_iou"], "") for record in records]

    def _from_boxes(self, picture: Picture) -> list[_Found]:
        given = (self.boxes or {}).get(picture.id)
        if given is None:
            return []
        return list(self._segmented(self.embeddings.predictor(picture), given))

    def _segmented(self, predictor: SamPredictor, given: ImageBoxes) -> Iterator[_Found]:
        # A zoom and edges of the picture need its pixels; only its features are kept.
        refine = without_zoom(predictor.model.default_refine)
        for start in range(0, len(given.boxes), self._together):
            self.worker.run_more_urgent()
            boxes = given.boxes[start : start + self._together]
            masks, scores, _ = predictor.predict(
                box=boxes, multimask_output=False, refine=refine, upsampling="bilinear"
            )
            rows = zip(encode_masks(masks[:, 0]), scores[:, 0].tolist(), given.categories[start:], strict=False)
            for rle, score, category in rows:
                yield _Found(rle, score, self.labels[category - 1] if self.labels else "")

    def _add(self, picture: Picture, found: list[_Found], *, only_fresh: bool) -> tuple[int, int]:
        added = 0

        def extend(current: Annotations) -> Annotations:
            nonlocal added
            if only_fresh and current.revision > 0:
                return current
            chosen = choose(found, current)[: MAX_OBJECTS - len(current.objects)]
            added = len(chosen)
            if not chosen:
                return current
            objects = [_as_object(item, "proposal" if self.boxes is None else "file") for item in chosen]
            proposals = {item.id: Proposal(rle=item.rle, score=item.score) for item in objects}
            return current.model_copy(
                update={"objects": [*current.objects, *objects], "proposals": {**current.proposals, **proposals}}
            )

        return self.store.update(picture, extend).revision, added


def choose(found: list[_Found], current: Annotations) -> list[_Found]:
    """The best of what was found, without what is there already or was decided on before."""
    from pycocotools import mask as coco

    usable = [item for item in found if rle_area(item.rle) > 0 and math.isfinite(item.score)]
    best = sorted(usable, key=lambda item: -item.score)
    rles = [dict(item.rle) for item in best]
    keep = [True] * len(best)
    there = [dict(item.rle.as_rle()) for item in current.objects]
    if rles and there:
        of_new = coco.iou(rles, there, [1] * len(there)).max(axis=1)  # shares of the first one's area
        of_old = coco.iou(there, rles, [1] * len(rles)).max(axis=0)
        keep = [bool(ok) for ok in (of_new <= OVERLAP) & (of_old <= OVERLAP)]
    before = [dict(item.rle.as_rle()) for item in current.proposals.values()]
    if rles and before:
        again = coco.iou(rles, before, [0] * len(before)).max(axis=1) > SAME
        keep = [ok and not bool(known) for ok, known in zip(keep, again, strict=True)]
    return [item for item, ok in zip(best, keep, strict=True) if ok][:MAX_PROPOSALS]


def read_boxes(file: Path, pictures: Mapping[str, Picture], labels: Sequence[str]) -> dict[str, ImageBoxes]:
    """A detector's boxes by image id.

    Args:
        file: COCO results (see `hqsam.data.detections`), where "image_id" is the picture's path relative to its folder.
        pictures: by id.
        labels: names of categories 1, 2, ...; without any, categories do not matter.

    Raises:
        DataError: the file is malformed, or names pictures or categories that do not exist.
    """
    truth = InstanceTruth(
        images={picture.relative: TrueImage((picture.height, picture.width)) for picture in pictures.values()},
        categories=dict.fromkeys(range(1, len(labels) + 1), ""),
        instances=(),
    )
    found = read_detections(file, truth, class_agnostic=not labels)
    return {picture.id: found.images[picture.relative] for picture in pictures.values()}


def _rle(record: Mapping[str, Any]) -> Rle:
    return Rle(size=list(record["size"]), counts=record["counts"])


def _as_object(found: _Found, source: Source) -> MaskObject:
    return MaskObject.model_validate(
        {
            "id": uuid.uuid4().hex,
            "label": found.label,
            "rle": RleMessage(size=(found.rle["size"][0], found.rle["size"][1]), counts=found.rle["counts"]),
            "status": "proposed",
            "source": source,
            "score": found.score,
        }
    )
