"""A score head in files: it comes and goes with the HQ head whose masks it judges, and never in silence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hqsam import sam_model_registry
from hqsam.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    inspect_checkpoint,
    load_checkpoint,
    official_state_dict,
    read_tensors,
    save_adapter,
    save_checkpoint,
)
from hqsam.drop_in import _build
from hqsam.models import EncoderLoRA, Sam, ScoreHead
from hqsam.registry import create_model
from tests.helpers import fill_parameters

Build = Callable[..., Sam]
PREFIX = "mask_decoder.score_head."


@pytest.fixture
def scored(build: Build) -> Sam:
    model = build("hq_test_tiny", 1)
    head = ScoreHead()
    fill_parameters(head, 1)
    model.set_score_head(head)
    return model


@pytest.fixture
def file(scored: Sam, tmp_path: Path) -> Path:
    save_checkpoint(scored, tmp_path / "scored.safetensors", metadata={"recommended_score": "own"})
    return tmp_path / "scored.safetensors"


@pytest.mark.parametrize("part", ["all", "hq", "hq_decoder"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_round_trip(scored: Sam, build: Build, tmp_path: Path, part: str, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    info = save_checkpoint(scored, path, part=part)  # type: ignore[arg-type]
    assert info.has_score and info.layout == {"all": "light_hq_sam", "hq": "hq_head", "hq_decoder": "hq_decoder"}[part]
    other = build("hq_test_tiny", 1)
    assert other.score_head is None
    assert load_checkpoint(other, path).has_score
    assert other.score_head is not None and not any(p.requires_grad for p in other.score_head.parameters())
    expected = official_state_dict(scored)
    assert list(expected) == list(official_state_dict(other))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in official_state_dict(other).items())


def test_files_without_one_load_as_before_and_take_a_stale_one_away(scored: Sam, build: Build, tmp_path: Path) -> None:
    plain = build("hq_test_tiny", 2)
    save_checkpoint(plain, tmp_path / "plain.safetensors")
    assert not inspect_checkpoint(tmp_path / "plain.safetensors").has_score
    load_checkpoint(scored, tmp_path / "plain.safetensors")
    assert scored.score_head is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{PREFIX}mlp.layers.1.bias"), "1 missing"),
        (lambda t: t.update({f"{PREFIX}mlp.layers.7.bias": torch.zeros(2)}), "1 unexpected"),
        (lambda t: t.update({f"{PREFIX}norm.bias": torch.zeros(2)}), "no SAM or HQ-SAM model has"),
        (lambda t: t.update({f"{PREFIX}mlp.layers.2.bias": torch.zeros(3)}), "of another shape"),
    ],
)
def test_a_score_head_with_other_tensors_is_refused(
    scored: Sam, build: Build, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in official_state_dict(scored).items()}
    change(tensors)
    torch.save(tensors, tmp_path / "changed.pth")
    other = build("hq_test_tiny", 5)
    before = {name: tensor.clone() for name, tensor in official_state_dict(other).items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(other, tmp_path / "changed.pth")
    assert other.score_head is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in official_state_dict(other).items())


def test_a_score_head_without_an_hq_head_is_no_checkpoint(scored: Sam, tmp_path: Path) -> None:
    alone = {name: t for name, t in official_state_dict(scored).items() if name.startswith(PREFIX)}
    torch.save(alone, tmp_path / "alone.pth")
    with pytest.raises(CheckpointError, match="holds only a score head"):
        inspect_checkpoint(tmp_path / "alone.pth")


def test_plain_sam_leaves_it_out(file: Path, build: Build) -> None:
    model = build("sam_test_tiny", 3)
    load_checkpoint(model, file)
    assert model.score_head is None


@pytest.mark.parametrize("to", ["hq_sam", "hq_decoder"])
def test_formats_that_cannot_hold_it_say_so(
    file: Path, tmp_path: Path, to: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        info = convert_checkpoint(file, tmp_path / "out.safetensors", to=to)  # type: ignore[arg-type]
    assert not info.has_score and "recommended_score" not in info.metadata
    assert f"with a score head, which '{to}' cannot hold: it is left out" in caplog.text
    assert not any(name.startswith(PREFIX) for name in read_tensors(tmp_path / "out.safetensors"))


def test_transformers_cannot_hold_it(build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("hq_test_vit", 1)
    model.set_score_head(ScoreHead())
    save_checkpoint(model, tmp_path / "scored.safetensors")
    convert_checkpoint(tmp_path / "scored.safetensors", tmp_path / "out.safetensors", to="transformers")
    assert "with a score head, which 'transformers' cannot hold: it is left out" in caplog.text


@pytest.mark.parametrize("to", ["official", "hq_head"])
def test_our_formats_carry_it(file: Path, tmp_path: Path, to: str, caplog: pytest.LogCaptureFixture) -> None:
    info = convert_checkpoint(file, tmp_path / "out.safetensors", to=to)  # type: ignore[arg-type]
    assert info.has_score and info.recommended_score == "own" and not caplog.text
    source, made = read_tensors(file), read_tensors(tmp_path / "out.safetensors")
    mine = [name for name in source if name.startswith(PREFIX)]
    assert len(mine) == 6 and all(torch.equal(source[name], made[name]) for name in mine)


def test_another_encoder_makes_other_masks(
    scored: Sam, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = EncoderLoRA(scored.image_encoder, rank=1)
    save_adapter(scored, adapter, tmp_path / "lora.safetensors")
    with caplog.at_level(logging.WARNING):
        info = convert_checkpoint(file, tmp_path / "adapted.safetensors", lora=tmp_path / "lora.safetensors")
    assert not info.has_score and info.recommended_score is None
    assert "score head" in caplog.text and "other weights" in caplog.text


def test_weights_between_two_files_make_other_masks(
    file: Path, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(build("hq_test_tiny", 4), tmp_path / "other.safetensors")
    with caplog.at_level(logging.WARNING):
        info = convert_checkpoint(file, tmp_path / "out.safetensors", interpolate=tmp_path / "other.safetensors")
        convert_checkpoint(tmp_path / "other.safetensors", tmp_path / "back.safetensors", interpolate=file)
    assert not info.has_score and caplog.text.count("gets no score head") == 1


def test_another_hq_head_brings_its_own_or_none(file: Path, build: Build, tmp_path: Path) -> None:
    save_checkpoint(build("hq_test_tiny", 4), tmp_path / "head.safetensors", part="hq")
    merged = convert_checkpoint(file, tmp_path / "merged.safetensors", head=tmp_path / "head.safetensors")
    assert not merged.has_score and merged.recommended_score is None
    model = build("hq_test_tiny", 5)
    info = load_checkpoint(model, file, head=tmp_path / "head.safetensors")
    assert model.score_head is None and not info.has_score


def test_a_recommendation_is_create_models_default_alone(file: Path, tmp_path: Path) -> None:
    assert create_model("hq_test_tiny", file, device="cpu").default_score == "own"
    save_checkpoint(create_model("hq_test_tiny", file, device="cpu"), tmp_path / "plain.safetensors")
    assert create_model("hq_test_tiny", tmp_path / "plain.safetensors", device="cpu").default_score is None
    with pytest.raises(CheckpointError, match="recommended_score must be one of"):
        convert_checkpoint(file, tmp_path / "x.safetensors", metadata={"recommended_score": "best"})


def test_a_recommendation_needs_what_it_is_about(file: Path, tmp_path: Path) -> None:
    without = tmp_path / "without.safetensors"
    save_checkpoint(_build("hq_test_tiny", file), without)
    with pytest.raises(CheckpointError, match="would have no score head, which recommended_score='own' is about"):
        convert_checkpoint(without, tmp_path / "a.safetensors", metadata={"recommended_score": "own"})
    for asked in (
        {"recommended_score": "own"},
        {"recommended_refine": "again"},
        {"recommended_heed_clicks": "yes"},
        {"recommended_upsampling": "guided"},
        {"recommended_fusion": "hq"},
    ):
        with pytest.raises(CheckpointError, match="would have no HQ head"):
            convert_checkpoint(file, tmp_path / "b.safetensors", part="sam", metadata=asked)
    assert not list(tmp_path.glob("[ab].safetensors"))
    convert_checkpoint(file, tmp_path / "c.safetensors", part="sam", metadata={"recommended_fusion": "sam"})


def test_the_drop_in_has_the_published_names_alone(file: Path) -> None:
    model = _build("hq_test_tiny", file)
    assert model.score_head is None and model.default_score is None
    assert not any("score_head" in name for name in model.state_dict())
    assert set(sam_model_registry) >= {"vit_b", "vit_tiny"}
