"""Set an image once, ask for masks many times: SAM's predictor with HQ masks.

Names, signatures and defaults are those of `segment_anything_hq` 0.3; `fusion` and many boxes at once are ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hqsam.geometry import ResizeLongestSide
from hqsam.images import as_rgb_uint8
from hqsam.models import Sam, select_masks
from hqsam.models.selection import MULTIMASK_CANDIDATES, SINGLE_CANDIDATE
from hqsam.types import FUSIONS, Fusion, ImageFeatures, Prompts

POSTPROCESS_CHUNK = 8
"""Masks brought to full size at once, so that memory does not grow with the number of prompts."""


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
        self._hq_source: tuple[Tensor, Tensor] | None = None
        self._hq_features: Tensor | None = None

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

    def get_image_embedding(self) -> Tensor:
        """(1, 256, 64, 64) embedding of the set image.

        Raises:
            RuntimeError: no image is set.
        """
        self._require_image()
        assert self.features is not None
        return self.features

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
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Predict masks from prompts in pixels of the original image.

        Args:
            point_coords: (K, 2) xy, or (N, K, 2) beside N boxes.
            point_labels: (K,) or (N, K): 1 foreground, 0 background, -1 ignored.
            box: (4,) XYXY, or (N, 4) for N masks at once.
            mask_input: (1, 256, 256) logits of an earlier prediction, or (N, 1, 256, 256) beside N boxes.
            multimask_output: for ambiguous prompts: with HQ the best-scored of SAM's three masks is fused, one mask
                comes back; plain SAM returns all three.
            return_logits: return logits instead of a boolean mask (logit > 0).
            hq_token_only: return HQ's mask alone, same as `fusion="hq"`.
            fusion: "sum" (default of HQ models), "hq", or "sam" for exactly plain SAM.

        Returns:
            masks (C, H, W) bool, or float32 logits; scores (C,), SAM's predicted IoU; low-resolution logits
            (C, 256, 256), to be fed back as `mask_input`. With (N, 4) boxes each has a leading N, also when N is 1.

        Raises:
            RuntimeError: no image is set.
            ValueError: no prompt, wrong shapes, NaN or infinite values, a box that is inverted or wholly outside.
        """
        self._require_image()
        if all(given is None for given in (point_coords, point_labels, box, mask_input)):
            raise ValueError("no prompt given: pass point_coords with point_labels, a box, or a mask_input")
        boxes, many = self._check_box(box)
        count = 1 if boxes is None else len(boxes)
        points, labels = self._check_points(point_coords, point_labels, count, many)
        masks_in = self._check_mask_input(mask_input, count, many)
        assert self.original_size is not None
        if points is not None:
            points = self.transform.apply_coords(points, self.original_size)
        if boxes is not None:
            boxes = self.transform.apply_boxes(boxes, self.original_size)
        masks, scores, logits = self.predict_torch(
            self._tensor(points),
            None if labels is None else torch.from_numpy(labels).to(self.device),
            self._tensor(boxes),
            self._tensor(masks_in),
            multimask_output,
            return_logits,
            hq_token_only,
            fusion=fusion,
        )
        arrays = [t.cpu().numpy() for t in (masks, scores, logits)]
        masks_np, scores_np, logits_np = arrays if many else (array[0] for array in arrays)
        return masks_np, scores_np, logits_np

    @torch.no_grad()
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict masks from batched prompts in the model's input frame (see `transform`).

        Args:
            point_coords: (N, K, 2) xy, or None.
            point_labels: (N, K): 1 foreground, 0 background, -1 ignored.
            boxes: (N, 4) XYXY, or None.
            mask_input: (N, 1, 256, 256) logits, or None.
            multimask_output: see `predict`.
            return_logits: see `predict`.
            hq_token_only: see `predict`.
            fusion: see `predict`.

        Returns:
            masks (N, C, H, W) bool or float32 logits, scores (N, C), low-resolution logits (N, C, 256, 256).

        Raises:
            RuntimeError: no image is set.
            ValueError: parts disagree on N; the model has no head for this fusion, or an untrained one.
        """
        self._require_image()
        chosen = self._resolve_fusion(hq_token_only, fusion)
        prompts = Prompts.from_parts(point_coords, point_labels, boxes, mask_input).to(self.device)
        features = self._image_features()
        output = self.model.decode(
            features,
            prompts,
            candidates=MULTIMASK_CANDIDATES if multimask_output else SINGLE_CANDIDATE,
            use_hq=chosen != "sam",
            hq_features=self._cached_hq_features(features) if chosen != "sam" else None,
        )
        logits, scores = select_masks(output, multimask=multimask_output, fusion=chosen)
        return self._full_size(logits, return_logits), scores.float(), logits.float()

    def _full_size(self, logits: Tensor, return_logits: bool) -> Tensor:
        assert self.input_size is not None and self.original_size is not None
        parts = []
        for chunk in logits.float().split(POSTPROCESS_CHUNK):
            full = self.model.postprocess_masks(chunk, self.input_size, self.original_size)
            parts.append(full if return_logits else full > self.model.mask_threshold)
        return torch.cat(parts)

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("no image is set: call set_image(image) before predicting")

    def _image_features(self) -> ImageFeatures:
        # Read from the public attributes: programs written for SAM keep and restore embeddings through them.
        assert self.features is not None and self.interm_features is not None
        return ImageFeatures(self.features, self.interm_features[0].permute(0, 3, 1, 2))

    def _cached_hq_features(self, features: ImageFeatures) -> Tensor:
        assert self.features is not None and self.interm_features is not None
        source = (self.features, self.interm_features[0])
        known = self._hq_source
        if known is None or known[0] is not source[0] or known[1] is not source[1] or self._hq_features is None:
            self._hq_source, self._hq_features = source, self.model.hq_features(features)
        return self._hq_features

    def _resolve_fusion(self, hq_token_only: bool, fusion: Fusion | None) -> Fusion:
        if fusion is not None and fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {FUSIONS}, got {fusion!r}")
        if hq_token_only and fusion not in (None, "hq"):
            raise ValueError(f"hq_token_only=True is fusion='hq', but fusion={fusion!r} was given too")
        default: Fusion = "sum" if self.model.has_hq else "sam"
        chosen: Fusion = "hq" if hq_token_only else (fusion or default)
        if chosen != "sam" and not self.model.has_hq:
            raise ValueError(f"fusion={chosen!r} needs an HQ head, and this model is plain SAM")
        if chosen != "sam" and self.model.head_state == "untrained":
            raise ValueError(
                "the HQ head of this model is untrained: load a checkpoint that holds one, train it, "
                'or ask for plain SAM with fusion="sam"'
            )
        return chosen

    def _tensor(self, array: NDArray[np.floating[Any]] | None) -> Tensor | None:
        return None if array is None else torch.as_tensor(array, dtype=torch.float32, device=self.device)

    def _check_box(self, box: ArrayLike | None) -> tuple[NDArray[np.float64] | None, bool]:
        if box is None:
            return None, False
        boxes = _finite(box, "box")
        many = boxes.ndim == 2
        if boxes.shape != (4,) and (not many or boxes.shape[1] != 4 or len(boxes) == 0):
            raise ValueError(f"box must have shape (4,) or (N, 4), XYXY pixels, got {boxes.shape}")
        boxes = boxes.reshape(-1, 4)
        assert self.original_size is not None
        height, width = self.original_size
        x0, y0, x1, y1 = boxes.T
        for wrong, what in (
            ((x1 < x0) | (y1 < y0), "inverted (x1 < x0 or y1 < y0)"),
            ((x1 < 0) | (y1 < 0) | (x0 >= width) | (y0 >= height), f"outside the {width} x {height} image"),
        ):
            if wrong.any():
                row = int(wrong.argmax())
                raise ValueError(f"box {boxes[row].tolist()} is {what}; boxes are [x0, y0, x1, y1] in pixels")
        return boxes, many

    def _check_points(
        self, coords: ArrayLike | None, labels: ArrayLike | None, count: int, many: bool
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.int64] | None]:
        if (coords is None) != (labels is None):
            raise ValueError("point_coords and point_labels come together: pass both or neither")
        if coords is None or labels is None:
            return None, None
        points, kinds = _finite(coords, "point_coords"), _finite(labels, "point_labels")
        lead = (count,) if many else ()
        if points.ndim != len(lead) + 2 or points.shape[: len(lead)] != lead or points.shape[-1] != 2:
            raise ValueError(f"point_coords must have shape {(*lead, 'K', 2)}, xy pixels, got {points.shape}")
        if kinds.shape != points.shape[:-1]:
            raise ValueError(f"point_labels must have shape {points.shape[:-1]}, got {kinds.shape}")
        if not np.isin(kinds, (-1, 0, 1)).all():
            raise ValueError(
                f"point_labels must be 1 (foreground), 0 (background) or -1 (ignored), got {kinds.tolist()}"
            )
        return points.reshape(count, -1, 2), kinds.reshape(count, -1).astype(np.int64)

    def _check_mask_input(self, mask: ArrayLike | None, count: int, many: bool) -> NDArray[np.float64] | None:
        if mask is None:
            return None
        array = np.asarray(mask)
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"mask_input must be floating-point logits of an earlier prediction, got {array.dtype}")
        expected = ((count,) if many else ()) + (1, *self.model.prompt_encoder.mask_input_size)
        if array.shape != expected:
            raise ValueError(f"mask_input must have shape {expected}, got {array.shape}")
        return _finite(array, "mask_input").reshape(count, 1, *expected[-2:])


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {values!r}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity in {array.tolist() if array.size < 20 else name}")
    return array
