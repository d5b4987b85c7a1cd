"""Where zero-shot detectors differ: how phrases go in, and how boxes and phrases come out.

Two families of transformers' models are known. Grounding DINO reads all phrases as one sentence, each closed by a
period, and scores every box against every token. OWL-ViT and OWLv2 read a list and score every box against every
phrase.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RawBoxes(NamedTuple):
    """A model's boxes above the threshold, on whatever device, not yet cut at the border."""

    boxes: Tensor  # (N, 4) XYXY in original pixels
    scores: Tensor  # (N,)
    phrase_index: Tensor  # (N,)


class Family(Protocol):
    """One way to ask and to read the answer."""

    def encode(self, model: Any, processor: Any, image: NDArray[np.uint8], phrases: Sequence[str]) -> Any:
        """The model's inputs, a mapping of tensors with a batch of one.

        Raises:
            ValueError: a phrase without words, or more words than the model reads.
        """

    def decode(
        self, processor: Any, outputs: Any, inputs: Any, threshold: float, size: tuple[int, int], count: int
    ) -> RawBoxes:
        """Boxes above the threshold in an image of (H, W), each with one of `count` phrases."""


class GroundingFamily:
    """Grounding DINO and MM Grounding DINO."""

    def encode(self, model: Any, processor: Any, image: NDArray[np.uint8], phrases: Sequence[str]) -> Any:
        """See `Family.encode`. A period or question mark inside a phrase would split it, so it becomes a space."""
        cleaned = [" ".join(re.sub(r"[.?]", " ", phrase).lower().split()) for phrase in phrases]
        for phrase, words in zip(phrases, cleaned, strict=True):
            if not words:
                raise ValueError(f"a text prompt needs at least one word, got {phrase!r}")
        inputs = processor(images=image, text=". ".join(cleaned) + ".", return_tensors="pt")
        length, limit = inputs["input_ids"].shape[1], int(model.config.max_text_len)
        if length > limit:
            raise ValueError(f"the text prompts are {length} tokens together, this detector reads {limit}; use fewer")
        return inputs

    def decode(
        self, processor: Any, outputs: Any, inputs: Any, threshold: float, size: tuple[int, int], count: int
    ) -> RawBoxes:
        """See `Family.decode`.

        The label text of the processor joins all tokens above a second threshold, also of several phrases; here a box
        belongs to the phrase that holds its strongest token.
        """
        found = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], threshold=threshold, text_threshold=threshold, target_sizes=[size]
        )[0]
        scores = outputs.logits[0].sigmoid()  # (Q, tokens)
        scores = scores[scores.amax(dim=1) > threshold]
        spans = self._spans(processor.tokenizer, inputs["input_ids"][0].tolist(), count)
        per_phrase = torch.stack([scores[:, span].amax(dim=1) for span in spans], dim=1)  # (N, count)
        return RawBoxes(found["boxes"], found["scores"], per_phrase.argmax(dim=1))

    @staticmethod
    def _spans(tokenizer: Any, ids: list[int], count: int) -> list[list[int]]:
        """Token positions of each phrase."""
        period = tokenizer.convert_tokens_to_ids(".")
        outside = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
        spans: list[list[int]] = [[]]
        for position, token in enumerate(ids):
            if token == period:
                spans.append([])
            elif token not in outside:
                spans[-1].append(position)
        spans = [span for span in spans if span]
        if len(spans) != count:
            raise ValueError(f"the detector's tokenizer reads {len(spans)} phrases where {count} were given")
        return spans


class OwlFamily:
    """OWL-ViT and OWLv2."""

    def encode(self, model: Any, processor: Any, image: NDArray[np.uint8], phrases: Sequence[str]) -> Any:
        """See `Family.encode`."""
        limit = int(model.config.text_config.max_position_embeddings)
        for phrase in phrases:
            length = len(processor.tokenizer(phrase)["input_ids"])
            if length > limit:
                raise ValueError(f"the text prompt {phrase!r} is {length} tokens, this detector reads {limit}")
        queries = [phrase.strip() for phrase in phrases]
        return processor(images=image, text=[queries], return_tensors="pt", padding="max_length", max_length=limit)

    def decode(
        self, processor: Any, outputs: Any, inputs: Any, threshold: float, size: tuple[int, int], count: int
    ) -> RawBoxes:
        """See `Family.decode`."""
        found = processor.post_process_grounded_object_detection(outputs, threshold=threshold, target_sizes=[size])[0]
        return RawBoxes(found["boxes"], found["scores"], found["labels"])


FAMILIES: dict[str, Family] = {
    "grounding-dino": GroundingFamily(),
    "mm-grounding-dino": GroundingFamily(),
    "owlvit": OwlFamily(),
    "owlv2": OwlFamily(),
}
"""By `model_type` of a transformers configuration."""
