"""Names that other libraries give to the same tensors: transformers' SAM and SamHQ, and timm's image encoders.

Each table maps a library's names to the official ones, one rule a name; `official.py` goes on from there.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hqsam.checkpoints.keys import Dropped, KeyMap, Rule
from hqsam.checkpoints.official import Family, encoder_rules, family_of, listing, translate_official
from hqsam.errors import CheckpointError

Naming = Literal["official", "decoder", "transformers", "timm"]
"""Whose names; "decoder" is the official ones without `mask_decoder.`, as the published trainer writes a decoder."""


def _mlp(source: str, target: str) -> dict[str, str]:
    """A perceptron of three layers: transformers tells its first and its last from those between."""
    return {
        f"{source}.proj_in.{{p}}": f"{target}.layers.0.{{p}}",
        f"{source}.layers.0.{{p}}": f"{target}.layers.1.{{p}}",
        f"{source}.proj_out.{{p}}": f"{target}.layers.2.{{p}}",
    }


def _stack(sources: tuple[str, str, str], target: str) -> dict[str, str]:
    """A convolution, a norm, an activation and a convolution: members 0, 1 and 3 of the official Sequential."""
    return {f"{source}.{{p}}": f"{target}.{index}.{{p}}" for source, index in zip(sources, (0, 1, 3), strict=True)}


_TRANSFORMERS_ENCODER = {
    "pos_embed": "pos_embed",
    "patch_embed.projection.{p}": "patch_embed.proj.{p}",
    "layers.{i}.layer_norm{k}.{p}": "blocks.{i}.norm{k}.{p}",
    "layers.{i}.attn.qkv.{p}": "blocks.{i}.attn.qkv.{p}",
    "layers.{i}.attn.proj.{p}": "blocks.{i}.attn.proj.{p}",
    "layers.{i}.attn.rel_pos_h": "blocks.{i}.attn.rel_pos_h",
    "layers.{i}.attn.rel_pos_w": "blocks.{i}.attn.rel_pos_w",
    "layers.{i}.mlp.lin{k}.{p}": "blocks.{i}.mlp.lin{k}.{p}",
    "neck.conv1.weight": "neck.0.weight",
    "neck.layer_norm1.{p}": "neck.1.{p}",
    "neck.conv2.weight": "neck.2.weight",
    "neck.layer_norm2.{p}": "neck.3.{p}",
}
_TRANSFORMERS_PROMPT = {
    "point_embed.{i}.weight": "point_embeddings.{i}.weight",
    "not_a_point_embed.weight": "not_a_point_embed.weight",
    "no_mask_embed.weight": "no_mask_embed.weight",
    "mask_embed.conv1.{p}": "mask_downscaling.0.{p}",
    "mask_embed.layer_norm1.{p}": "mask_downscaling.1.{p}",
    "mask_embed.conv2.{p}": "mask_downscaling.3.{p}",
    "mask_embed.layer_norm2.{p}": "mask_downscaling.4.{p}",
    "mask_embed.conv3.{p}": "mask_downscaling.6.{p}",
}
_ATTENTION = "transformer.layers.{i}.%s.{proj}.{p}"
_TRANSFORMERS_DECODER = {
    "iou_token.weight": "iou_token.weight",
    "mask_tokens.weight": "mask_tokens.weight",
    **{
        _ATTENTION % name: _ATTENTION % name
        for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    },
    "transformer.layers.{i}.layer_norm{k}.{p}": "transformer.layers.{i}.norm{k}.{p}",
    "transformer.layers.{i}.mlp.lin{k}.{p}": "transformer.layers.{i}.mlp.lin{k}.{p}",
    "transformer.final_attn_token_to_image.{proj}.{p}": "transformer.final_attn_token_to_image.{proj}.{p}",
    "transformer.layer_norm_final_attn.{p}": "transformer.norm_final_attn.{p}",
    **_stack(("upscale_conv1", "upscale_layer_norm", "upscale_conv2"), "output_upscaling"),
    **_mlp("output_hypernetworks_mlps.{i}", "output_hypernetworks_mlps.{i}"),
    **_mlp("iou_prediction_head", "iou_prediction_head"),
    "hq_token.weight": "hf_token.weight",
    **_mlp("hq_mask_mlp", "hf_mlp"),
    **_stack(("compress_vit_conv1", "compress_vit_norm", "compress_vit_conv2"), "compress_vit_feat"),
    **_stack(("encoder_conv1", "encoder_norm", "encoder_conv2"), "embedding_encoder"),
    **_stack(("mask_conv1", "mask_norm", "mask_conv2"), "embedding_maskfeature"),
}

COPIES: Mapping[str, str] = {
    "prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding"
}
"""transformers keeps one tensor under two names; the copy (left) may be absent from a file, as it is where transformers
knew that both are one."""

_DECODER = "mask_decoder."
_MARKS: Mapping[Naming, tuple[str, ...]] = {
    "transformers": ("vision_encoder.", "shared_image_embedding."),
    "official": ("image_encoder.", "prompt_encoder.", _DECODER),
    "timm": ("blocks.", "stages."),
}
_TIMM_FAMILY: Mapping[str, Family] = {"blocks.": "vit", "stages.": "tiny"}


@functools.cache
def foreign_keys(naming: Naming, family: Family) -> KeyMap:
    """Rules from a library's names to the official ones."""
    if naming == "timm":
        # Our encoder is timm's: its names in memory, without what stands before them, are timm's own.
        return KeyMap(
            [Rule(_after_encoder(rule.target), rule.source) for rule in encoder_rules(family)],
            [Dropped("head.norm.{p}", _CLASSIFIER), Dropped("head.fc.{p}", _CLASSIFIER)] if family == "tiny" else (),
        )
    tables = {
        ("vision_encoder.", "image_encoder."): _TRANSFORMERS_ENCODER,
        ("prompt_encoder.", "prompt_encoder."): _TRANSFORMERS_PROMPT,
        ("mask_decoder.", "mask_decoder."): _TRANSFORMERS_DECODER,
    }
    rules = [Rule(a + source, b + target) for (a, b), table in tables.items() for source, target in table.items()]
    gaussian = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    rules += [Rule(original, gaussian) for original in COPIES.values()]
    return KeyMap(rules, [Dropped(copy, f"a copy of {original}") for copy, original in COPIES.items()])


