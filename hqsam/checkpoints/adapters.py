"""Files of encoder adapters (LoRA): small, apart from the model, merged into it where that is asked for.

An adapted layer `image_encoder.blocks.0.attn.qkv` (official name) has two tensors, `....lora_down` (r, I) and
`....lora_up` (O, r); the string map has `rank` and `alpha`. What merging adds to its weight is alpha / r * up @ down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from hqsam.checkpoints.official import listing, to_official_names
from hqsam.checkpoints.reading import LORA_DOWN, LORA_UP, TensorFile, is_adapter, read_file
from hqsam.checkpoints.writing import FORMAT_VERSION, atomic_path, storable
from hqsam.errors import CheckpointError
from hqsam.models import EncoderLoRA, Sam

LAYOUT = "encoder_lora"


def adapter_state_dict(model: Sam, adapter: EncoderLoRA) -> dict[str, Tensor]:
    """An adapter's tensors under the official names of the layers of `model` that it adapts, sharing memory."""
    names = _official_layers(model)
    tensors = {}
    for name, update in adapter.named_updates():
        tensors[names[name] + LORA_DOWN] = update.down.detach()
        tensors[names[name] + LORA_UP] = update.up.detach()
    return tensors


def load_adapter_state_dict(model: Sam, adapter: EncoderLoRA, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `adapter_state_dict` returned, all of it or nothing.

    Raises:
        CheckpointError: missing, unexpected or wrongly shaped tensors.
    """
    own = adapter_state_dict(model, adapter)
    wrong = sorted(own.keys() ^ tensors.keys()) or [n for n, t in own.items() if t.shape != tensors[n].shape]
    if wrong:
        raise CheckpointError(f"the adapter does not fit the encoder of this model and its rank: {listing(wrong)}")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def save_adapter(
    model: Sam, adapter: EncoderLoRA, path: str | PathLike[str], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write an adapter to a `.safetensors` file of its own, whole or not at all.

    Args:
        model: the model whose encoder it adapts, for the names.
        adapter: what is written.
        path: the file.
        metadata: more entries for the string map.

    Raises:
        CheckpointError: another suffix.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"an adapter is a .safetensors file, got {path.name!r}")
    tensors = {name: storable(tensor, None) for name, tensor in adapter_state_dict(model, adapter).items()}
    own = {"format": "pt", "hqsam_format": FORMAT_VERSION, "layout": LAYOUT}
    numbers = {"rank": str(adapter.rank), "alpha": repr(adapter.alpha)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {**(metadata or {}), **own, **numbers})
    return path


def load_adapter(model: Sam, path: str | PathLike[str]) -> EncoderLoRA:
    """Read an adapter and let the encoder of a model compute with it; `merge()` of the result makes that permanent.

    Args:
        model: a model, HQ or plain, whose encoder the adapter was trained for.
        path: from `save_adapter`, for instance `lora.safetensors` of a run folder.

    Returns:
        The adapter, attached.

    Raises:
        CheckpointError: no adapter file, or one for another encoder.

    Example:
        >>> load_adapter(model, "runs/mine/lora.safetensors").merge()  # doctest: +SKIP
    """
    file = read_file(path)
    rank, alpha = _numbers(file)
    adapter = EncoderLoRA(model.image_encoder, rank, alpha)
    adapter.requires_grad_(False)
    try:
        load_adapter_state_dict(model, adapter, file.tensors)
    except CheckpointError as error:
        adapter.detach()
        raise CheckpointError(f"{path}: {error}") from error
    return adapter


def merged_tensors(official: Mapping[str, Tensor], path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a model with an adapter merged into them.

    Args:
        official: a whole model under official names.
        path: an adapter file.

    Returns:
        A new dictionary; sums are made in float32 at least and stored in the weights' own type.

    Raises:
        CheckpointError: no adapter file, or one for another encoder.
    """
    file = read_file(path)
    rank, alpha = _numbers(file)
    result = dict(official)
    for name, down in file.tensors.items():
        if not name.endswith(LORA_DOWN):
            continue
        layer = name.removesuffix(LORA_DOWN)
        weight, up = official.get(f"{layer}.weight"), file.tensors.get(layer + LORA_UP)
        if weight is None or up is None or weight.shape != (up.shape[0], down.shape[1]):
            raise CheckpointError(f"{path} is an adapter of another encoder: {layer} does not fit")
        exact = torch.promote_types(weight.dtype, torch.float32)
        result[f"{layer}.weight"] = (weight.to(exact) + alpha / rank * (up.to(exact) @ down.to(exact))).to(weight.dtype)
    return result


def _numbers(file: TensorFile) -> tuple[int, float]:
    if not is_adapter(file):
        raise CheckpointError(f"{file.path} is not an adapter: its tensors do not end with {LORA_DOWN} and {LORA_UP}")
    try:
        rank, alpha = int(file.metadata["rank"]), float(file.metadata["alpha"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file.path} does not state the rank and alpha of its adapter") from error
    ranks = {len(tensor) for name, tensor in file.tensors.items() if name.endswith(LORA_DOWN)}
    if ranks != {rank} or rank < 1 or not math.isfinite(alpha):
        raise CheckpointError(
            f"{file.path} states rank {rank} and alpha {alpha}, its tensors have rank {sorted(ranks)}"
        )
    return rank, alpha


def _official_layers(model: Sam) -> dict[str, str]:
    """Name of each layer inside the encoder -> its official name inside the model."""
    names = [f"image_encoder.{name}" for name in model.image_encoder.state_dict()]
    official = to_official_names({name: name for name in names})
    inner = {memory.removeprefix("image_encoder."): name for name, memory in official.items()}
    return {memory.removesuffix(".weight"): name.removesuffix(".weight") for memory, name in inner.items()}
