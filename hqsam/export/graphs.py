"""What is exported, as modules: the image encoder with its preprocessing, and the decoder of many prompts.

They hold no arithmetic of their own: the model's layers are called in their order, without the branches and pieces that
depend on data. Shape legend: B images, N prompts of one image, K tokens of a prompt, M masks of a prompt, S input size,
(h, w) = (S / 16, S / 16).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.export.rewriting import PortableOperators
from hqsam.models import HQMaskDecoder, MaskDecoder, Sam
from hqsam.models.mask_decoder import DecoderInput
from hqsam.models.selection import ALL_CANDIDATES, MULTIMASK_CANDIDATES, SINGLE_CANDIDATE
from hqsam.types import PAD, DecoderOutput, Fusion, ImageFeatures, Prompts

Masks = Literal["all", "single", "best", "auto"]
"""Masks of a prompt: SAM's four candidates, the one of clear prompts, the best-scored of the three of ambiguous ones,
or what SAM's own export chooses by the number of points."""

MASKS: tuple[Masks, ...] = ("all", "single", "best", "auto")

CANDIDATES_OF: dict[Masks, tuple[int, ...]] = {
    "all": ALL_CANDIDATES,
    "single": SINGLE_CANDIDATE,
    "best": MULTIMASK_CANDIDATES,
    "auto": ALL_CANDIDATES,
}
_FEW_TOKENS = 2.5
"""SAM's export takes prompts of one or two tokens for ambiguous ones."""
_MORE_THAN_ANY_SCORE = 1000.0


