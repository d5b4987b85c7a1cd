"""Everything behind the addresses of the server, put together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqsam.errors import DataError
from hqsam.features import weights_fingerprint
from hqsam.models import Sam
from hqsam.serve.browser import DECODER_LAYOUT, BrowserDecoder, pickled_model
from hqsam.serve.coco import CocoKeeper
from hqsam.serve.embeddings import ON_DISK, Embeddings
from hqsam.serve.following import Followed, Follower, ModelFile
from hqsam.serve.pictures import Picture, find_pictures
from hqsam.serve.prompting import Answers
from hqsam.serve.proposals import Proposer, read_boxes
from hqsam.serve.store import Annotations, AnnotationStore, DamagedFileError
from hqsam.serve.tally import Tally, statistics, tally
from hqsam.serve.worker import Urgency, Worker

logger = logging.getLogger(__name__)

LABEL_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is served, and how.

    Attributes:
        folder: of the pictures.
        out: of the annotations.
        model_name: for the page.
        labels: what objects may be called; the page lets people add others.
        cache: of embeddings and of the browser's decoder; None is `.cache` in `out`.
        cache_gb: 10^9 bytes that the embeddings may take on disk.
        runtime: folder of onnxruntime-web; None is `runtime` in the cache.
        boxes: a detector's boxes, see `read_boxes`, which proposals are made from.
        proposals: make them for images ahead of the one that is looked at.
    """

    folder: Path
    out: Path
    model_name: str
    labels: Sequence[str] = ()
    cache: Path | None = None
    cache_gb: float = ON_DISK / 1e9
    runtime: Path | None = None
    boxes: Path | None = None
    proposals: bool = False

    @property
    def cache_folder(self) -> Path:
        """Where what can be made again is kept."""
        return self.out / ".cache" if self.cache is None else self.cache