_CLASSIFIER = "the image classifier, which segmentation never runs"


@dataclass(frozen=True)
class Renamed:
    """Tensors of a file under official names.

    Attributes:
        naming: whose names the file has.
        tensors: official name -> tensor, of everything that a model uses.
        unknown: names in the file that no model has.
    """

    naming: Naming
    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]


def to_official(tensors: Mapping[str, Tensor], source: str) -> Renamed:
    """Find out whose names a file has, and give its tensors the official ones; no tensor is copied.

    Args:
        tensors: name in the file -> tensor.
        source: the file, for messages.

    Raises:
        CheckpointError: two names of one tensor hold different numbers.
    """
    naming = naming_of(tensors)
    if naming in ("official", "decoder"):
        prefix = _DECODER if naming == "decoder" else ""
        found = translate_official(prefix + name for name in tensors)
        known = {name: tensors[name.removeprefix(prefix)] for name in found.names}
        return Renamed(naming, known, tuple(name.removeprefix(prefix) for name in found.unknown))
    translation = foreign_keys(naming, _family(tensors, naming)).translate(tensors)
    _require_equal_copies(tensors, source)
    return Renamed(
        naming, {official: tensors[name] for name, official in translation.names.items()}, translation.unknown
    )


def from_official(tensors: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Official names to those of a library; what it keeps twice comes twice.

    Args:
        tensors: official name -> tensor, of a plain ViT for "transformers", of an image encoder alone for "timm", of a
            mask decoder for "decoder".
        naming: whose names.

    Raises:
        CheckpointError: tensors that the library has no name for.
    """
    if naming in ("official", "decoder"):
        return {spell(name, naming): tensor for name, tensor in tensors.items()}
    translation = foreign_keys(naming, family_of(tensors) or "vit").inverse().translate(tensors)
    if translation.unknown:
        raise CheckpointError(f"{naming} has no names for {listing(translation.unknown, 3)}")
    renamed = {translation.names[name]: tensor for name, tensor in tensors.items()}
    twice = {copy: renamed[name].clone() for copy, name in COPIES.items() if name in renamed}
    return {**renamed, **twice}


def spell(official_name: str, naming: Naming) -> str:
    """How a library writes an official name; unchanged where it has no name for it."""
    if naming in ("official", "decoder"):
        return official_name.removeprefix(_DECODER) if naming == "decoder" else official_name
    keys = foreign_keys(naming, family_of([official_name]) or "vit").inverse()
    return keys.translate([official_name]).names.get(official_name, official_name)


def naming_of(tensors: Mapping[str, Tensor]) -> Naming:
    """Whose names these are; "official" also where they are nobody's."""
    for naming, marks in _MARKS.items():
        if any(name.startswith(marks) for name in tensors):
            return naming
    return "decoder" if translate_official(_DECODER + name for name in tensors).names else "official"


def _family(tensors: Mapping[str, Tensor], naming: Naming) -> Family:
    if naming == "timm":
        return next(f for mark, f in _TIMM_FAMILY.items() if any(name.startswith(mark) for name in tensors))
    return "vit"


def _after_encoder(name: str) -> str:
    return name.removeprefix("image_encoder.").removeprefix("backbone.")


def _require_equal_copies(tensors: Mapping[str, Tensor], source: str) -> None:
    for copy, original in COPIES.items():
        if copy in tensors and original in tensors and not _equal(tensors[copy], tensors[original]):
            raise CheckpointError(f"{source} holds one tensor twice with different numbers: {copy} and {original}")


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
