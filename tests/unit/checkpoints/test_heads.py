"""Files of models whose head is not the published one: they say so, load back, and never pass for a published file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hqsam.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    inspect_checkpoint,
    load_checkpoint,
    official_state_dict,
    save_checkpoint,
    to_memory_names,
    to_official_names,
)
from hqsam.checkpoints.official import family_of, memory_keys, official_keys
from hqsam.models import FULL_HEAD, Sam
from hqsam.registry import create_model
from tests.helpers import fill_parameters

REDUCED = ["early+final", "final+mask", "early+mask", "mask", "token", "sam_token", "sam_decoder"]


def trained(head: str, name: str = "hq_test_tiny") -> Sam:
    model = create_model(name, device="cpu", head=head)
    fill_parameters(model, 4)
    model.head_state = "trained"
    return model


def strings(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def assert_equal_models(a: Sam, b: Sam) -> None:
    left, right = official_state_dict(a), official_state_dict(b)
    assert list(left) == list(right)
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("head", REDUCED)
def test_a_file_says_what_its_head_is(head: str, tmp_path: Path) -> None:
    model = trained(head)
    info = save_checkpoint(model, tmp_path / "model.safetensors")
    assert info.head == head == strings(info.path)["hq_head"]
    assert info.layout == "light_hq_sam" and info.has_hq and " with " in info.title and info.head_trained
    assert_equal_models(create_model("hq_test_tiny", info.path, device="cpu"), model)

    part = save_checkpoint(model, tmp_path / "head.safetensors", part="hq")
    assert part.head == head and part.layout == "hq_head"
    other = create_model("hq_test_tiny", device="cpu", head=head)
    sam = save_checkpoint(model, tmp_path / "sam.safetensors", part="sam")
    assert sam.head is None and "hq_head" not in strings(sam.path)
    assert load_checkpoint(other, sam.path, head=part.path).head == head
    assert_equal_models(other, model)


def test_a_file_of_the_published_head_is_as_it_was(tmp_path: Path) -> None:
    info = save_checkpoint(trained(FULL_HEAD), tmp_path / "model.safetensors")
    assert info.head == FULL_HEAD and info.title == "Light HQ-SAM (test_tiny)"
    assert set(strings(info.path)) == {"format", "hqsam_format", "layout", "variant", "image_size"}


@pytest.mark.parametrize("head", REDUCED)
def test_it_does_not_load_as_another_head(head: str, tmp_path: Path) -> None:
    path = save_checkpoint(trained(head), tmp_path / "model.safetensors").path
    for other in [FULL_HEAD, "sam_token" if head == "token" else "token"]:
        model = create_model("hq_test_tiny", device="cpu", head=other)
        with pytest.raises(CheckpointError, match="was built with") as caught:
            load_checkpoint(model, path)
        assert "\n" not in str(caught.value) and f"head='{head}'" in str(caught.value)
    whole = save_checkpoint(trained(FULL_HEAD), tmp_path / "whole.safetensors").path
    with pytest.raises(CheckpointError, match="was built with"):
        create_model("hq_test_tiny", whole, device="cpu", head=head)


@pytest.mark.parametrize("head", REDUCED)
def test_no_published_layout_takes_it(head: str, tmp_path: Path) -> None:
    model = trained(head)
    with pytest.raises(CheckpointError, match="which no published layout has"):
        save_checkpoint(model, tmp_path / "model.pth")
    source = save_checkpoint(model, tmp_path / "model.safetensors").path
    for to, suffix in (("official", "pth"), ("hq_sam", "safetensors"), ("hq_decoder", "safetensors")):
        with pytest.raises(CheckpointError, match="which no published layout has") as caught:
            convert_checkpoint(source, tmp_path / f"new.{suffix}", to=to)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / f"new.{suffix}").exists()


def test_transformers_does_not_take_it(tmp_path: Path) -> None:
    source = save_checkpoint(trained("final+mask", "hq_test_vit"), tmp_path / "model.safetensors").path
    with pytest.raises(CheckpointError, match="which no published layout has"):
        convert_checkpoint(source, tmp_path / "new.safetensors", to="transformers")


def test_conversions_keep_or_replace_what_the_file_says(tmp_path: Path) -> None:
    source = save_checkpoint(trained("final+mask"), tmp_path / "model.safetensors").path
    half = convert_checkpoint(source, tmp_path / "half.safetensors", dtype=torch.float16)
    assert half.head == "final+mask" and half.dtype == "float16"
    assert convert_checkpoint(source, tmp_path / "head.safetensors", to="hq_head").head == "final+mask"
    assert convert_checkpoint(source, tmp_path / "sam.pth", to="sam").head is None

    whole = trained(FULL_HEAD)
    full_head = save_checkpoint(whole, tmp_path / "full_head.safetensors", part="hq").path
    replaced = convert_checkpoint(source, tmp_path / "replaced.pth", head=full_head)
    assert replaced.head == FULL_HEAD
    assert_equal_models(create_model("hq_test_tiny", replaced.path, device="cpu"), whole)
    token = save_checkpoint(trained("sam_token"), tmp_path / "token.safetensors", part="hq").path
    assert convert_checkpoint(replaced.path, tmp_path / "again.safetensors", head=token).head == "sam_token"


def test_an_unknown_head_in_a_file_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({key: t.clone() for key, t in official_state_dict(trained("token")).items()}, path, {"hq_head": "new"})
    with pytest.raises(CheckpointError, match="its hq_head is unknown to this version: head must be"):
        inspect_checkpoint(path)
    with pytest.raises(CheckpointError, match="its hq_head is unknown to this version: head must be"):
        create_model("hq_test_tiny", path, device="cpu")


@pytest.mark.parametrize("head", ["token", "early+mask"])
def test_a_file_that_lost_its_strings_is_refused(head: str, tmp_path: Path) -> None:
    """Without them it counts as the published head, whose tensors are not all there."""
    path = tmp_path / "model.pth"
    torch.save(official_state_dict(trained(head)), path)
    with pytest.raises(CheckpointError, match="missing: mask_decoder"):
        create_model("hq_test_tiny", path, device="cpu")


@pytest.mark.parametrize("head", REDUCED)
def test_names_of_heads_are_unambiguous_and_go_back(head: str) -> None:
    model = create_model("hq_test_tiny", device="cpu", head=head)
    state = {name: index for index, name in enumerate(model.state_dict())}
    official = to_official_names(state)
    assert list(to_memory_names(official, hq=True).items()) == list(state.items())
    for names, keys in ((official, official_keys(family_of(official))), (state, memory_keys(family_of(state)))):
        assert [name for name in names if len(keys.matches(name)) != 1] == []


def test_a_copy_begins_as_the_sam_of_the_file(tmp_path: Path) -> None:
    donor = create_model("sam_test_tiny", device="cpu")
    fill_parameters(donor, 9)
    path = save_checkpoint(donor, tmp_path / "sam.pth").path
    for head in ("sam_token", "sam_decoder"):
        model = create_model("hq_test_tiny", path, device="cpu", fresh_hq_head=True, head=head)
        assert model.head_state == "untrained"
        own = dict(model.mask_decoder.head.named_parameters())
        token = own["sam_token.weight"] if head == "sam_token" else own["decoder.mask_tokens.weight"][:1]
        assert torch.equal(token, donor.mask_decoder.mask_tokens.weight[:1])
