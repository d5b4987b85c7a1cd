"""Everything behind the addresses of the server, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hqsam.errors import DataError
from hqsam.features import weights_fingerprint
from hqsam.models import Sam
from hqsam.serve.embeddings import Embeddings
from hqsam.serve.pictures import Picture, find_pictures
from hqsam.serve.prompting import Answers
from hqsam.serve.store import Annotations, AnnotationStore, DamagedFileError
from hqsam.serve.worker import Worker

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
        runtime: folder of onnxruntime-web; None is `runtime` in the cache.
    """

    folder: Path
    out: Path
    model_name: str
    labels: Sequence[str] = ()
    cache: Path | None = None
    runtime: Path | None = None

    @property
    def cache_folder(self) -> Path:
        """Where what can be made again is kept."""
        return self.out / ".cache" if self.cache is None else self.cache


class Service:
    """Pictures, annotations and the model.

    Args:
        settings: what is served.
        model: with weights.

    Raises:
        DataError: no pictures.
    """

    def __init__(self, settings: Settings, model: Sam) -> None:
        if settings.folder.resolve() == settings.out.resolve():
            raise DataError(
                f"annotations need a folder of their own, and --out is the folder of pictures: {settings.out}"
            )
        self.settings, self.model = settings, model
        self.pictures = {picture.id: picture for picture in find_pictures(settings.folder, settings.out)}
        self.fingerprint = weights_fingerprint(model)
        self.worker = Worker()
        self.store = AnnotationStore(settings.out, self.pictures)
        self.embeddings = Embeddings(model, self.pictures, settings.cache_folder / "features", self.worker)
        self.answers = Answers()

    def start(self) -> None:
        """Begin to work in the background."""
        self.worker.start()

    def close(self) -> None:
        """End what runs in the background."""
        self.worker.close()

    def model_state(self) -> dict[str, Any]:
        """What the page is told about the model."""
        able = self.model.has_hq and self.model.head_state != "untrained"
        return {
            "name": self.settings.model_name,
            "fusions": ["sam", "hq", "sum"] if able else ["sam"],
            "default_fusion": self.model.resolve_fusion() if able else "sam",
            "image_size": self.model.image_size,
            "fingerprint": self.fingerprint,
        }

    def counts(self) -> dict[str, int]:
        """Images by the state of the work on them."""
        counts = {"images": len(self.pictures), "todo": 0, "started": 0, "done": 0}
        for picture in self.pictures.values():
            counts[self.summary(picture)["state"]] += 1
        return counts

    def summary(self, picture: Picture) -> dict[str, Any]:
        """One row of the list of images. One whose file is damaged is "started", with a "problem"."""
        problem = None
        try:
            content = self.store.load(picture)
        except DamagedFileError as error:
            problem = str(error)
            content = Annotations(image=picture.relative, width=picture.width, height=picture.height, state="started")
        accepted = len(content.accepted())
        return {
            "id": picture.id,
            "name": picture.relative,
            "width": picture.width,
            "height": picture.height,
            "state": content.state,
            "objects": accepted,
            "proposals": len(content.objects) - accepted,
            "encoded": self.embeddings.is_encoded(picture),
            "problem": problem,
        }

    def browser_decoder(self) -> dict[str, Any]:
        """Whether the page can decode by itself."""
        return {"available": False, "decoder": "/decoder.onnx", "runtime": "/runtime/", "reason": "not yet"}

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
