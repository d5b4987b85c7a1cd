from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from hqsam.checkpoints import CheckpointError, official_state_dict, to_memory_names, to_official_names
from hqsam.checkpoints.official import (
    family_of,
    memory_keys,
    official_keys,
    part_of,
    translate_official,
)
from hqsam.models import HQHead, HQMaskDecoder, ScoreHead
from hqsam.registry import build_model, list_models, model_spec

NAMES = [name for name in list_models() if "." not in name]


def memory_names(model: nn.Module) -> list[str]:
    return list(model.state_dict())


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    with torch.device("meta"):
        return build_model(model_spec(request.param))


def test_rules_are_unambiguous_and_complete(model: nn.Module) -> None:
    official = list(official_state_dict(model))
    lifted = list(translate_official(official).names.values())
    for names, keys in ((official, official_keys(family_of(official))), (lifted, memory_keys(family_of(lifted)))):
        assert [name for name in names if len(keys.matches(name)) != 1] == []


def test_names_go_back_and_forth(model: nn.Module) -> None:
    state = {name: index for index, name in enumerate(memory_names(model))}
    official = to_official_names(state)
    assert len(official) == len(state)
    back = to_memory_names(official, hq=model.has_hq)
    assert list(back.items()) == list(state.items())


def test_every_rule_is_used_by_a_model() -> None:
    used = set()
    specs = [model_spec(name) for name in NAMES]
    specs += [replace(model_spec("hq_test_tiny"), head=head) for head in ("sam_token", "sam_decoder")]
    for spec in specs:
        with torch.device("meta"):
            model = build_model(spec)
            if isinstance(model.mask_decoder, HQMaskDecoder) and isinstance(model.mask_decoder.head, HQHead):
                model.set_score_head(ScoreHead())
            official = official_state_dict(model)
        keys = official_keys(family_of(official))
        used |= {rule for rule in keys.rules for key in official if rule.apply(key)}
    assert {rule for family in ("vit", "tiny") for rule in official_keys(family).rules} == used


def test_parts_are_the_modules_of_an_hq_model() -> None:
    with torch.device("meta"):
        model = build_model(model_spec("hq_test_tiny"))
    counts: dict[str, int] = {}
    for name, tensor in model.named_parameters():
        counts[part_of(name)] = counts.get(part_of(name), 0) + tensor.numel()
    assert set(counts) == {"encoder", "prompt", "trunk", "head"}
    assert counts["head"] == sum(p.numel() for p in model.hq_parameters())


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.blocks.0.mlp.fc1.weight",
        "image_encoder.blocks.0.mlp.lin1.weight.old",
        "mask_decoder.trunk.iou_token.weight",
        "mask_decoder.output_upscaling.2.weight",
        "backbone.conv.weight",
    ],
)
def test_an_unknown_name_is_named(name: str) -> None:
    known = "image_encoder.blocks.0.norm1.weight"
    with pytest.raises(CheckpointError, match=re.escape(name)):
        to_memory_names({known: 0, name: 1}, hq=True)
    kept = to_memory_names({known: 0, name: 1}, hq=True, unknown="keep")
    assert kept == {"image_encoder.backbone.blocks.0.norm1.weight": 0, name: 1}


def test_a_foreign_module_has_no_official_names() -> None:
    with pytest.raises(CheckpointError, match=r"without an official counterpart: mask_decoder\.extra"):
        to_official_names({"mask_decoder.extra": 0})


@pytest.mark.parametrize(
    "name",
    [
        "pixel_mean",
        "image_encoder.norm_head.weight",
        "image_encoder.head.bias",
        "image_encoder.layers.1.blocks.0.attn.attention_bias_idxs",
    ],
)
def test_what_no_model_needs_is_dropped_with_a_reason(name: str) -> None:
    encoder = "image_encoder.layers.0.blocks.0.conv1.c.weight"
    assert len(translate_official([encoder, name]).dropped[name]) > 10
    assert to_memory_names({encoder: 0, name: 1}, hq=False) == {
        "image_encoder.backbone.stages.0.blocks.0.conv1.conv.weight": 0
    }


def test_the_classifier_is_dropped_for_tiny_vit_only() -> None:
    with pytest.raises(CheckpointError, match=r"image_encoder\.head\.weight"):
        to_memory_names({"image_encoder.blocks.0.norm1.weight": 0, "image_encoder.head.weight": 1}, hq=False)


def test_a_plain_decoder_has_no_trunk_level() -> None:
    name = "mask_decoder.transformer.layers.1.mlp.lin2.bias"
    assert list(to_memory_names({name: 0}, hq=False)) == ["mask_decoder.transformer.layers.1.mlp.layers.1.bias"]
    assert list(to_memory_names({name: 0}, hq=True)) == ["mask_decoder.trunk.transformer.layers.1.mlp.layers.1.bias"]
    for hq in (False, True):
        assert to_official_names(to_memory_names({name: 0}, hq=hq)) == {name: 0}