class Service:
    """Pictures, annotations and the model.

    Args:
        settings: what is served.
        model: with weights, and the round that it is of.
        file: weights of newer rounds, see `ModelFile`.

    Raises:
        DataError: no pictures, labels that cannot be, or boxes that cannot be read.
    """

    def __init__(self, settings: Settings, model: Sam | Followed, file: ModelFile | None = None) -> None:
        self.settings = settings
        self.model, self.round = model if isinstance(model, Followed) else Followed(model, None)
        model = self.model
        self.store = open_store(settings)
        self.pictures = self.store.pictures
        self.fingerprint = weights_fingerprint(model)
        self.worker = Worker()
        features, disk = settings.cache_folder / "features", settings.cache_gb * 1e9
        self.embeddings = Embeddings(model, self.pictures, features, self.worker, disk=disk)
        self.answers = Answers()
        boxes = None if settings.boxes is None else read_boxes(settings.boxes, self.pictures, settings.labels)
        self.proposer = Proposer(
            self.embeddings,
            self.store,
            self.worker,
            boxes=boxes,
            labels=settings.labels,
            automatic=settings.proposals,
        )
        self.embeddings.encoded = self.proposer.encoded
        self.coco = CocoKeeper(self.store, settings.labels)
        self.store.changed = self.coco.changed
        self.browser = self._decoder(model)
        self.follower = None if file is None else Follower(file, self.use)

    def start(self) -> None:
        """Begin to work in the background, with the first pictures."""
        self.worker.start()
        self.coco.start()
        self.browser.start()
        if self.follower is not None:
            self.follower.start()
        self.embeddings.hint(list(self.pictures.values())[:2])

    def close(self) -> None:
        """End what runs in the background; everything is on disk then."""
        self.worker.close()
        if self.follower is not None:
            self.follower.close()
        self.browser.close()
        self.coco.close()

    def use(self, found: Followed) -> None:
        """Answer with another model from now on. Embeddings stay; answers to be fed back and the decoder are renewed.

        Raises:
            DataError: its encoder is another one; the old model stays.
        """
        before, fingerprint = self.browser, weights_fingerprint(found.model)

        def replace() -> None:
            self.embeddings.use_model(found.model)
            self.model, self.round = found
            self.fingerprint, self.answers = fingerprint, Answers()
            self.browser = self._decoder(found.model)

        # not within an encoder's run or a search, of which a part would be of another model
        self.worker.submit(replace, Urgency.HINT).future.result()
        before.close()
        self.browser.start()
        logger.info("masks are of the model of round %s now", self.round or "?")

    def _decoder(self, model: Sam) -> BrowserDecoder:
        settings = self.settings
        return BrowserDecoder(
            # never within an encoder's run, which leaves hooks in the model for as long as it takes
            lambda: self.worker.submit(lambda: pickled_model(model), Urgency.HINT).future.result(),
            settings.cache_folder / f"decoder{DECODER_LAYOUT}" / f"{self.fingerprint[:16]}.onnx",
            settings.cache_folder / "runtime" if settings.runtime is None else settings.runtime,
            settings.model_name,
        )

    def model_state(self) -> dict[str, Any]:
        """What the page is told about the model."""
        able = self.model.has_hq and self.model.head_state != "untrained"
        return {
            "name": self.settings.model_name,
            "fusions": ["sam", "hq", "sum"] if able else ["sam"],
            "default_fusion": self.model.resolve_fusion() if able else "sam",
            "image_size": self.model.image_size,
            "fingerprint": self.fingerprint,
            "round": self.round,
        }

    def counts(self) -> dict[str, int]:
        """Images by the state of the work on them."""
        counts = {"images": len(self.pictures), "todo": 0, "started": 0, "done": 0}
        for picture in self.pictures.values():
            found, _ = self._tally(picture)
            counts["started" if found is None else found.state] += 1
        return counts

    def summary(self, picture: Picture) -> dict[str, Any]:
        """One row of the list of images. One whose file is damaged is "started", with a "problem"."""
        found, problem = self._tally(picture)
        return {
            "id": picture.id,
            "name": picture.relative,
            "width": picture.width,
            "height": picture.height,
            "state": "started" if found is None else found.state,
            "objects": 0 if found is None else found.accepted,
            "proposals": 0 if found is None else found.open,
            "encoded": self.embeddings.is_encoded(picture),
            "problem": problem,
        }

    def statistics(self) -> dict[str, Any]:
        """Counts over all images whose files can be read."""
        tallies = (self._tally(picture)[0] for picture in self.pictures.values())
        return statistics(tally for tally in tallies if tally is not None)

    def embedding(self, picture: Picture, part: str) -> tuple[bytes, dict[str, str]]:
        """What the decoder reads of an image, as half-precision numbers, on the worker's thread.

        Args:
            picture: the image.
            part: "image_embeddings" (1, 256, h, w) or "hq_features" (1, 32, 4h, 4w).

        Returns:
            The numbers, little-endian, and headers that say what they are.

        Raises:
            DataError: HQ features of plain SAM.
        """
        predictor = self.embeddings.predictor(picture)
        tensor = predictor.get_image_embedding() if part == "image_embeddings" else predictor.hq_features()
        if tensor is None or predictor.input_size is None:
            raise DataError("this model is plain SAM and has no hq_features")
        array = tensor.float().cpu().numpy().astype("<f2")
        return array.tobytes(), {
            "X-Shape": ",".join(map(str, array.shape)),
            "X-Input-Size": ",".join(map(str, predictor.input_size)),
            "X-Fingerprint": self.fingerprint,
        }

    def annotations(self, picture: Picture, content: Annotations | None = None) -> dict[str, Any]:
        """What the page is told about the objects of an image."""
        content = self.store.load(picture) if content is None else content
        return {
            "revision": content.revision,
            "width": picture.width,
            "height": picture.height,
            "state": content.state,
            "objects": [item.described(picture.height, picture.width) for item in content.objects],
        }

    def _tally(self, picture: Picture) -> tuple[Tally | None, str | None]:
        """Counts of an image, or what is wrong with its file."""
        try:
            return self.store.summary(picture, tally), None
        except DamagedFileError as error:
            return None, str(error)


def open_store(settings: Settings) -> AnnotationStore:
    """The annotation files alone, which needs no model.

    Raises:
        DataError: no pictures, or labels that cannot be.
    """
    if settings.folder.resolve() == settings.out.resolve():
        raise DataError(f"--out is the folder of pictures; annotations need one of their own: {settings.out}")
    for label in settings.labels:
        if not label or len(label) > LABEL_LENGTH or not label.isprintable():
            raise DataError(f"a label is plain text of at most {LABEL_LENGTH} characters, got {label!r}")
    pictures = find_pictures(settings.folder, settings.out)
    return AnnotationStore(settings.out, {picture.id: picture for picture in pictures})
