"""Answers to clicks and boxes from encoded images, on the worker's thread."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hqsam.predictor import SamPredictor
from hqsam.rle import encode_masks
from hqsam.serve.messages import PredictRequest, PreviousMask, RefusedError
from hqsam.serve.pictures import Picture

KEPT_BYTES = 256 * 2**20
"""Of logits that can be fed back: 340 answers of three masks at an input size of 1024, of all who annotate."""


class _Answer(NamedTuple):
    image: str
    logits: NDArray[np.float32]  # (C, 4h, 4w)


class Answers:
    """The logits of the last answers, to be fed back as mask prompts.

    Args:
        capacity: bytes of logits that are kept; the newest answer always is.
    """

    def __init__(self, capacity: int = KEPT_BYTES) -> None:
        self.capacity = capacity
        self._bytes = 0
        self._kept: OrderedDict[str, _Answer] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, picture: Picture, logits: NDArray[np.float32]) -> str:
        """Keep the logits (C, 4h, 4w) of an answer; its name."""
        name = uuid.uuid4().hex
        with self._lock:
            self._kept[name] = _Answer(picture.id, logits)
            self._bytes += logits.nbytes
            while self._bytes > self.capacity and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].logits.nbytes
        return name

    def logits(self, picture: Picture, previous: PreviousMask) -> NDArray[np.float32]:
        """(1, 4h, 4w) of one candidate of an earlier answer.

        Raises:
            ValueError: the answer is of another image or too old, or has no such candidate.
        """
        with self._lock:
            answer = self._kept.get(previous.answer)
            if answer is None or answer.image != picture.id:
                raise ValueError("the previous answer is not known (any more) for this image; ask without it")
            self._kept.move_to_end(previous.answer)
        if previous.candidate >= len(answer.logits):
            raise ValueError(f"the previous answer has {len(answer.logits)} masks, there is no {previous.candidate}")
        return answer.logits[previous.candidate : previous.candidate + 1]


def answer(predictor: SamPredictor, picture: Picture, request: PredictRequest, answers: Answers) -> dict[str, Any]:
    """Masks for the prompts, with their scores, and a name under which they can be fed back.

    Raises:
        RefusedError: prompts that the predictor refuses, or a previous answer that is not known.
    """
    start = time.perf_counter()
    points, labels = [point[:2] for point in request.points], [point[2] for point in request.points]
    try:
        masks, scores, logits = predictor.predict(
            point_coords=points or None,
            point_labels=labels or None,
            box=request.box,
            mask_input=None if request.previous is None else answers.logits(picture, request.previous),
            multimask_output=request.multimask,
            fusion=request.fusion,
            candidates="all" if request.multimask else "best",
            heed_clicks=True,  # what the object is, is for the one who clicks to say
            refine="none",  # clicks feed answers back by themselves, and a page's own decoder has to answer alike
            upsampling="bilinear",
            padding_logits=False,
        )
    except ValueError as error:
        raise RefusedError(str(error)) from error
    found = [
        {"rle": rle, "score": score if math.isfinite(score) else None}
        for rle, score in zip(encode_masks(masks), scores.tolist(), strict=True)
    ]
    name = answers.keep(picture, logits)
    return {"answer": name, "seconds": round(time.perf_counter() - start, 4), "masks": found}
