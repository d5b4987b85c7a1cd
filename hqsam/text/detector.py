"""Text to boxes with the zero-shot detectors of transformers: Grounding DINO, OWL-ViT, OWLv2."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hqsam.errors import HqsamError
from hqsam.images import as_rgb_uint8
from hqsam.text.detections import Detections, make_detections, suppress
from hqsam.text.extra import MissingExtraError, first_line, import_extra
from hqsam.text.families import FAMILIES

logger = logging.getLogger(__name__)

DEFAULT_DETECTOR = "IDEA-Research/grounding-dino-tiny"
DEFAULT_THRESHOLD = 0.3
MAX_DETECTIONS = 100
"""Boxes kept of one image: a low threshold lets hundreds pass, and each becomes a mask of the picture's size."""


class DetectorError(HqsamError):
    """A text detector cannot be loaded, or is of a kind that is not known here."""


class TransformersDetector:
    """A zero-shot detector of transformers behind the `TextDetector` protocol.

    Args:
        model: in eval mode, of one of the `FAMILIES`.
        processor: the model's own.
        nms_iou: keep only the best of boxes that overlap by more than this, whatever their phrases; None keeps all.
        max_detections: the best so many are returned.

    Raises:
        DetectorError: another kind of model.
    """

    def __init__(
        self, model: Any, processor: Any, *, nms_iou: float | None = 0.7, max_detections: int = MAX_DETECTIONS
    ) -> None:
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise DetectorError(f"a text detector must be one of {', '.join(sorted(FAMILIES))}, got {kind!r}")
        self.model = model
        self.processor = processor
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self._family = FAMILIES[kind]

    @torch.no_grad()
    def detect(
        self, image: NDArray[np.uint8], phrases: Sequence[str], threshold: float = DEFAULT_THRESHOLD
    ) -> Detections:
        """Find what the phrases name; see `TextDetector.detect`.

        Raises:
            ValueError: no phrase, an empty one, more text than the model reads, a threshold outside 0..1, or an image
                that is not uint8.
        """
        rgb = as_rgb_uint8(image)
        phrases = check_phrases(phrases)
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"the text threshold must be within 0..1, got {threshold}")
        inputs = self._family.encode(self.model, self.processor, rgb, phrases).to(self.model.device)
        size = (rgb.shape[0], rgb.shape[1])
        raw = self._family.decode(self.processor, self.model(**inputs), inputs, threshold, size, len(phrases))
        boxes, scores, phrase_index = (tensor.float().cpu().numpy() for tensor in raw)
        found = make_detections(boxes, scores, phrase_index, size)
        if self.nms_iou is not None:
            found = suppress(found, self.nms_iou)
        if len(found.scores) > self.max_detections:
            logger.warning("%d boxes found, the best %d are kept", len(found.scores), self.max_detections)
        return found.rows(slice(self.max_detections))


def load_detector(
    name: str | PathLike[str] = DEFAULT_DETECTOR,
    *,
    device: str | torch.device = "cpu",
    nms_iou: float | None = 0.7,
) -> TransformersDetector:
    """Load a detector by its name on the Hugging Face hub, or from a local folder.

    Args:
        name: e.g. "IDEA-Research/grounding-dino-tiny", "google/owlv2-base-patch16-ensemble", or a folder that
            `save_pretrained` wrote. transformers downloads and caches what is not local.
        device: where the model goes; weights are float32.
        nms_iou: see `TransformersDetector`.

    Raises:
        MissingExtraError: transformers is not installed.
        DetectorError: not found, no network, not a zero-shot detector, or a file that lacks some of its weights.
    """
    transformers = import_extra("transformers")
    try:
        model, loading = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
        processor = transformers.AutoProcessor.from_pretrained(name)
    except MissingExtraError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, AttributeError) as error:
        raise DetectorError(
            f"text detector {str(name)!r} cannot be loaded: {first_line(error)} "
            "Give a name of the Hugging Face hub, or the folder of a model that was downloaded."
        ) from error
    # transformers fills what a file lacks with random numbers and goes on
    parameters = {key for key, _ in model.named_parameters()}
    missing = sorted(parameters.intersection(loading["missing_keys"]))
    if missing:
        raise DetectorError(f"text detector {str(name)!r} lacks {len(missing)} of its weights, e.g. {missing[0]}")
    return TransformersDetector(model.eval().to(device), processor, nms_iou=nms_iou)


def check_phrases(phrases: Sequence[str]) -> list[str]:
    """Phrases without surrounding blanks.

    Raises:
        ValueError: one string instead of a sequence, none at all, or one without words.
    """
    if isinstance(phrases, str):
        raise ValueError(f"phrases are a list of strings, got the string {phrases!r}")
    cleaned = [phrase.strip() for phrase in phrases]
    if not cleaned or not all(cleaned):
        raise ValueError(f"text prompts must be phrases with at least one word, got {list(phrases)!r}")
    return cleaned
