"""`SamPredictor` for exported files: onnxruntime, NumPy and Pillow, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hqsam.errors import DataError
from hqsam.export.sessions import metadata_of, open_session
from hqsam.geometry import ResizeLongestSide
from hqsam.images import as_rgb_uint8
from hqsam.prompt_arrays import check_boxes, check_points, finite, require_any, shape_text

_NOT_A_POINT, _BOX_CORNERS = -1, (2, 3)
"""As in `hqsam.types`, which needs torch."""

_CHUNK = 8
"""Prompts decoded at once: memory does not grow with their number."""

Arrays = dict[str, NDArray[Any]]


class OnnxPredictor:
    """Predict masks of one image from points, boxes and masks with two exported files.

    Args:
        encoder: file of `hqsam.export.export_encoder`.
        decoder: file of `export_decoder` of the same model and weights.
        providers: onnxruntime's names of what computes, best first.
        threads: processor threads; None is onnxruntime's choice.

    Attributes:
        image_size: side of the model's square input in pixels.
        fusion: what masks are made of, fixed in the decoder file.
        metadata: what the decoder file says about itself.
        original_size: (H, W) of the set image, or None.
        input_size: (height, width) of the resized image, or None.
        is_image_set: whether `predict` can be called.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        DataError: a file is missing, damaged, not ours, or they do not belong together.
    """

    def __init__(
        self,
        encoder: str | PathLike[str],
        decoder: str | PathLike[str],
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int | None = None,
    ) -> None:
        self._encoder = open_session(encoder, providers, threads)
        self._decoder = open_session(decoder, providers, threads)
        self.metadata = _require_pair(self._encoder, self._decoder, str(encoder), str(decoder))
        self.image_size, self.fusion = int(self.metadata["hqsam.image_size"]), self.metadata["hqsam.fusion"]
        self._threshold = float(self.metadata["hqsam.mask_threshold"])
        self._transform = ResizeLongestSide(self.image_size)
        self._mask_side = self.image_size // 4
        self.reset_image()

    def reset_image(self) -> None:
        """Forget the set image."""
        self._features: Arrays = {}
        self.is_image_set = False
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Encode an image.

        Args:
            image: (H, W, 3) uint8, 0..255. Grayscale and alpha are converted (see `hqsam.images.as_rgb_uint8`).
            image_format: channel order of `image`, "RGB" or "BGR".

        Raises:
            ValueError: another dtype or shape. An image that was set before stays set.
        """
        rgb = as_rgb_uint8(image, image_format)
        resized = self._transform.apply_image(rgb)
        names = [output.name for output in self._encoder.get_outputs()]
        self._features = dict(zip(names, self._encoder.run(names, {"image": resized[None]}), strict=True))
        self.original_size = rgb.shape[0], rgb.shape[1]
        self.input_size = resized.shape[0], resized.shape[1]
        self.is_image_set = True

    def get_image_embedding(self) -> NDArray[np.float32]:
        """(1, 256, 64, 64) embedding of the set image.

        Raises:
            RuntimeError: no image is set.
        """
        self._require_image()
        return self._features["image_embeddings"]

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Predict masks from prompts in pixels of the original image, as `SamPredictor.predict`.

        Args:
            point_coords: (K, 2) xy, or (N, K, 2) beside N boxes.
            point_labels: (K,) or (N, K): 1 foreground, 0 background, -1 ignored.
            box: (4,) XYXY, or (N, 4) for N masks at once.
            mask_input: (1, 256, 256) logits of an earlier prediction; beside N boxes (N, 1, 256, 256).
            multimask_output: for ambiguous prompts. A file that was exported with masks="single" or "best" has one of
                the two answers.
            return_logits: return logits instead of a boolean mask.

        Returns:
            masks (C, H, W) bool, or float32 logits; scores (C,); low-resolution logits (C, 256, 256). With (N, 4)
            boxes each has a leading N.

        Raises:
            RuntimeError: no image is set.
            ValueError: wrong prompts, as in `SamPredictor.predict`, or an answer that the file does not have.
        """
        self._require_image()
        inputs, many = self._inputs(point_coords, point_labels, box, mask_input)
        of_image = {i.name: self._features[i.name] for i in self._decoder.get_inputs() if i.name in self._features}
        parts = []
        for start in range(0, len(inputs["point_coords"]), _CHUNK):
            rows = {name: array[start : start + _CHUNK] for name, array in inputs.items()}
            if any(value.name == "orig_im_size" for value in self._decoder.get_inputs()):
                rows["orig_im_size"] = np.ones(2, np.float32)  # its masks are not asked for
            found = self._decoder.run(["low_res_masks", "iou_predictions"], of_image | rows)
            parts.append(self._select(found[0], found[1], multimask_output))
        logits, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        masks = self._full_size(logits, return_logits)
        return (masks, scores, logits) if many else (masks[0], scores[0], logits[0])

    def _inputs(
        self, coords: ArrayLike | None, labels: ArrayLike | None, box: ArrayLike | None, mask: ArrayLike | None
    ) -> tuple[Arrays, bool]:
        """SAM's order of tokens: points, one "not a point" if there is no box, box corners."""
        require_any(coords, labels, box, mask)
        size = self.original_size or (0, 0)
        boxes, many = check_boxes(box, size)
        count = 1 if boxes is None else len(boxes)
        points, kinds = check_points(coords, labels, (count,) if many else ())
        tokens: list[NDArray[Any]] = [np.zeros((count, 0, 2))]
        marks: list[NDArray[Any]] = [np.zeros((count, 0))]
        if points is not None and kinds is not None:
            tokens.append(self._transform.apply_coords(points, size))
            marks.append(kinds)
            if boxes is None:
                tokens.append(np.zeros((count, 1, 2)))
                marks.append(np.full((count, 1), _NOT_A_POINT))
        if boxes is not None:
            tokens.append(self._transform.apply_boxes(boxes, size).reshape(count, 2, 2))
            marks.append(np.tile(_BOX_CORNERS, (count, 1)))
        shape = (1, self._mask_side, self._mask_side)
        if mask is not None and not np.issubdtype(np.asarray(mask).dtype, np.floating):
            raise ValueError(f"mask_input must be floating-point logits, got {np.asarray(mask).dtype}")
        logits = np.zeros((count, *shape)) if mask is None else finite(mask, "mask_input")
        expected = (count, *shape) if many or mask is None else shape
        if logits.shape != expected:
            raise ValueError(f"mask_input must have shape {shape_text(*expected)} as logits, got {logits.shape}")
        arrays = {
            "point_coords": np.concatenate(tokens, 1),
            "point_labels": np.concatenate(marks, 1),
            "mask_input": logits.reshape(count, *shape),
            "has_mask_input": np.full(count, mask is not None),
        }
        return {name: array.astype(np.float32) for name, array in arrays.items()}, many

    def _select(self, logits: NDArray[Any], iou: NDArray[Any], multimask: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        """The rule of `hqsam.models.select_masks`."""
        held = self.metadata["hqsam.masks"]
        if held != "all":
            if multimask != (held == "best"):
                raise ValueError(
                    f'the decoder file was exported with masks="{held}": ask with multimask_output={held == "best"}, '
                    'or export it with masks="all"'
                )
            return logits, iou
        if not multimask:
            return logits[:, :1], iou[:, :1]
        if self.fusion == "sam":
            return logits[:, 1:], iou[:, 1:]
        best = iou[:, 1:].argmax(1) + 1
        rows = np.arange(len(iou))
        chosen = logits if logits.shape[1] == 1 else logits[rows, best][:, None]
        return chosen, iou[rows, best][:, None]

    def _full_size(self, logits: NDArray[np.float32], return_logits: bool) -> NDArray[Any]:
        """Upsample to the model's frame, cut the padding off, resize to the original: two matrix products a mask."""
        self._require_image()
        size, inside = self.original_size or (0, 0), self.input_size or (0, 0)
        down, across = (
            (_bilinear(inside[axis], size[axis]) @ _bilinear(self._mask_side, self.image_size)[: inside[axis]]).astype(
                np.float32
            )
            for axis in (0, 1)
        )
        result = np.empty((*logits.shape[:2], *size), np.float32 if return_logits else np.bool_)
        for place in np.ndindex(*logits.shape[:2]):
            full = down @ logits[place] @ across.T
            result[place] = full if return_logits else full > self._threshold
        return result

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("no image is set: call set_image(image) before predicting")


def _require_pair(encoder: Any, decoder: Any, encoder_path: str, decoder_path: str) -> dict[str, str]:
    """The decoder's metadata, after checking that the two files belong together."""
    of_encoder, of_decoder = metadata_of(encoder), metadata_of(decoder)
    for path, about, part in ((encoder_path, of_encoder, "encoder"), (decoder_path, of_decoder, "decoder")):
        if about.get("hqsam.part") != part:
            what = f"the {about['hqsam.part']}" if "hqsam.part" in about else "a file that hqsam did not export"
            raise DataError(f"{path} should be an exported {part}, but is {what}")
    if of_encoder["hqsam.weights"] != of_decoder["hqsam.weights"]:
        raise DataError(f"{encoder_path} and {decoder_path} hold different models or weights; export both together")
    if of_decoder["hqsam.masks"] == "auto":
        raise DataError(
            f'{decoder_path} chooses masks by the number of points (masks="auto"), as programs for SAM\'s own export '
            'expect; export it with masks="all"'
        )
    if of_decoder.get("hqsam.fusion") == "separate":
        raise DataError(f"{decoder_path} gives SAM's and HQ's masks apart; export it without separate=True")
    outputs = {value.name for value in encoder.get_outputs()}
    missing = {value.name for value in decoder.get_inputs()} & {"hq_features", "interm_embeddings"} - outputs
    if missing:
        raise DataError(
            f"{decoder_path} reads {min(missing)}, which {encoder_path} does not give; export both together"
        )
    return of_decoder


def _bilinear(old: int, new: int) -> NDArray[np.float64]:
    """(new, old) weights of bilinear resizing with pixel centres at halves (`align_corners=False`)."""
    position = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0.0)
    lower = np.minimum(np.floor(position).astype(np.int64), old - 1)
    upper = np.minimum(lower + 1, old - 1)
    share = position - lower
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new), lower), 1.0 - share)
    np.add.at(matrix, (np.arange(new), upper), share)
    return matrix
