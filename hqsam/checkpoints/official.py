"""The official names of SAM, HQ-SAM, MobileSAM and Light HQ-SAM, and ours in memory.

Official names are those of the public `segment_anything` and `segment_anything_hq` packages. They are also the only
names that are written to disk, with one addition of ours: `mask_decoder.score_head.`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from hqsam.checkpoints.keys import Dropped, KeyMap, Rule, Translation
from hqsam.errors import CheckpointError

T = TypeVar("T")
Family = Literal["vit", "tiny"]
Part = Literal["encoder", "prompt", "trunk", "head", "score"]

PARTS: Mapping[Part, str] = {
    "encoder": "image_encoder.",
    "prompt": "prompt_encoder.",
    "trunk": "mask_decoder.trunk.",
    "head": "mask_decoder.head.",
    "score": "mask_decoder.score_head.",
}
"""Prefixes in memory of the parts of an HQ model; a plain SAM has no `trunk.` level and no head.

The score head is ours: no published program knows its names, and an HQ model may have none.
"""


def _rules(source_prefix: str, target_prefix: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(source_prefix + source, target_prefix + target) for source, target in names.items())


def _stack(source: str, target: str, layer: str) -> dict[str, str]:
    """A convolution, a norm, a GELU and a convolution: members 0, 1 and 3 of the official Sequential."""
    return {
        f"{source}.0.{{p}}": f"{target}.{layer}1.{{p}}",
        f"{source}.1.{{p}}": f"{target}.norm.{{p}}",
        f"{source}.3.{{p}}": f"{target}.{layer}2.{{p}}",
    }


_VIT = _rules(
    "image_encoder.",
    "image_encoder.backbone.",
    {
        "pos_embed": "pos_embed",
        "patch_embed.proj.{p}": "patch_embed.proj.{p}",
        "blocks.{i}.norm{k}.{p}": "blocks.{i}.norm{k}.{p}",
        "blocks.{i}.attn.qkv.{p}": "blocks.{i}.attn.qkv.{p}",
        "blocks.{i}.attn.proj.{p}": "blocks.{i}.attn.proj.{p}",
        "blocks.{i}.attn.rel_pos_h": "blocks.{i}.attn.rel_pos_h",
        "blocks.{i}.attn.rel_pos_w": "blocks.{i}.attn.rel_pos_w",
        "blocks.{i}.mlp.lin{k}.{p}": "blocks.{i}.mlp.fc{k}.{p}",
        "neck.{i}.{p}": "neck.{i}.{p}",
    },
)

# The official downsampling ends layer i, timm's begins stage i + 1; a convolution with its batch norm is `c` and `bn`
# there, `conv` and `bn` here.
_TINY = _rules(
    "image_encoder.",
    "image_encoder.backbone.",
    {
        "patch_embed.seq.0.c.weight": "patch_embed.conv1.conv.weight",
        "patch_embed.seq.0.bn.{stat}": "patch_embed.conv1.bn.{stat}",
        "patch_embed.seq.2.c.weight": "patch_embed.conv2.conv.weight",
        "patch_embed.seq.2.bn.{stat}": "patch_embed.conv2.bn.{stat}",
        "layers.{i}.downsample.conv{k}.c.weight": "stages.{i+1}.downsample.conv{k}.conv.weight",
        "layers.{i}.downsample.conv{k}.bn.{stat}": "stages.{i+1}.downsample.conv{k}.bn.{stat}",
        "layers.{i}.blocks.{j}.conv{k}.c.weight": "stages.{i}.blocks.{j}.conv{k}.conv.weight",
        "layers.{i}.blocks.{j}.conv{k}.bn.{stat}": "stages.{i}.blocks.{j}.conv{k}.bn.{stat}",
        "layers.{i}.blocks.{j}.local_conv.c.weight": "stages.{i}.blocks.{j}.local_conv.conv.weight",
        "layers.{i}.blocks.{j}.local_conv.bn.{stat}": "stages.{i}.blocks.{j}.local_conv.bn.{stat}",
        "layers.{i}.blocks.{j}.attn.attention_biases": "stages.{i}.blocks.{j}.attn.attention_biases",
        "layers.{i}.blocks.{j}.attn.norm.{p}": "stages.{i}.blocks.{j}.attn.norm.{p}",
        "layers.{i}.blocks.{j}.attn.qkv.{p}": "stages.{i}.blocks.{j}.attn.qkv.{p}",
        "layers.{i}.blocks.{j}.attn.proj.{p}": "stages.{i}.blocks.{j}.attn.proj.{p}",
        "layers.{i}.blocks.{j}.mlp.norm.{p}": "stages.{i}.blocks.{j}.mlp.norm.{p}",
        "layers.{i}.blocks.{j}.mlp.fc{k}.{p}": "stages.{i}.blocks.{j}.mlp.fc{k}.{p}",
    },
) + (Rule("image_encoder.neck.{i}.{p}", "image_encoder.neck.{i}.{p}"),)

_PROMPT = _rules(
    "prompt_encoder.",
    "prompt_encoder.",
    {
        "pe_layer.positional_encoding_gaussian_matrix": "positions.frequencies",
        "point_embeddings.{i}.weight": "point_embeddings.{i}.weight",
        "not_a_point_embed.weight": "not_a_point.weight",
        "no_mask_embed.weight": "no_mask.weight",
        "mask_downscaling.{i}.{p}": "mask_downscaling.{i}.{p}",
    },
)

_TRUNK_NAMES: Mapping[str, str] = {
    "transformer.layers.{i}.self_attn.{proj}.{p}": "transformer.layers.{i}.self_attn.{proj}.{p}",
    "transformer.layers.{i}.cross_attn_token_to_image.{proj}.{p}": ("transformer.layers.{i}.token_to_image.{proj}.{p}"),
    "transformer.layers.{i}.cross_attn_image_to_token.{proj}.{p}": ("transformer.layers.{i}.image_to_token.{proj}.{p}"),
    "transformer.layers.{i}.norm{k}.{p}": "transformer.layers.{i}.norm{k}.{p}",
    "transformer.layers.{i}.mlp.lin{k}.{p}": "transformer.layers.{i}.mlp.layers.{k-1}.{p}",
    "transformer.final_attn_token_to_image.{proj}.{p}": "transformer.final_token_to_image.{proj}.{p}",
    "transformer.norm_final_attn.{p}": "transformer.final_norm.{p}",
    "iou_token.weight": "iou_token.weight",
    "mask_tokens.weight": "mask_tokens.weight",
    **_stack("output_upscaling", "upscaling", "up"),
    "output_hypernetworks_mlps.{i}.layers.{j}.{p}": "hypernetworks.{i}.layers.{j}.{p}",
    "iou_prediction_head.layers.{j}.{p}": "iou_head.layers.{j}.{p}",
}
_TRUNK = _rules("mask_decoder.", "mask_decoder.trunk.", _TRUNK_NAMES)

_HEAD = _rules(
    "mask_decoder.",
    "mask_decoder.head.",
    {
        "hf_token.weight": "token.weight",
        "hf_mlp.layers.{j}.{p}": "mlp.layers.{j}.{p}",
        **_stack("compress_vit_feat", "early_fusion", "up"),
        **_stack("embedding_encoder", "final_fusion", "up"),
        **_stack("embedding_maskfeature", "mask_fusion", "conv"),
    },
)

# Tuned copies of SAM's parts in the place of the HQ head (`hqsam.models.heads`); no other program knows them. A copy of
# the decoder has no scores.
_COPY_NAMES = {name: target for name, target in _TRUNK_NAMES.items() if not name.startswith("iou_prediction_head")}
_COPIES = _rules(
    "mask_decoder.",
    "mask_decoder.head.",
    {"tuned_token.weight": "sam_token.weight", "tuned_mlp.layers.{j}.{p}": "sam_mlp.layers.{j}.{p}"},
) + _rules("mask_decoder.tuned_decoder.", "mask_decoder.head.decoder.", _COPY_NAMES)
_SCORE = (Rule("mask_decoder.score_head.mlp.layers.{j}.{p}", "mask_decoder.score_head.mlp.layers.{j}.{p}"),)

_CONSTANT = "a constant of the normalisation, not learned"
_CLASSIFIER = "TinyViT's image classifier, which segmentation never runs"
_DROPPED = (Dropped("pixel_mean", _CONSTANT), Dropped("pixel_std", _CONSTANT))
_DROPPED_TINY = (
    Dropped("image_encoder.norm_head.{p}", _CLASSIFIER),
    Dropped("image_encoder.head.{p}", _CLASSIFIER),
    Dropped(
        "image_encoder.layers.{i}.blocks.{j}.attn.attention_bias_idxs",
        "an index table that follows from the window size",
    ),
    Dropped("image_encoder.layers.{i}.blocks.{j}.attn.ab", "attention biases gathered for inference, a copy"),
)

# A name with one of these beginnings belongs to that encoder family; official names left, ours right.
_MARKS: Mapping[Family, tuple[str, ...]] = {
    "vit": ("image_encoder.blocks.", "image_encoder.patch_embed.proj.", "image_encoder.backbone.blocks."),
    "tiny": ("image_encoder.layers.", "image_encoder.patch_embed.seq.", "image_encoder.backbone.stages."),
}


def encoder_rules(family: Family) -> tuple[Rule, ...]:
    """The rules of the image encoder alone."""
    return {"vit": _VIT, "tiny": _TINY}[family]


@functools.cache
def official_keys(family: Family | None) -> KeyMap:
    """Rules from official names to those of an HQ model in memory; None is for files without an image encoder."""
    encoder = () if family is None else encoder_rules(family)
    dropped = _DROPPED_TINY if family == "tiny" else ()
    return KeyMap((*encoder, *_PROMPT, *_TRUNK, *_HEAD, *_SCORE, *_COPIES), (*_DROPPED, *dropped))


@functools.cache
def memory_keys(family: Family | None) -> KeyMap:
    """The inverse of `official_keys`."""
    return official_keys(family).inverse()


def family_of(names: Iterable[str]) -> Family | None:
    """Encoder family of official names or of names in memory; None where there is no image encoder."""
    for name in names:
        for family, marks in _MARKS.items():
            if name.startswith(marks):
                return family
    return None


def part_of(name: str) -> Part:
    """Which part of an HQ model a name in memory (with its `trunk.` level) belongs to."""
    return next(part for part, prefix in PARTS.items() if name.startswith(prefix))


def is_score(name: str) -> bool:
    """Whether a tensor belongs to the score head, whose names are the same on disk and in memory."""
    return name.startswith(PARTS["score"])


def translate_official(names: Iterable[str]) -> Translation:
    """Rename official names to those of an HQ model, telling unknown and dropped ones apart."""
    names = tuple(names)
    return official_keys(family_of(names)).translate(names)


def to_memory_names(tensors: Mapping[str, T], *, hq: bool, unknown: Literal["error", "keep"] = "error") -> dict[str, T]:
    """Rename a dictionary with official names to the names of a model in memory.

    Args:
        tensors: official name -> anything.
        hq: names of an HQ model (`mask_decoder.trunk.*`, `mask_decoder.head.*`) or of a plain SAM.
        unknown: "keep" passes names that no rule knows through unchanged, for a caller that reports them itself.

    Returns:
        The same values in the same order, without the tensors that no model needs (see `official_keys`).

    Raises:
        CheckpointError: a name that no rule knows, unless `unknown="keep"`.
    """
    translation = translate_official(tensors)
    if translation.unknown and unknown == "error":
        raise CheckpointError(f"unknown tensor names: {listing(translation.unknown)}")
    names = {name: _place_trunk(target, hq) for name, target in translation.names.items()}
    return {names.get(name, name): value for name, value in tensors.items() if name not in translation.dropped}


def to_official_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Rename a dictionary with the names of a model in memory, HQ or plain, to official names.

    Raises:
        CheckpointError: a name that no rule knows.
    """
    lifted = {name: _lift_trunk(name) for name in tensors}
    translation = memory_keys(family_of(tensors)).translate(lifted.values())
    unknown = [name for name, target in lifted.items() if target not in translation.names]
    if unknown:
        raise CheckpointError(f"names without an official counterpart: {listing(unknown)}")
    return {translation.names[lifted[name]]: value for name, value in tensors.items()}


def listing(names: Iterable[str], limit: int = 10) -> str:
    """Up to `limit` names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _place_trunk(name: str, hq: bool) -> str:
    trunk = PARTS["trunk"]
    return "mask_decoder." + name.removeprefix(trunk) if not hq and name.startswith(trunk) else name


def _lift_trunk(name: str) -> str:
    """A plain SAM's decoder name as the trunk's name in an HQ model; other names unchanged."""
    inside = name.startswith("mask_decoder.") and not name.startswith((PARTS["trunk"], PARTS["head"], PARTS["score"]))
    return PARTS["trunk"] + name.removeprefix("mask_decoder.") if inside else name
