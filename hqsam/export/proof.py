"""Does an exported file compute what the model computes? onnxruntime against torch, on two aspect ratios."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hqsam.errors import ExportError
from hqsam.export.conversion import ExportDtype, exportable
from hqsam.export.extra import MissingExtraError
from hqsam.export.graphs import CANDIDATES_OF, DecoderGraph
from hqsam.export.sessions import open_session
from hqsam.models import Sam, select_masks
from hqsam.postprocess import upscale_logits
from hqsam.types import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NOT_A_POINT, PAD, POSITIVE, ImageFeatures, Prompts

LIMITS: dict[ExportDtype, float] = {"float32": 1e-3, "float16": 5e-2, "int8": 1.0}
"""Largest difference relative to the largest magnitude; beyond it a file is wrong and not merely rounded.

Quantised untrained weights differ by more than half; whether such a graph is right is proved in float32, before.
"""

_ASPECTS = ((0.75, 1.0), (1.0, 0.5))
_ORIGINAL = 1.3
"""Original pictures have this many pixels for each of the model's input."""

_logger = logging.getLogger(__name__)
_Arrays = dict[str, NDArray[Any]]


def prove_encoder(model: Sam, outputs: Sequence[str], path: Path, dtype: ExportDtype) -> float | None:
    """Compare an encoder file with the model.

    Args:
        model: what was exported.
        outputs: names of the file's outputs.
        path: the file.
        dtype: its number type.

    Returns:
        The largest relative difference; None, with a warning, without onnxruntime.

    Raises:
        ExportError: it is beyond the limit of the number type.
    """
    session = _session(path)
    if session is None:
        return None
    reference, worst = _in_float32(model), 0.0
    for picture in _pictures(model.image_size):
        features = _encode(reference, picture)
        expected = _of_image(reference, features, outputs)
        found = dict(zip(outputs, _run(session, outputs, {"image": picture[None]}), strict=True))
        worst = max(worst, *(_difference(found[name], array) for name, array in expected.items()))
    return _within(worst, dtype, "encoder")


def prove_decoder(model: Sam, graph: DecoderGraph, full_size: bool, path: Path, dtype: ExportDtype) -> float | None:
    """Compare a decoder file with the model's own decoding.

    Args:
        model: what was exported.
        graph: what was traced, for its options and the names of its inputs.
        full_size: whether the file returns masks of the original size.
        path: the file.
        dtype: its number type.

    Returns:
        As `prove_encoder`.

    Raises:
        ExportError: as `prove_encoder`.
    """
    session = _session(path)
    if session is None:
        return None
    reference, side, worst = _in_float32(model), model.image_size, 0.0
    for picture in _pictures(side):
        features = _encode(reference, picture)
        height, width = picture.shape[:2]
        original = round(height * _ORIGINAL), round(width * _ORIGINAL)
        of_image = _of_image(reference, features, graph.input_names)
        for prompts in _prompts(side, reference.prompt_encoder.mask_input_size):
            inputs = of_image | feed(prompts, reference.prompt_encoder.mask_input_size)
            names = graph.output_names
            if full_size:
                inputs["orig_im_size"] = np.array(original, np.float32)
                names = [*names, "masks"]
            found = _run(session, names, inputs)
            expected = list(_expected(reference, features, prompts, graph, None if dtype == "float32" else found[0]))
            if full_size:
                expected.append(upscale_logits(expected[0], (height, width), original, side))
            worst = max(worst, *(_difference(x, y.numpy()) for x, y in zip(found, expected, strict=True)))
    return _within(worst, dtype, "decoder")


