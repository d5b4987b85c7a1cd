"""Set an image once, ask for masks many times: SAM's predictor with HQ masks.

Names, signatures and defaults are those of `segment_anything_hq` 0.3; `fusion`, `candidates`, `score`, many boxes at
once, masks as prompts, embeddings that can be kept and `segment` are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hqsam.answering import Answer, wanted_answer
from hqsam.computed_from import ComputedFrom, Kept
from hqsam.features import PredictorFeatures, image_hash, model_fingerprint
from hqsam.geometry import ResizeLongestSide
from hqsam.guided import KnownImage
from hqsam.images import as_rgb_uint8
from hqsam.models import PreparedImages, Sam
from hqsam.models.transformer import ImageTokens
from hqsam.prompts import Prompt, PromptFrame
from hqsam.segmentation import Segmentation, answer_prompts, masks_of_image, segment_images
from hqsam.types import Candidates, Fusion, ImageFeatures, Prompts, Refine, ScoreSource, Upsampling


class SamPredictor:
    """Predict masks of one image from points, boxes and masks.

    Attributes:
        model: the model.
        transform: resizing of images and coordinates to the model's input frame.
        features: (1, 256, 64, 64) embedding of the set image, or None.
        interm_features: list holding the early feature, channels last as in the original, or None.
        original_size: (H, W) of the set image.
        input_size: (height, width) of the resized image inside the model's input.
        is_image_set: whether `predict` can be called.
    """

    def __init__(self, sam_model: Sam) -> None:
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_size)
        self.reset_image()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def reset_image(self) -> None:
        """Forget the set image."""
        self.is_image_set = False
        self.features: Tensor | None = None
        self.interm_features: list[Tensor] | None = None
        self.original_size: tuple[int, ...] | None = None
        self.input_size: tuple[int, ...] | None = None
        self._hq_known, self._tokens_known = Kept[Tensor](), Kept[ImageTokens]()
        self._encoded: tuple[ComputedFrom, ComputedFrom] | None = None
        self._image_hash = ""
        self._image: KnownImage | None = None

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Encode an image.

        Args:
            image: (H, W, 3) uint8, 0..255. Grayscale and alpha are converted (see `as_rgb_uint8`).
            image_format: channel order of `image`, "RGB" or "BGR".

        Raises:
            ValueError: another dtype or shape. An image that was set before stays set.
        """
        rgb = as_rgb_uint8(image, image_format)
        resized = self.transform.apply_image(rgb)
        tensor = torch.from_numpy(resized).to(self.device).permute(2, 0, 1)[None]
        self.set_torch_image(tensor, rgb.shape[:2])
        self._image_hash, self._image = image_hash(rgb), KnownImage(rgb.copy())  # callers may draw on theirs

    @torch.no_grad()
    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Encode an image that was resized already.

        Args:
            transformed_image: (1, 3, h, w), RGB 0..255, long side equal to the model's input size.
            original_image_size: (H, W) before resizing.

        Raises:
            ValueError: another shape.
        """
        side = self.model.image_size
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
            raise ValueError(f"the image tensor must have shape (1, 3, h, w) with long side {side}, got {shape}")
        features: ImageFeatures = self.model.image_encoder(self.model.preprocess(transformed_image))
        self.reset_image()
        self.original_size = tuple(original_image_size)
        self.input_size = shape[2:]
        self.features = features.image_embedding
        self.interm_features = [features.early_feature.permute(0, 2, 3, 1)]
        self.is_image_set = True
        self._encoded = ComputedFrom.of_encoder(self.model), ComputedFrom.of_tensors(self.features)

    def get_image_embedding(self) -> Tensor:
        """(1, 256, 64, 64) embedding of the set image.

        Raises:
            RuntimeError: no image is set.
        """
        self._require_image()
        assert self.features is not None
        return self.features

    def get_features(self) -> PredictorFeatures:
        """What was computed for the set image, to be kept and given to `load_features` later.

        Raises:
            RuntimeError: no image is set, its attributes were replaced by hand, or the encoder's weights changed since.
        """
        self._require_image()
        assert self.original_size is not None and self.input_size is not None
        encoder = ComputedFrom.of_encoder(self.model)
        if self._encoded is None or self._encoded[0] != encoder or not self._is_as_encoded():
            raise RuntimeError(
                "the embedding is not what this image encoder made of the set image (its weights changed, or the "
                "attribute was replaced): set the image again with set_image(image)"
            )
        features = self._image_features()
        return PredictorFeatures(
            features.image_embedding,
            features.early_feature,
            (self.original_size[0], self.original_size[1]),
            (self.input_size[0], self.input_size[1]),
            model_fingerprint(self.model),
            self._image_hash,
        )

    def load_features(
        self, features: PredictorFeatures, image: NDArray[np.uint8] | None = None, image_format: str = "RGB"
    ) -> None:
        """Set an image by what was computed for it before.

        Args:
            features: from `get_features`, or `PredictorFeatures.load(path)`.
            image: the image that they should be of, to be sure; None trusts the caller.
            image_format: channel order of `image`.

        Raises:
            ValueError: they belong to another image encoder or to another image. What was set before stays set.
        """
        rgb = None if image is None else as_rgb_uint8(image, image_format)
        features.require(self.model, rgb)
        features = features.to(self.device)
        self.reset_image()
        self.original_size, self.input_size = features.original_size, features.input_size
        self.features = features.image_embedding
        self.interm_features = [features.early_feature.permute(0, 2, 3, 1)]
        self._image_hash, self._image = features.image_hash, None if rgb is None else KnownImage(rgb.copy())
        self.is_image_set = True
        self._encoded = ComputedFrom.of_encoder(self.model), ComputedFrom.of_tensors(self.features)

    def hq_features(self) -> Tensor | None:
        """(1, 32, 4h, 4w): the HQ fusion's image-only part, computed once per image; None for plain SAM.

        Raises:
            RuntimeError: no image is set.
        """
        self._require_image()
        return self._cached_hq_features(self._image_features()) if self.model.has_hq else None

    def prepared(self, *, use_hq: bool) -> PreparedImages:
        """What `Sam.decode` computes of the set image alone, computed once.

        Args:
            use_hq: also what the HQ head needs.

        Raises:
            RuntimeError: no image is set.
        """
        self._require_image()
        return self._prepared(self._image_features(needs_early=use_hq), use_hq=use_hq)

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool = False,
        *,
        fusion: Fusion | None = None,
        candidates: Candidates = "best",
        refine: Refine | None = None,
        score: ScoreSource | None = None,
        heed_clicks: bool | None = None,
        upsampling: Upsampling | None = None,
        padding_logits: bool = True,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Predict masks from prompts in pixels of the original image.

        Args:
            point_coords: (K, 2) xy, or (N, K, 2) beside N boxes.
            point_labels: (K,) or (N, K): 1 foreground, 0 background, -1 ignored.
            box: (4,) XYXY, or (N, 4) for N masks at once.
            mask_input: (1, 256, 256) logits of an earlier prediction, or a bool or uint8 mask (H, W) of the image,
                non-zero inside; beside N boxes (N, 1, 256, 256) or (N, H, W).
            multimask_output: for ambiguous prompts: with HQ the best-scored of SAM's three masks is fused, one mask
                comes back; plain SAM returns all three.
            return_logits: return logits instead of a boolean mask (logit > 0).
            hq_token_only: return HQ's mask alone, same as `fusion="hq"`.
            fusion: "sum" (default of HQ models), "hq", or "sam" for exactly plain SAM.
            candidates: "all" with `multimask_output` returns each of SAM's three masks fused with HQ's.
            refine: "again" feeds the answer back once, "again+again" twice; the last logits and scores come back, and
                an empty sum is SAM's mask. "zoom" looks again at the surroundings of objects that fill little of the
                image, also after the others ("again+zoom"). None: the model's default for HQ's single masks.
            score: "sam" is SAM's predicted IoU of SAM's mask; "own" and "own_boundary" are the predicted IoU and
                boundary IoU of the mask that is returned, from the model's score head. None is the model's default.
            heed_clicks: let masks with HQ do what points say, above all those that correct `mask_input`
                (`hqsam.heeding`); not with a "zoom". Scores are of the mask before. None: the model's default.
            upsampling: "guided" fits edges to those of the image (`hqsam.guided`); "bilinear" is SAM's own. None: the
                model's default for HQ's masks, where the image itself is known.
            padding_logits: False leaves out the logits of the padding beside an image that is not square: those that
                are returned are far below zero there. Masks are the same; answers to logits fed back differ a little.

        Returns:
            masks (C, H, W) bool, or float32 logits; scores (C,), see `score`; low-resolution logits
            (C, 256, 256), to be fed back as `mask_input`. With (N, 4) boxes each has a leading N, also when N is 1.

        Raises:
            RuntimeError: no image is set.
            ValueError: no prompt, wrong shapes, NaN or infinite values, a box that is inverted or wholly outside, a
                mask of another size or without a pixel; `heed_clicks` with a zoom; "guided" without the image.
        """
        self._require_image()
        assert self.original_size is not None
        frame = PromptFrame.of(self.model, self.original_size)
        prompts, many = frame.assemble(point_coords, point_labels, box, mask_input)
        answer = wanted_answer(
            self.model,
            multimask=multimask_output,
            return_logits=return_logits,
            fusion=fusion,
            hq_token_only=hq_token_only,
            candidates=candidates,
            refine=refine,
            score=score,
            heed_clicks=heed_clicks,
            upsampling=upsampling,
            knows_image=self._known_image() is not None,
        )
        masks, scores, logits = self._predict(prompts, answer, padding_logits)
        arrays = [t.cpu().numpy() for t in (masks, scores, logits)]
        masks_np, scores_np, logits_np = arrays if many else (array[0] for array in arrays)
        return masks_np, scores_np, logits_np

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool = False,
        *,
        fusion: Fusion | None = None,
        candidates: Candidates = "best",
        refine: Refine | None = None,
        score: ScoreSource | None = None,
        heed_clicks: bool | None = None,
        upsampling: Upsampling | None = None,
        padding_logits: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict masks from batched prompts in the model's input frame (see `transform`).

        Args:
            point_coords: (N, K, 2) xy, or None.
            point_labels: (N, K): 1 foreground, 0 background, -1 ignored.
            boxes: (N, 4) XYXY, or None.
            mask_input: (N, 1, 256, 256) logits, or None.
            The others: see `predict`.

        Returns:
            masks (N, C, H, W) bool or float32 logits, scores (N, C), low-resolution logits (N, C, 256, 256).

        Raises:
            RuntimeError: no image is set.
            ValueError: parts disagree on N; the model has no head for this fusion or score, or an untrained one.
        """
        self._require_image()
        prompts = Prompts.from_parts(point_coords, point_labels, boxes, mask_input)
        answer = wanted_answer(
            self.model,
            multimask=multimask_output,
            return_logits=return_logits,
            fusion=fusion,
            hq_token_only=hq_token_only,
            candidates=candidates,
            refine=refine,
            score=score,
            heed_clicks=heed_clicks,
            upsampling=upsampling,
            knows_image=self._known_image() is not None,
        )
        return self._predict(prompts, answer, padding_logits)

    def segment(
        self,
        images: Sequence[NDArray[np.uint8]],
        prompts: Sequence[Prompt | Iterable[Prompt]],
        *,
        multimask_output: bool = True,
        return_logits: bool = False,
        fusion: Fusion | None = None,
        candidates: Candidates = "best",
        refine: Refine | None = None,
        score: ScoreSource | None = None,
        heed_clicks: bool | None = None,
        upsampling: Upsampling | None = None,
        image_format: str = "RGB",
        batch_size: int | None = None,
    ) -> list[Segmentation]:
        """Segment many images with different numbers and kinds of prompts each.

        The results are those of `set_image` and `predict` one by one, to rounding. The set image stays set.

        Args:
            images: (H, W, 3) uint8 arrays of any sizes.
            prompts: for each image a `Prompt` or a list of them, which may be empty.
            multimask_output, return_logits, fusion, candidates, refine, score, heed_clicks, upsampling: see `predict`.
            image_format: channel order of the images.
            batch_size: images encoded and decoded together; None is 1 on a CPU, where more gain nothing, else 8.

        Returns:
            One `Segmentation` an image, N being its number of prompts.

        Raises:
            ValueError: as in `set_image` and `predict`, with the place of the image; lists of different lengths.
        """
        answer = wanted_answer(
            self.model,
            multimask=multimask_output,
            return_logits=return_logits,
            fusion=fusion,
            candidates=candidates,
            refine=refine,
            score=score,
            heed_clicks=heed_clicks,
            upsampling=upsampling,
        )
        return segment_images(self.model, images, prompts, answer, image_format=image_format, batch_size=batch_size)

    def _predict(self, prompts: Prompts, answer: Answer, padding_logits: bool) -> tuple[Tensor, Tensor, Tensor]:
        assert self.input_size is not None and self.original_size is not None
        if not padding_logits:
            answer = replace(answer, shown=(self.input_size[0], self.input_size[1]))
        features = self._image_features(needs_early=answer.fusion != "sam")
        prepared = self._prepared(features, use_hq=answer.fusion != "sam")
        logits, scores = answer_prompts(self.model, features, prompts, answer, prepared)
        frame = self.input_size, self.original_size
        masks = masks_of_image(self.model, self._known_image(), frame, prompts, logits, answer)
        return masks, scores, logits

    def _known_image(self) -> KnownImage | None:
        """The set image; None where only its embedding is known."""
        return self._image if self._is_as_encoded() else None

    def _is_as_encoded(self) -> bool:
        """Whether the embedding is still the one of the set image, and not another's that was put in its place."""
        return self._encoded is not None and self._encoded[1] == ComputedFrom.of_tensors(self.features)

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("no image is set: call set_image(image) before predicting")

    def _image_features(self, needs_early: bool = True) -> ImageFeatures:
        # Read from the public attributes: programs written for SAM keep and restore embeddings through them.
        assert self.features is not None
        if self.interm_features is not None:
            return ImageFeatures(self.features, self.interm_features[0].permute(0, 3, 1, 2))
        if needs_early:
            raise RuntimeError("an HQ head needs interm_features beside features: keep and restore both")
        return ImageFeatures(self.features, self.features.new_zeros(1, 1, 1, 1))  # plain SAM never looks at it

    @torch.no_grad()
    def _prepared(self, features: ImageFeatures, *, use_hq: bool) -> PreparedImages:
        state = ComputedFrom.of_decoder(self.model, self.features)
        tokens = self._tokens_known(state, lambda: self.model.image_tokens(features))
        return PreparedImages(self._cached_hq_features(features) if use_hq else None, tokens)

    @torch.no_grad()
    def _cached_hq_features(self, features: ImageFeatures) -> Tensor:
        state = ComputedFrom.of_head(
            self.model, self.features, None if self.interm_features is None else self.interm_features[0]
        )
        return self._hq_known(state, lambda: self.model.hq_features(features))
