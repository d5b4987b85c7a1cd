"""Layouts of other libraries: rules, round trips, and every single key changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hqsam.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    inspect_checkpoint,
    load_checkpoint,
    loader,
    official_state_dict,
    read_tensors,
    save_checkpoint,
)
from hqsam.checkpoints.foreign import COPIES, foreign_keys, from_official
from hqsam.checkpoints.formats import open_checkpoint, recognise
from hqsam.checkpoints.official import family_of
from hqsam.checkpoints.reading import TRAINING_STATE, TensorFile
from hqsam.checkpoints.skeleton import require_complete
from hqsam.checkpoints.state import Target
from hqsam.engine.state import FORMAT
from hqsam.models import Sam
from hqsam.registry import build_model, list_models, model_spec

Layouts = dict[str, tuple[str, dict[str, Tensor]]]
Build = Callable[..., Sam]
NAMES = [name for name in list_models() if "." not in name]
FOREIGN = {
    "transformers_sam": ("sam_test_vit", "transformers"),
    "transformers_hq_sam": ("hq_test_vit", "transformers"),
    "timm_encoder/vit": ("hq_test_vit", "timm"),
    "timm_encoder/tiny": ("hq_test_tiny", "timm"),
}


def encoder_of(official: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in official.items() if name.startswith("image_encoder.")}


@pytest.fixture(scope="module")
def models(build: Build) -> dict[str, Sam]:
    """The small models with random weights, to be filled again and again."""
    return {name: build(name, None) for name, _ in FOREIGN.values()}


@pytest.fixture(scope="module")
def wholes(layouts: Layouts) -> dict[str, dict[str, Tensor]]:
    """Official tensors of the small models."""
    names = {"sam": "sam_test_vit", "hq_sam": "hq_test_vit", "light_hq_sam": "hq_test_tiny"}
    return {name: layouts[layout][1] for layout, name in names.items()}


@pytest.fixture(scope="module")
def foreign(wholes: dict[str, dict[str, Tensor]]) -> Layouts:
    """For every layout of another library: the model that it fits, and the tensors of a file."""
    return {
        layout: (name, from_official(encoder_of(wholes[name]) if naming == "timm" else wholes[name], naming))  # type: ignore[arg-type]
        for layout, (name, naming) in FOREIGN.items()
    }


@pytest.mark.parametrize("naming", ["transformers", "timm"])
@pytest.mark.parametrize("name", NAMES)
def test_rules_are_unambiguous_and_complete(name: str, naming: Any) -> None:
    if naming == "transformers" and "tiny" in name:
        return
    with torch.device("meta"):
        official = dict(official_state_dict(build_model(model_spec(name))))
    official = encoder_of(official) if naming == "timm" else official
    keys = foreign_keys(naming, family_of(official) or "vit")
    theirs = from_official(official, naming)
    assert [key for key in official if len(keys.inverse().matches(key)) != 1] == []
    assert [key for key in theirs if len(keys.matches(key)) != 1] == []
    assert {new for key in theirs for new in keys.matches(key) if isinstance(new, str)} == set(official)
    if naming == "timm" or name.startswith("hq_"):
        unused = {rule for rule in keys.rules if not any(rule.apply(key) for key in theirs)}
        assert unused == set()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("layout", FOREIGN)
def test_round_trips_are_bit_exact(
    layout: str,
    suffix: str,
    foreign: Layouts,
    wholes: dict[str, dict[str, Tensor]],
    models: dict[str, Sam],
    tmp_path: Path,
    assert_same: Any,
) -> None:
    (name, tensors), naming = foreign[layout], FOREIGN[layout][1]
    whole, model = wholes[name], models[name]
    model.head_state = "random"
    torch.save(whole, tmp_path / "whole.pth")
    info = convert_checkpoint(tmp_path / "whole.pth", tmp_path / f"a{suffix}", to=naming)  # type: ignore[arg-type]
    assert (info.layout, info.variant) == (layout.partition("/")[0], name.partition("_")[2])
    assert info == inspect_checkpoint(info.path) and info.num_tensors == len(tensors)
    stored = read_tensors(info.path)
    assert stored.keys() == tensors.keys() and all(torch.equal(stored[n], t) for n, t in tensors.items())

    if naming == "timm":
        other = {n: t + 1 if n.startswith("image_encoder.") else t for n, t in whole.items()}
        torch.save(other, tmp_path / "other.pth")
        loaded = load_checkpoint(model, tmp_path / "other.pth", encoder=info.path)
        assert loaded.layout in ("hq_sam", "light_hq_sam") and loaded.num_tensors > info.num_tensors
        convert_checkpoint(tmp_path / "other.pth", tmp_path / "back.pth", encoder=info.path)
    else:
        load_checkpoint(model, info.path)
        convert_checkpoint(info.path, tmp_path / "back.pth")
    assert_same(official_state_dict(model), whole)
    back = open_checkpoint(tmp_path / "back.pth").official
    assert_same({key: back[key] for key in whole}, whole)
    assert back.keys() == whole.keys()


@pytest.mark.parametrize("mutation", ["drop", "rename", "reshape", "retype", "add"])
@pytest.mark.parametrize("layout", FOREIGN)
def test_any_changed_key_is_an_error(
    layout: str, mutation: str, foreign: Layouts, models: dict[str, Sam], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, tensors = foreign[layout]
    model = models[name]
    model.head_state = "random"
    target = Target.of(model)
    before = {key: tensor.clone() for key, tensor in target.official.items()}
    monkeypatch.setattr(loader, "open_checkpoint", recognise)
    monkeypatch.setattr(loader, "Target", SimpleNamespace(of=lambda model: target))
    base = TensorFile(Path("base.pth"), before, {}, 1)
    for key in tensors:
        changed = mutate(tensors, key, mutation)
        if changed is None:
            continue
        file: Any = TensorFile(Path("some_file.pth"), changed, {}, 1)
        with pytest.raises(CheckpointError, match=re.escape(key.partition("_old")[0])):
            if FOREIGN[layout][1] == "timm":
                load_checkpoint(model, base, encoder=file)  # type: ignore[arg-type]
            else:
                load_checkpoint(model, file)
    assert all(torch.equal(tensor, before[key]) for key, tensor in official_state_dict(model).items())
    assert model.head_state == "random"


def mutate(tensors: dict[str, Tensor], key: str, mutation: str) -> dict[str, Tensor] | None:
    """The file with one key changed; None for the few that may be absent."""
    tensor = tensors[key]
    changed = {n: t for n, t in tensors.items() if n != key}
    match mutation:
        case "drop":
            return None if key.endswith("num_batches_tracked") or key in COPIES else changed
        case "rename":
            return {**changed, f"{key}_old": tensor}
        case "add":
            return {**tensors, f"{key}_old": tensor}
        case "reshape":
            return {**changed, key: torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)}
    return {**changed, key: tensor.to(torch.float32 if tensor.dtype == torch.int64 else torch.int64)}


@pytest.mark.parametrize("mutation", ["drop", "reshape"])
@pytest.mark.parametrize(
    "layout", ["hq_sam", "light_hq_sam", "hq_decoder/vit", "hq_head/tiny", "transformers_hq_sam", "timm_encoder/tiny"]
)
def test_what_is_not_whole_is_not_converted(layout: str, mutation: str, layouts: Layouts, foreign: Layouts) -> None:
    _, tensors = {**layouts, **foreign}[layout]
    require_complete(recognise(TensorFile(Path("a.pth"), tensors, {}, 1)))
    for key in list(tensors)[::20]:  # building a model for each takes a while
        changed = mutate(tensors, key, mutation)
        if changed is not None:
            with pytest.raises(CheckpointError, match=re.escape(key)):
                require_complete(recognise(TensorFile(Path("a.pth"), changed, {}, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_models_of_every_size_are_whole(name: str) -> None:
    with torch.device("meta"):
        model = build_model(model_spec(name))
    for part in ("all", "sam", "hq") if model.has_hq else ("all",):
        tensors = dict(official_state_dict(model, part))  # type: ignore[arg-type]
        require_complete(recognise(TensorFile(Path("a.pth"), tensors, {}, 1)))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("light_hq_sam", {"to": "transformers"}, "transformers has no SAM with a TinyViT"),
        ("hq_head/vit", {"to": "transformers"}, "lacks the image encoder and the prompt encoder and the mask decoder"),
        ("hq_head/vit", {"to": "timm"}, "an HQ head alone; what is to be written as 'timm' lacks the image encoder"),
        ("sam", {"to": "hq_sam"}, r"is plain SAM \(test_vit\); what .* as 'hq_sam' lacks the HQ head"),
        ("sam", {"to": "hq_decoder"}, "lacks the HQ head"),
        ("hq_sam", {"to": "hq_head", "part": "sam"}, "lacks the HQ head"),
        ("sam", {"to": "onnx"}, "to must be one of 'official', 'sam', .* got 'onnx'"),
        ("hq_sam", {"encoder": "sam"}, "not an image encoder alone for"),
        ("hq_sam", {"metadata": {"recommended_fusion": "both"}}, "recommended_fusion must be one of sum, hq, sam, got"),
    ],
)
def test_impossible_conversions(
    source: str, options: dict[str, Any], message: str, layouts: Layouts, tmp_path: Path
) -> None:
    torch.save(layouts[source][1], tmp_path / "a.pth")
    if "encoder" in options:
        options = {"encoder": tmp_path / "encoder.pth"}
        torch.save(layouts["sam"][1], options["encoder"])
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.safetensors", **options)
    assert not (tmp_path / "b.safetensors").exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize(("to", "layout"), [("sam", "sam"), ("hq_head", "hq_head"), ("hq_decoder", "hq_decoder")])
def test_parts_of_a_whole_model(to: Any, layout: str, layouts: Layouts, tmp_path: Path) -> None:
    torch.save(layouts["hq_sam"][1], tmp_path / "a.pth")
    assert convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth", to=to).layout == layout
    whole_names = all(name in layouts["hq_sam"][1] for name in read_tensors(tmp_path / "b.pth"))
    assert whole_names == (to != "hq_decoder")


def test_an_encoder_alone_needs_a_whole_model(
    layouts: Layouts,
    foreign: Layouts,
    in_memory: Callable[[dict[str, Tensor]], TensorFile],
    models: dict[str, Sam],
) -> None:
    encoder: Any = in_memory(foreign["timm_encoder/vit"][1])
    tiny: Any = in_memory(foreign["timm_encoder/tiny"][1])
    whole: Any = in_memory(layouts["hq_sam"][1])
    head: Any = in_memory(layouts["hq_head/vit"][1])
    model = models["hq_test_vit"]
    model.head_state = "random"
    with pytest.raises(CheckpointError, match=r"is an image encoder alone .* \(test_vit\); give it as encoder=FILE"):
        load_checkpoint(model, encoder)
    with pytest.raises(
        CheckpointError, match=r"needs the file of a whole model to be put into, and .* an HQ head alone"
    ):
        load_checkpoint(model, head, encoder=encoder)
    with pytest.raises(CheckpointError, match="as `encoder` give a file with an image encoder alone"):
        load_checkpoint(model, whole, encoder=whole)
    with pytest.raises(CheckpointError, match=r"an image encoder alone .* with a TinyViT"):
        load_checkpoint(model, whole, encoder=tiny)
    assert model.head_state == "random"
    load_checkpoint(model, in_memory(layouts["sam"][1]), encoder=encoder, head=head)  # type: ignore[arg-type]
    assert model.head_state == "trained"


def test_a_timm_classifier_is_left_out(foreign: Layouts) -> None:
    tensors = {**foreign["timm_encoder/tiny"][1], "head.norm.weight": torch.ones(64), "head.fc.bias": torch.ones(9)}
    assert recognise(TensorFile(Path("a.pth"), tensors, {}, 1)).info.layout == "timm_encoder"
    with pytest.raises(CheckpointError, match="1 tensors that no SAM or HQ-SAM model has: cls_token"):
        recognise(TensorFile(Path("a.pth"), {**foreign["timm_encoder/vit"][1], "cls_token": torch.ones(1)}, {}, 1))


# Training states


def test_a_training_state_is_recognised(layouts: Layouts, tmp_path: Path, models: dict[str, Sam]) -> None:
    assert TRAINING_STATE == FORMAT
    name, head = layouts["hq_head/tiny"]
    state = {
        "format": FORMAT,
        "version": 1,
        "step": 540,
        "epoch": 2,
        "config": {"model.name": name},
        "head": head,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
    }
    torch.save(state, tmp_path / "step_0000540.pt")
    info = inspect_checkpoint(tmp_path / "step_0000540.pt")
    assert (info.layout, info.has_hq, info.has_sam, info.num_tensors) == ("training_state", True, False, 25)
    assert info.metadata == {"step": "540", "epoch": "2", "model": name}
    model = models[name]
    load_checkpoint(model, info.path)
    assert all(torch.equal(tensor, head[n]) for n, tensor in official_state_dict(model, "hq").items())
    written = convert_checkpoint(info.path, tmp_path / "head.safetensors")
    assert written.layout == "hq_head" and "step" not in written.metadata


def test_a_head_that_was_never_trained_is_told(build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh = save_checkpoint(build("hq_test_vit", seed=None), tmp_path / "a.pth")
    assert (fresh.has_hq, fresh.head_trained) == (True, False)
    assert save_checkpoint(build("hq_test_vit", seed=1), tmp_path / "b.pth").head_trained is True
    assert save_checkpoint(build("sam_test_vit", seed=1), tmp_path / "c.pth").head_trained is None
    load_checkpoint(build("hq_test_vit", seed=1), fresh.path)
    assert "its HQ head is as it was initialised, never trained" in caplog.text