class EncoderGraph(nn.Module):
    """Resized pictures to what the decoder reads.

    Args:
        model: the model.
        use_hq: compute what an HQ head needs.
        published: under the published name and layout, so that the decoder computes the HQ features.
    """

    def __init__(self, model: Sam, *, use_hq: bool, published: bool = False) -> None:
        super().__init__()
        self.model, self.use_hq, self.published = model, use_hq, published

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, height, width, 3) uint8 RGB of at most S pixels a side -> float32 tensors, see `output_names`."""
        with PortableOperators():
            # `Sam.preprocess` without its check, which would bind the height to the width
            x = self.model.preprocess_canvas(image.permute(0, 3, 1, 2))
            x = F.pad(x, (0, self.model.image_size - x.shape[3], 0, self.model.image_size - x.shape[2]))
            features: ImageFeatures = self.model.image_encoder(x)
            embedding = features.image_embedding.float()
            if not self.use_hq:
                return (embedding,)
            if self.published:
                return embedding, features.early_feature.permute(0, 2, 3, 1)[None].float()
            return embedding, self.model.hq_features(features).float()

    @property
    def output_names(self) -> list[str]:
        """`image_embeddings` (B, 256, h, w); `hq_features` (B, 32, 4h, 4w) or `interm_embeddings` (1, B, h, w, C)."""
        return ["image_embeddings", *image_inputs(self.use_hq, self.published)]


def image_inputs(use_hq: bool, published: bool) -> list[str]:
    """What a decoder reads of an image beside its embedding."""
    if not use_hq:
        return []
    return ["interm_embeddings" if published else "hq_features"]


class DecoderGraph(nn.Module):
    """Prompts of one image to low-resolution masks.

    Args:
        model: the model.
        fusion: what the masks are made of.
        masks: which masks.
        published: read `interm_embeddings` instead of `hq_features`.
        separate: with "sum", return both summands instead of the sum; of "all" or "single" masks.
        crop: make masks of as much of the picture as `hq_features` are of.
        winograd: compute 3x3 convolutions as `hqsam.export.winograd` does.
    """

    def __init__(
        self,
        model: Sam,
        *,
        fusion: Fusion,
        masks: Masks,
        published: bool = False,
        separate: bool = False,
        crop: bool = False,
        winograd: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.fusion, self.choice, self.published = model, fusion, masks, published
        self.separate, self.crop, self.winograd = separate, crop, winograd

    @property
    def input_names(self) -> list[str]:
        """In the order of `forward`; the names of SAM's own export."""
        of_image = ["image_embeddings", *image_inputs(self.fusion != "sam", self.published)]
        return [*of_image, "point_coords", "point_labels", "mask_input", "has_mask_input"]

    @property
    def output_names(self) -> list[str]:
        """In the order of `forward`."""
        logits = ["low_res_masks_sam", "low_res_masks_hq"] if self.separate else ["low_res_masks"]
        return [*logits, "iou_predictions"]

    def forward(self, image_embeddings: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Decode.

        Args:
            image_embeddings: (1, 256, h, w).
            inputs: (1, 32, 4h, 4w) `hq_features`, or (1, 1, h, w, C) `interm_embeddings`, if HQ takes part; with
                `crop` the top-left (1, 32, 4a, 4b) of the features, and masks are of that size;
                `point_coords` (N, K, 2) xy in model-input pixels; `point_labels` (N, K), the kinds of `hqsam.types`;
                `mask_input` (N, 1, 4h, 4w) logits; `has_mask_input` (N,), 1 where a mask counts, else 0.

        Returns:
            float32 `low_res_masks` (N, M, 4h, 4w) and `iou_predictions` (N, M). Separate: SAM's logits beside the HQ
            token (N, M, 4h, 4w), HQ's (N, 1, 4h, 4w) and the scores.
        """
        *of_image, coords, labels, mask, has_mask = inputs
        with PortableOperators(winograd=self.winograd):
            encoder = self.model.prompt_encoder
            embedding = image_embeddings.to(self.model.dtype)
            prompts = Prompts(coords, labels.to(torch.int64), mask, has_mask > 0.5)
            keep = prompts.kinds != PAD
            tokens = encoder.embed_tokens(prompts.coords, prompts.kinds)
            dense = encoder.embed_dense(prompts)
            cells = (of_image[0].shape[2] // 4, of_image[0].shape[3] // 4) if self.crop else None
            arguments = DecoderInput(embedding, encoder.get_dense_pe(), tokens, dense, keep, cells=cells)
            output = self._decode(arguments, *of_image)
            if self.separate and output.hq_logits is not None:
                return output.sam_logits.float(), output.hq_logits.float(), output.iou.float()
            logits, iou = self._choose(output, keep)
            return logits.float(), iou.float()

    def _decode(self, inputs: DecoderInput, of_image: Tensor | None = None) -> DecoderOutput:
        decoder, candidates = self.model.mask_decoder, CANDIDATES_OF[self.choice]
        if of_image is None:
            trunk = decoder.trunk if isinstance(decoder, HQMaskDecoder) else decoder
            assert isinstance(trunk, MaskDecoder)  # noqa: S101
            return trunk.forward(inputs, candidates)
        feature = of_image.to(self.model.dtype)
        if self.published:
            feature = self.model.hq_features(ImageFeatures(inputs.image_embedding, feature[0].permute(0, 3, 1, 2)))
        assert isinstance(decoder, HQMaskDecoder)  # noqa: S101
        return decoder.forward(inputs, feature, candidates)

    def _choose(self, output: DecoderOutput, keep: Tensor) -> tuple[Tensor, Tensor]:
        logits, iou = output.sam_logits, output.iou
        if self.choice in ("best", "auto"):
            score = iou
            if self.choice == "auto":
                clear = keep.sum(1, keepdim=True).to(iou.dtype) - _FEW_TOKENS
                score = iou + clear * iou.new_tensor([_MORE_THAN_ANY_SCORE, 0.0, 0.0, 0.0])
            # a comparison instead of an index: every runtime has it
            chosen = torch.arange(iou.shape[1], device=iou.device) == score.argmax(1, keepdim=True)  # (N, M)
            iou = torch.where(chosen, iou, 0.0).sum(1, keepdim=True)
            logits = torch.where(chosen[:, :, None, None], logits, 0.0).sum(1, keepdim=True)
        if self.fusion == "sam" or output.hq_logits is None:
            return logits, iou
        return (output.hq_logits if self.fusion == "hq" else logits + output.hq_logits), iou
