from __future__ import annotations

import torch

import hqsam
from hqsam import drop_in
from hqsam.registry import build_model, model_spec
from tests.helpers import fill_parameters


def test_registry_keys():
    assert set(hqsam.sam_model_registry) == {"default", "vit_h", "vit_l", "vit_b", "vit_tiny"}
    assert set(hqsam.sam_model_registry_baseline) == set(hqsam.sam_model_registry)


def test_state_dict_speaks_official_names():
    model = drop_in._build("hq_test_vit")
    names = set(model.state_dict())
    assert {"mask_decoder.hf_token.weight", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"} <= names
    assert not any(".trunk." in name or ".head." in name for name in names)


def test_official_state_loads_back_strictly():
    source, target = drop_in._build("hq_test_vit"), drop_in._build("hq_test_vit")
    fill_parameters(source)
    target.load_state_dict(source.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))
    wrong = source.state_dict()
    wrong["mask_decoder.hf_tokn.weight"] = wrong.pop("mask_decoder.hf_token.weight")
    result = target.load_state_dict(wrong, strict=False)
    assert result.unexpected_keys == ["mask_decoder.hf_tokn.weight"]
    assert result.missing_keys == ["mask_decoder.head.token.weight"]


def test_random_models_are_usable():
    model = hqsam.sam_model_registry_baseline["vit_tiny"](checkpoint=None)
    assert model.image_encoder.img_size == 1024 and model.head_state == "random"
    assert build_model(model_spec("hq_test_tiny")).head_state == "random"
