"""Prompts through the prompt encoder and a mask decoder, a few at a time, and no more of their masks than is looked at.

Shape legend: B images, N prompts over all images, M candidates, C = 256 channels, (h, w) the image embedding's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hqsam.models.heap import let_heap_keep
from hqsam.models.hq_decoder import HQMaskDecoder
from hqsam.models.mask_decoder import DecoderInput, MaskDecoder, ScoreFloor
from hqsam.models.prompt_encoder import PromptEncoder
from hqsam.models.transformer import ImageTokens
from hqsam.types import OUTSIDE_LOGIT, DecoderOutput, ImageFeatures, Prompts

CPU_CHUNK, GPU_CHUNK = 2, 32
"""Prompts decoded at once. On a CPU the largest map has 8 MB a prompt, and glibc maps blocks above 32 MB anew each time
they are needed, a page fault for every 4 KB; few prompts also stay in the cache. One at a time has smaller products."""

_PIXELS = 4
"""Input pixels along a side of a low-resolution logit; an embedding's cell has as many logits along its side."""
_REACH = 2
"""Logits on each side that one depends on through the HQ head's two 3x3 convolutions."""


class Shown(NamedTuple):
    """The top-left part of the input that shows the image; the rest is padding."""

    cells: tuple[int, int]  # rows and columns of the embedding's grid whose logits are computed
    logits: tuple[int, int]  # rows and columns of logits that are right

    @classmethod
    def of_input(cls, input_hw: tuple[int, int], grid_hw: tuple[int, int]) -> Shown:
        """Every logit that SAM's upsampling reads for pixels of the image, none of which is at a cut.

        Args:
            input_hw: (height, width) of the resized image in input pixels.
            grid_hw: (h, w).

        Raises:
            ValueError: the image is larger than the input, or has no pixel.
        """
        pixels = tuple(_PIXELS**2 * cells for cells in grid_hw)
        if not all(0 < side <= whole for side, whole in zip(input_hw, pixels, strict=True)):
            raise ValueError(f"an image inside an input of {pixels} pixels cannot be of size {tuple(input_hw)}")
        sides = [_shown_along(*pair) for pair in zip(input_hw, grid_hw, strict=True)]
        return cls((sides[0][0], sides[1][0]), (sides[0][1], sides[1][1]))

    def cut(self, feature: Tensor) -> Tensor:
        """The cells' part of a map of four times the grid's size, (..., 4h, 4w)."""
        rows, columns = (_PIXELS * cells for cells in self.cells)
        return feature[..., :rows, :columns].contiguous()

    def spread(self, logits: Tensor, grid_hw: tuple[int, int], outside: float = OUTSIDE_LOGIT) -> Tensor:
        """The right ones of some logits (..., rows, columns) as logits of the whole input, (..., 4h, 4w)."""
        (rows, columns), (h, w) = self.logits, grid_hw
        missing = (0, _PIXELS * w - columns, 0, _PIXELS * h - rows)
        return F.pad(logits[..., :rows, :columns], missing, value=outside)


def _shown_along(pixels: int, cells: int) -> tuple[int, int]:
    read = math.ceil(pixels / _PIXELS) + 1  # bilinear: one beyond the last
    made = math.ceil((read + _REACH) / _PIXELS)
    return (cells, cells * _PIXELS) if made >= cells else (made, read)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What is the same for all prompts of one call.

    Attributes:
        prompt_encoder: the model's.
        mask_decoder: the model's.
        features: of B images.
        image_pe: (1, C, h, w).
        tokens: the first block's part of the images; None where prompts have masks, or it is not worth it.
        image_feature: (B, C / 8, 4h, 4w) of the HQ head; None: HQ takes no part.
        candidates: SAM masks to compute.
        own_scores: let the score head judge.
        floor: leave out the prompts that score less.
        shown: compute only these logits.
    """

    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder | HQMaskDecoder
    features: ImageFeatures
    image_pe: Tensor
    tokens: ImageTokens | None
    image_feature: Tensor | None
    candidates: Sequence[int]
    own_scores: bool
    floor: ScoreFloor | None
    shown: Shown | None

    def in_chunks(self, prompts: Prompts, size: int) -> DecoderOutput:
        """At least one prompt, so many at a time."""
        if self.features.image_embedding.device.type == "cpu":
            let_heap_keep()
        # One block for the answers to all: blocks for each chunk's would lie between its temporaries, whose place could
        # then not be used again as a whole.
        whole, rows, done = None, [], 0
        for start in range(0, len(prompts), size):
            part = self.at_once(prompts[start : start + size])
            whole = whole or part.of_length(len(prompts))
            done = whole.put(part, done)
            rows += [] if part.rows is None else [part.rows + start]
        assert whole is not None  # noqa: S101  at least one prompt
        return whole.first(done)._replace(rows=torch.cat(rows) if rows else None)

    def at_once(self, prompts: Prompts) -> DecoderOutput:
        """All of these prompts together."""
        tokens = self.prompt_encoder.embed_tokens(prompts.coords, prompts.kinds)
        if prompts.tokens is not None:
            tokens = torch.cat([tokens, prompts.tokens.to(tokens.dtype)], dim=1)
        inputs = DecoderInput(
            self.features.image_embedding,
            self.image_pe,
            tokens,
            self.prompt_encoder.embed_dense(prompts),
            prompts.token_flags(),
            prompts.image_index if len(self.features.image_embedding) > 1 else None,
            self.tokens,
            None if self.shown is None else self.shown.cells,
        )
        output = self._decode(inputs)
        return output if self.shown is None else self._padded(output, self.shown)

    def _decode(self, inputs: DecoderInput) -> DecoderOutput:
        decoder = self.mask_decoder
        output: DecoderOutput  # the modules are called, not their `forward`: somebody may have hooks on them
        if isinstance(decoder, HQMaskDecoder) and self.image_feature is not None:
            output = decoder(inputs, self.image_feature, self.candidates, self.own_scores, self.floor)
        else:
            trunk = decoder.trunk if isinstance(decoder, HQMaskDecoder) else decoder
            output = trunk(inputs, self.candidates, self.floor)
        return output

    def _padded(self, output: DecoderOutput, shown: Shown) -> DecoderOutput:
        sam, hq, grid = output.sam_logits, output.hq_logits, self.features.grid_hw
        return output._replace(
            sam_logits=shown.spread(sam, grid), hq_logits=None if hq is None else shown.spread(hq, grid)
        )

    def nothing(self) -> DecoderOutput:
        """The answer to no prompts."""
        h, w = self.features.grid_hw
        empty, low, count = self.features.image_embedding.new_zeros, (_PIXELS * h, _PIXELS * w), len(self.candidates)
        return DecoderOutput(
            empty((0, count, *low)),
            None if self.image_feature is None else empty((0, 1, *low)),
            empty((0, count)),
            empty((0, 2, count, 2)) if self.own_scores else None,
            None if self.floor is None else empty(0, dtype=torch.int64),
        )
