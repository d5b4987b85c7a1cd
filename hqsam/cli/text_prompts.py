"""The `--text` options of `hqsam predict`: reading them, answering them, and what they add to the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hqsam.predictor import SamPredictor
    from hqsam.text import TextMasks
    from hqsam.types import Fusion

Texts = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="PHRASE", help='What to segment, e.g. "a dog"; needs the text extra.'),
]
Detector = Annotated[
    str | None,
    typer.Option(
        "--detector",
        metavar="NAME_OR_FOLDER",
        help="Zero-shot detector for --text. Default: IDEA-Research/grounding-dino-tiny, downloaded once.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option("--text-threshold", metavar="SCORE", help="Lowest score of the detector that counts. Default: 0.3."),
]
Projection = Annotated[
    Path | None,
    typer.Option("--text-projection", metavar="FILE", help="Learned CLIP projection for --text, without a detector."),
]


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """Phrases, and what is to find them."""

    phrases: list[str]
    detector: str
    threshold: float
    projection: Path | None  # used instead of the detector


def make_text_request(
    texts: list[str] | None, detector: str | None, threshold: float | None, projection: Path | None
) -> TextRequest | None:
    """Options of the command line; None without `--text`.

    Raises:
        ValueError: options that contradict each other or lack `--text`, an empty phrase, a threshold outside 0..1.
    """
    extras = {"--detector": detector, "--text-threshold": threshold, "--text-projection": projection}
    given = [name for name, value in extras.items() if value is not None]
    if not texts:
        if given:
            raise ValueError(f"{given[0]} goes with --text, which is missing")
        return None
    if projection is not None and len(given) > 1:
        raise ValueError(f"--text-projection works without a detector; leave {given[0]} out")
    if not all(text.strip() for text in texts):
        raise ValueError(f"--text needs a phrase with at least one word, got {texts}")
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise ValueError(f"--text-threshold must be within 0..1, got {threshold}")
    return TextRequest(
        phrases=[text.strip() for text in texts],
        detector=detector or "IDEA-Research/grounding-dino-tiny",
        threshold=0.3 if threshold is None else threshold,
        projection=projection,
    )


class TextFinder:
    """The loaded detector, or the loaded CLIP with its projection.

    Args:
        request: what is asked.
        model: registry name of the SAM that will be used.
        device: where it is.

    Raises:
        ValueError: the text extra is missing, or what was named cannot be loaded or is of another SAM.
    """

    def __init__(self, request: TextRequest, model: str, device: str) -> None:
        from hqsam.text import load_detector, load_projection, load_prompter

        self.request = request
        if request.projection is None:
            self.detector = load_detector(request.detector, device=device)
        else:
            load_projection(request.projection)[1].require_sam(model)  # before a large CLIP is loaded
            self.prompter, _ = load_prompter(request.projection, device=device)

    def segment(
        self,
        predictor: SamPredictor,
        pixels: NDArray[np.uint8],
        points: Sequence[tuple[float, float, int]],
        *,
        multimask: bool,
        fusion: Fusion | None,
    ) -> TextMasks:
        """Masks of the set image; points correct the one object that is meant then."""
        import numpy as np

        from hqsam.text import segment_detections, segment_tokens

        coords = np.array([point[:2] for point in points]) if points else None
        labels = np.array([point[2] for point in points]) if points else None
        request = self.request
        if request.projection is not None:
            tokens = self.prompter.tokens(request.phrases)
            return segment_tokens(predictor, tokens, coords, labels, multimask=multimask, fusion=fusion)
        found = self.detector.detect(pixels, request.phrases, request.threshold)
        return segment_detections(predictor, found, coords, labels, multimask=multimask, fusion=fusion)

    def describe(self, record: dict[str, Any], found: TextMasks) -> tuple[list[list[float]], list[str]]:
        """Add to a record what was asked, and to each mask its phrase, and the detector's score and box.

        Returns:
            The boxes that the masks were made from, and a line for each phrase that nothing answers.
        """
        request, boxes = self.request, found.detections
        if request.projection is None:
            record["text"] = {"phrases": request.phrases, "detector": request.detector, "threshold": request.threshold}
        else:
            record["text"] = {"phrases": request.phrases, "projection": str(request.projection)}
        for row, entry in enumerate(record["masks"]):
            entry["text"] = request.phrases[int(found.phrase_index[row])]
            if boxes is not None:
                entry["detector_score"] = round(float(boxes.scores[row]), 6)
                entry["detector_box"] = [round(float(value), 2) for value in boxes.boxes[row]]
        answered = set(found.phrase_index.tolist())
        missing = [phrase for index, phrase in enumerate(request.phrases) if index not in answered]
        notes = [f"nothing found for {phrase!r} with a score above {request.threshold:g}" for phrase in missing]
        return [] if boxes is None else boxes.boxes.tolist(), notes
