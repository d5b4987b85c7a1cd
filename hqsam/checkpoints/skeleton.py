"""The model that a file's shapes describe, without memory: what a complete file of that kind has to hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hqsam.checkpoints.formats import Architecture, Checkpoint
from hqsam.checkpoints.state import Target, differences
from hqsam.errors import CheckpointError
from hqsam.models import (
    FULL_HEAD,
    EncoderSpec,
    HQMaskDecoder,
    MaskDecoder,
    PromptEncoder,
    Sam,
    SamViTSpec,
    ScoreHead,
    TinyViTSpec,
    build_encoder,
    build_head,
)

_STRIDE = 16


def require_complete(file: Checkpoint) -> None:
    """Refuse a file that lacks tensors of the parts that it holds, or has them in shapes that contradict each other.

    Raises:
        CheckpointError: one sentence with up to 10 names of each kind.
    """
    # A head or a decoder alone fits every encoder with as many early channels.
    architecture = file.architecture or Architecture("vit", (file.early_channels or 1,), (1,))
    try:
        model = _build(architecture, file)
    except (ValueError, RuntimeError, TypeError, ArithmeticError, AssertionError) as error:
        raise CheckpointError(f"{file.info.path} describes no possible model: {error}") from error
    found = differences(Target.of(model), file.official, file.parts, file.naming)
    if found:
        raise CheckpointError(f"{file.info.path} is {file.info.title}, but not a whole one. Tensors {found}")


def _build(architecture: Architecture, file: Checkpoint) -> Sam:
    vit = architecture.family == "vit"
    spec, image_size = _vit(architecture, file.official) if vit else (_tiny(architecture, file.official), 128)
    with torch.device("meta"):
        encoder = build_encoder(spec, image_size)
        head = build_head(file.info.head or FULL_HEAD, architecture.early_channels)
        decoder = HQMaskDecoder(MaskDecoder(), head)
        decoder.score_head = ScoreHead()  # whether a file has to hold it is told by its parts
        return Sam(encoder, PromptEncoder(image_size=image_size), decoder)


def _vit(architecture: Architecture, official: Mapping[str, Tensor]) -> tuple[EncoderSpec, int]:
    """Dimensions of a plain ViT, from what most tensors say, so that a wrong one is found and named."""
    width, depth = architecture.widths[0], architecture.depths[0]
    positions = official.get("image_encoder.pos_embed")
    grid = positions.shape[1] if positions is not None and positions.ndim == 4 else 1024 // _STRIDE
    tables = {
        index: [
            tuple(table.shape)
            for axis in "hw"
            if (table := official.get(f"image_encoder.blocks.{index}.attn.rel_pos_{axis}")) is not None
        ]
        for index in range(depth)
    }
    shapes = [shape for pair in tables.values() for shape in pair if len(shape) == 2]
    head_dim = _most(shape[1] for shape in shapes) or width
    windowed = _most(shape[0] for shape in shapes if shape[0] != 2 * grid - 1)
    blocks = tuple(index for index, pair in tables.items() if any(shape[:1] == (2 * grid - 1,) for shape in pair))
    spec = SamViTSpec(
        width=width,
        depth=depth,
        num_heads=max(1, width // head_dim),
        global_blocks=blocks or (0,),
        window_size=(windowed + 1) // 2 if windowed else grid,
    )
    return spec, grid * _STRIDE


def _tiny(architecture: Architecture, official: Mapping[str, Tensor]) -> EncoderSpec:
    heads, windows = [1], [7]
    for stage in range(1, len(architecture.depths)):
        tables = [
            official.get(f"image_encoder.layers.{stage}.blocks.{block}.attn.attention_biases")
            for block in range(architecture.depths[stage])
        ]
        shapes = [tuple(t.shape) for t in tables if t is not None and t.ndim == 2]
        heads.append(_most(shape[0] for shape in shapes) or 1)
        windows.append(int((_most(shape[1] for shape in shapes) or 49) ** 0.5))
    return TinyViTSpec(
        widths=architecture.widths,  # type: ignore[arg-type]  # as many as there are stages
        depths=architecture.depths,  # type: ignore[arg-type]
        num_heads=tuple(heads),  # type: ignore[arg-type]
        window_sizes=tuple(windows),  # type: ignore[arg-type]
    )


def _most(numbers: Iterable[int]) -> int:
    """The most frequent number; 0 of none."""
    counted = Counter(numbers)
    return counted.most_common(1)[0][0] if counted else 0