def _run(session: Any, names: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
    """What onnxruntime makes of the inputs; its errors share no base class but Exception."""
    try:
        found: list[Any] = session.run(list(names), dict(inputs))
    except Exception as error:
        raise ExportError(f"onnxruntime cannot run the graph: {error}") from error
    return found


def feed(prompts: Prompts, mask_hw: tuple[int, int]) -> _Arrays:
    """Prompts as the inputs of a decoder file, float32."""
    masks = torch.zeros(len(prompts), 1, *mask_hw) if prompts.masks is None else prompts.masks
    arrays = {
        "point_coords": prompts.coords,
        "point_labels": prompts.kinds,
        "mask_input": masks,
        "has_mask_input": prompts.mask_flags(),
    }
    return {name: tensor.numpy().astype(np.float32) for name, tensor in arrays.items()}


def _session(path: Path) -> Any:
    try:
        return open_session(path)
    except MissingExtraError as error:
        _logger.warning("the exported file was not compared with the model: %s", error)
        return None


def _in_float32(model: Sam) -> Sam:
    if model.dtype == torch.float32 and model.device.type == "cpu" and not model.training:
        return model
    return exportable(model, "float32")


def _pictures(side: int) -> Iterator[NDArray[np.uint8]]:
    """Blotches of all sizes, (height, width, 3)."""
    generator = np.random.default_rng(0)
    for tall, wide in _ASPECTS:
        height, width = int(side * tall), int(side * wide)
        picture = np.zeros((height, width, 3))
        for size in (4, 16, 64):
            blotches = generator.uniform(0, 85, (-(-height // size), -(-width // size), 3))
            picture += blotches.repeat(size, 0).repeat(size, 1)[:height, :width]
        yield picture.astype(np.uint8)


@torch.no_grad()
def _encode(model: Sam, picture: NDArray[np.uint8]) -> ImageFeatures:
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    features: ImageFeatures = model.image_encoder(model.preprocess(pixels))
    return features


@torch.no_grad()
def _of_image(model: Sam, features: ImageFeatures, names: Sequence[str]) -> _Arrays:
    tensors = {"image_embeddings": features.image_embedding}
    if "interm_embeddings" in names:
        tensors["interm_embeddings"] = features.early_feature.permute(0, 2, 3, 1)[None]
    if "hq_features" in names:
        tensors["hq_features"] = model.hq_features(features)
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def _prompts(side: int, mask_hw: tuple[int, int]) -> Iterator[Prompts]:
    """One box; three prompts of different kinds and lengths, one of them with a mask."""
    box = torch.tensor([[[0.1, 0.2], [0.4, 0.7]]]) * side
    corners = torch.tensor([[BOX_TOP_LEFT, BOX_BOTTOM_RIGHT]])
    yield Prompts(box, corners)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand((3, 3, 2), generator=generator) * side / 2
    kinds = torch.tensor([[POSITIVE, 0, NOT_A_POINT], [POSITIVE, NOT_A_POINT, PAD], [BOX_TOP_LEFT, 3, PAD]])
    masks = torch.randn((3, 1, *mask_hw), generator=generator) * 4
    yield Prompts(points, kinds, masks, torch.tensor([False, True, False]))


@torch.no_grad()
def _expected(
    model: Sam, features: ImageFeatures, prompts: Prompts, graph: DecoderGraph, found: NDArray[Any] | None
) -> tuple[Tensor, ...]:
    """The model's masks and scores, or both summands of the masks and the scores.

    Where the graph chooses among candidates, scores that are all but equal may be ranked otherwise in reduced
    precision: with `found`, its logits, the nearest candidate counts.
    """
    choice, fusion = graph.choice, graph.fusion
    output = model.decode(features, prompts, candidates=CANDIDATES_OF[choice], use_hq=fusion != "sam")
    if graph.separate and output.hq_logits is not None:
        return output.sam_logits, output.hq_logits, output.iou
    logits, iou = select_masks(output, multimask=False, fusion=fusion)
    if choice in ("all", "single"):
        return logits, iou
    score = iou
    if choice == "auto":
        few = (prompts.kinds != PAD).sum(1) <= 2
        score = torch.where(few[:, None] == torch.tensor([False, True, True, True]), iou, -torch.inf)
    logits = logits.expand(-1, iou.shape[1], -1, -1)
    if found is not None:
        score = -(logits - torch.from_numpy(found)).abs().amax((2, 3))
    rows, best = torch.arange(len(prompts)), score.argmax(1)
    return logits[rows, best][:, None], iou[rows, best][:, None]


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference relative to the largest magnitude; infinite for another shape or NaN."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))


def _within(worst: float, dtype: ExportDtype, part: str) -> float:
    if worst > LIMITS[dtype]:
        raise ExportError(
            f"the exported {part} differs from the model by {worst:.2g} of its largest value; {dtype} may differ by "
            f"{LIMITS[dtype]:g}. Nothing was written"
        )
    return worst
