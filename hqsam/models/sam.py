"""The whole model: encoder, prompt encoder, decoder; plain SAM or HQ-SAM by which decoder it holds.

Shape legend: B images, N prompts over all images, M candidates, S input size, (h, w) = (S / 16, S / 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.models.decoding import CPU_CHUNK, GPU_CHUNK, Decoding, Shown
from hqsam.models.heads import name_of_head
from hqsam.models.hq_decoder import HQHead, HQMaskDecoder
from hqsam.models.mask_decoder import MaskDecoder, ScoreFloor
from hqsam.models.parts import SAM_PARTS, TrainableParts
from hqsam.models.prepared import PreparedImages
from hqsam.models.prompt_encoder import PromptEncoder
from hqsam.models.score import ScoreHead
from hqsam.models.selection import ALL_CANDIDATES, MULTIMASK_CANDIDATES, SINGLE_CANDIDATE, require_score, select_masks
from hqsam.models.transformer import ImageTokens
from hqsam.postprocess import full_size_masks, upscale_logits
from hqsam.types import FUSIONS, DecoderOutput, Fusion, ImageFeatures, Prompts, Refine, ScoreSource, Upsampling

HeadState = Literal["random", "untrained", "trained"]


class Sam(TrainableParts):
    """SAM, or HQ-SAM when `mask_decoder` is an `HQMaskDecoder`.

    In an HQ model SAM's part is frozen by construction: no gradient, always in eval mode; only `hq_parameters` train,
    unless `set_trained` names parts of SAM too. In a plain SAM every part trains unless it chooses among them.

    Attributes:
        head_state: "random" after building; "untrained" once a file filled SAM's part and not the head; "trained"
            once a head was loaded or trained. Prediction with an untrained head is refused by the predictor.
        default_fusion: what is returned where a caller asks for nothing else; None is "sum" with an HQ head, "sam"
            without. `create_model` sets it from what a weights file recommends.
        default_score: the same for the score of masks that HQ takes part in; None is "sam".
        default_refine: how the predictor refines such masks where a caller asks for nothing else.
        default_heed_clicks: whether it lets such masks heed clicks (`hqsam.heeding`).
        default_upsampling: how it brings such masks to the size of an image that it knows.
    """

    mask_threshold: float = 0.0
    image_format: str = "RGB"
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder | HQMaskDecoder,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.register_buffer("pixel_mean", torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1), persistent=False)
        self.head_state: HeadState = "random"
        self.default_fusion: Fusion | None = None
        self.default_score: ScoreSource | None = None
        self.default_refine: Refine = "none"
        self.default_heed_clicks = False
        self.default_upsampling: Upsampling = "bilinear"
        self.set_trained(["head"] if self.has_hq else SAM_PARTS)

    @property
    def has_hq(self) -> bool:
        """Whether the model has an HQ head."""
        return isinstance(self.mask_decoder, HQMaskDecoder)

    @property
    def head(self) -> str | None:
        """Name of the head: "early+final+mask" is the published one, see `hqsam.models.heads`; None of a plain SAM."""
        return name_of_head(self.mask_decoder.head) if isinstance(self.mask_decoder, HQMaskDecoder) else None

    @property
    def score_head(self) -> ScoreHead | None:
        """What judges the returned mask; None where there is only SAM's own score, of SAM's mask."""
        return self.mask_decoder.score_head if isinstance(self.mask_decoder, HQMaskDecoder) else None

    def set_score_head(self, head: ScoreHead | None) -> None:
        """Give the model a score head, or take it away; it is moved to where the model is, and frozen.

        Raises:
            ValueError: a plain SAM, whose masks SAM's own score judges, or a model without an HQ token to read.
        """
        decoder = self.mask_decoder
        if not isinstance(decoder, HQMaskDecoder):
            raise ValueError("a plain SAM has no HQ head whose masks a score head could judge; build an hq_ model")
        if head is not None and not isinstance(decoder.head, HQHead):
            raise ValueError(f"a score head reads the HQ token, which a model with head={self.head!r} does not have")
        if head is not None:
            head = head.to(self.device, self.dtype).requires_grad_(False).train(self.training)
        decoder.score_head = head

    @property
    def image_size(self) -> int:
        """Side S of the square input in pixels."""
        return int(self.image_encoder.img_size)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return self.prompt_encoder.no_mask.weight.dtype

    def resolve_fusion(self, fusion: Fusion | None = None, hq_token_only: bool = False) -> Fusion:
        """What this model returns for what a caller asked.

        Args:
            fusion: the caller's choice, None for the model's default.
            hq_token_only: the published name of `fusion="hq"`.

        Raises:
            ValueError: unknown, contradictory, or more than the model can do: no HQ head, or an untrained one.
        """
        if fusion is not None and fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {FUSIONS}, got {fusion!r}")
        if hq_token_only and fusion not in (None, "hq"):
            raise ValueError(f"hq_token_only=True is fusion='hq', but fusion={fusion!r} was given too")
        default: Fusion = (self.default_fusion or "sum") if self.has_hq else "sam"
        chosen: Fusion = "hq" if hq_token_only else (fusion or default)
        if chosen != "sam" and not self.has_hq:
            raise ValueError(f"fusion={chosen!r} needs an HQ head, and this model is plain SAM")
        if chosen != "sam" and self.head_state == "untrained":
            raise ValueError(
                "the HQ head of this model is untrained: load a checkpoint that holds one, train it, "
                'or ask for plain SAM with fusion="sam"'
            )
        return chosen

    def resolve_score(self, score: ScoreSource | None = None, fusion: Fusion | None = None) -> ScoreSource:
        """Which score this model gives for what a caller asked.

        Args:
            score: the caller's choice, None for the model's default.
            fusion: what the masks are, from `resolve_fusion`; None for the model's default.

        Raises:
            ValueError: unknown, or a score of the mask itself without a score head or of plain SAM's masks.
        """
        fusion = self.resolve_fusion(fusion)
        if score is None:
            return "sam" if fusion == "sam" or self.score_head is None else (self.default_score or "sam")
        return require_score(score, fusion, has_score_head=self.score_head is not None)

    def preprocess(self, x: Tensor) -> Tensor:
        """Normalise and pad with zeros at the bottom and on the right.

        Args:
            x: (3, h, w) or (B, 3, h, w), RGB 0..255, h and w at most S.

        Returns:
            The same rank, S x S, in the model's dtype.
        """
        height, width = x.shape[-2:]
        if max(height, width) > self.image_size:
            raise ValueError(f"an input image has at most {self.image_size} pixels a side, got {height} x {width}")
        x = self._normalise(x)
        return F.pad(x, (0, self.image_size - width, 0, self.image_size - height))

    def preprocess_canvas(self, images: Tensor, input_hw: Tensor | None = None) -> Tensor:
        """Normalise images that are padded already.

        Args:
            images: (B, 3, S, S) RGB 0..255 with content at the top left.
            input_hw: (B, 2) height and width of the content; outside it the result is zero, as in `preprocess`.
                None keeps whatever the padding normalises to, as the published training does.

        Returns:
            (B, 3, S, S) in the model's dtype.
        """
        x = self._normalise(images)
        if input_hw is None:
            return x
        steps = torch.arange(self.image_size, device=x.device)
        rows, columns = (steps < input_hw[:, axis, None] for axis in (0, 1))  # (B, S)
        return x * (rows[:, None, :, None] & columns[:, None, None, :])

    def _normalise(self, x: Tensor) -> Tensor:
        # In float32 also for reduced weights: the buffers follow the model's dtype, the constants must not.
        dtype = torch.promote_types(self.dtype, torch.float32)
        return ((x.to(dtype) - self.pixel_mean.to(dtype)) / self.pixel_std.to(dtype)).to(self.dtype)

    def hq_features(self, features: ImageFeatures) -> Tensor:
        """The image-only part of the HQ fusion, to be computed once per image: (B, 32, 4h, 4w).

        (B, 0, 4h, 4w) for a head that fuses neither feature of the encoder.
        """
        if not isinstance(self.mask_decoder, HQMaskDecoder):
            raise ValueError("this is a plain SAM without an HQ head; build an hq_ model for HQ features")
        return self.mask_decoder.image_feature(self._cast(features))

    def prepare(self, features: ImageFeatures, *, use_hq: bool = True) -> PreparedImages:
        """What `decode` computes of images alone, to be kept for prompts that come one after the other.

        Whoever trains weights that it is computed from computes it anew for each step.

        Args:
            features: encoder outputs of B images.
            use_hq: also what the HQ head needs.
        """
        features = self._cast(features)
        return PreparedImages(self.hq_features(features) if use_hq else None, self.image_tokens(features))

    def image_tokens(self, features: ImageFeatures) -> ImageTokens:
        """The part of `prepare` that plain SAM needs too."""
        features = self._cast(features)
        trunk = self.mask_decoder.trunk if isinstance(self.mask_decoder, HQMaskDecoder) else self.mask_decoder
        no_mask = self.prompt_encoder.no_mask.weight.view(1, -1, 1, 1)
        return trunk.prepare(features.image_embedding, self.prompt_encoder.get_dense_pe(), no_mask)

    def decode(
        self,
        features: ImageFeatures,
        prompts: Prompts,
        *,
        candidates: Sequence[int] = SINGLE_CANDIDATE,
        use_hq: bool = True,
        prepared: PreparedImages | None = None,
        own_scores: bool = False,
        min_iou: float | None = None,
        shown: tuple[int, int] | None = None,
        chunk_size: int | None = None,
    ) -> DecoderOutput:
        """Decode prompts of any number of images.

        Args:
            features: encoder outputs of B images.
            prompts: N prompts; `image_index` is needed when B > 1.
            candidates: SAM masks to compute, of 0 (clear prompts) and 1, 2, 3 (ambiguous ones); may be empty.
            use_hq: let the HQ token take part. False is plain SAM exactly.
            prepared: `prepare(features)` if the caller kept it, or parts of it.
            own_scores: let the score head judge the masks that HQ takes part in.
            min_iou: leave out the prompts none of whose candidates has a predicted IoU above it, before their masks are
                made; `rows` of the result says which are left. Not for training.
            shown: (height, width) of the resized image inside the input, where all images have the same. Logits of the
                padding, on which no pixel of the image depends, are then not computed: they are `OUTSIDE_LOGIT`. None
                computes them, as published programs do.
            chunk_size: prompts decoded at once when no gradient is needed; memory does not depend on N.

        Returns:
            SAM logits (N, M, 4h, 4w), HQ logits (N, 1, 4h, 4w) or None, IoU (N, M), own scores (N, 2, M, 2) or None.

        Raises:
            ValueError: unknown candidates, images without an image_index, own scores that the model cannot give or
                beside `shown`, `min_iou` without candidates, or an image that is larger than the input.
        """
        if own_scores and (self.score_head is None or not use_hq or not candidates):
            raise ValueError("own scores need a score head, the HQ token and at least one candidate")
        if any(c not in ALL_CANDIDATES for c in candidates):
            raise ValueError(f"candidates must be among {ALL_CANDIDATES}, got {tuple(candidates)}")
        if len(features.image_embedding) > 1 and prompts.image_index is None:
            raise ValueError(f"{len(features.image_embedding)} images need prompts with an image_index, got None")
        if min_iou is not None and not candidates:
            raise ValueError("min_iou is about candidates, and none is asked for")
        if shown is not None and own_scores:
            raise ValueError("own scores look at the whole mask: they cannot be asked for beside `shown`")
        features, known = self._cast(features), prepared or PreparedImages()
        part = None if shown is None else Shown.of_input(shown, features.grid_hw)
        if chunk_size is None:
            chunk_size = CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK
        at_once = torch.is_grad_enabled() or len(prompts) <= chunk_size
        tokens = None if prompts.masks is not None else known.tokens
        if tokens is None and prompts.masks is None and not at_once:
            tokens = self.image_tokens(features)
        decoding = Decoding(
            prompt_encoder=self.prompt_encoder,
            mask_decoder=self.mask_decoder,
            features=features,
            image_pe=self.prompt_encoder.get_dense_pe() if tokens is None else tokens.positions_map(features.grid_hw),
            tokens=tokens,
            image_feature=self._hq_feature(features, known.hq_features, part) if use_hq else None,
            candidates=candidates,
            own_scores=own_scores,
            floor=None if min_iou is None else ScoreFloor(min_iou, candidates),
            shown=part,
        )
        if not len(prompts):
            return decoding.nothing()
        return decoding.at_once(prompts) if at_once else decoding.in_chunks(prompts, chunk_size)

    def _hq_feature(self, features: ImageFeatures, kept: Tensor | None, part: Shown | None) -> Tensor:
        feature = self.hq_features(features) if kept is None else kept.to(self.dtype)
        return feature if part is None else part.cut(feature)

    def _cast(self, features: ImageFeatures) -> ImageFeatures:
        return ImageFeatures(*(f.to(self.dtype) for f in features))

    @torch.no_grad()
    def forward(
        self, batched_input: list[dict[str, Any]], multimask_output: bool, hq_token_only: bool = False
    ) -> list[dict[str, Tensor]]:
        """SAM's own end-to-end call (drop-in); `SamPredictor` is the convenient way.

        Args:
            batched_input: one dict an image: `image` (3, h, w) 0..255, resized to long side S; `original_size` (H, W);
                optionally `point_coords` (N, K, 2) with `point_labels` (N, K), `boxes` (N, 4), `mask_inputs`
                (N, 1, 256, 256), all in model-input pixels.
            multimask_output: see `select_masks`.
            hq_token_only: return HQ's mask alone instead of the sum.

        Returns:
            One dict an image: `masks` (N, C, H, W) bool, `iou_predictions` (N, C), `low_res_logits` (N, C, 256, 256).
        """
        fusion = self.resolve_fusion(None, hq_token_only)
        images = torch.stack([self.preprocess(record["image"]) for record in batched_input])
        features: ImageFeatures = self.image_encoder(images)
        per_image = [
            Prompts.from_parts(
                record.get("point_coords"), record.get("point_labels"), record.get("boxes"), record.get("mask_inputs")
            ).to(self.device)
            for record in batched_input
        ]
        counts = [len(prompts) for prompts in per_image]
        index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        prompts = Prompts.cat(per_image).with_image_index(index).to(self.device)
        candidates = MULTIMASK_CANDIDATES if multimask_output else SINGLE_CANDIDATE
        output = self.decode(features, prompts, candidates=candidates, use_hq=fusion != "sam")
        logits, iou = select_masks(output, multimask=multimask_output, fusion=fusion)
        results = []
        for record, low_res, scores in zip(batched_input, logits.split(counts), iou.split(counts), strict=True):
            frame = record["image"].shape[-2:], record["original_size"]
            masks = full_size_masks(low_res, *frame, self.image_size, threshold=self.mask_threshold)
            results.append({"masks": masks, "iou_predictions": scores, "low_res_logits": low_res})
        return results

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, ...], original_size: tuple[int, ...]) -> Tensor:
        """Upsample low-resolution logits to the model's frame, cut the padding off, resize to the original.

        Args:
            masks: (N, C, 4h, 4w) logits.
            input_size: (height, width) of the resized image inside the S x S frame.
            original_size: (H, W) of the original image.

        Returns:
            (N, C, H, W) logits.
        """
        return upscale_logits(masks, input_size, original_size, self.image_size)
