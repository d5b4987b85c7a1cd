from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from hqsam.checkpoints import (
    CheckpointError,
    hq_state_dict,
    load_checkpoint,
    load_trained_state_dict,
    official_state_dict,
    save_checkpoint,
)
from hqsam.checkpoints.reading import TensorFile
from hqsam.models import Sam
from hqsam.registry import build_model, create_model, model_spec
from tests.helpers import fill_parameters

Layouts = dict[str, tuple[str, dict[str, Tensor]]]
InMemory = Callable[[dict[str, Tensor]], TensorFile]
Build = Callable[..., Sam]
ALL_LAYOUTS = [
    "sam", "hq_sam", "mobile_sam", "light_hq_sam", "hq_decoder/vit", "hq_decoder/tiny", "hq_head/vit", "hq_head/tiny",
]  # fmt: skip


def renamed(name: str) -> str:
    """A name that belongs to no model and stays in its part."""
    return f"{name}_old"


def official_name(name: str) -> str:
    whole = name.startswith(("image_encoder.", "prompt_encoder.", "mask_decoder."))
    return name if whole else f"mask_decoder.{name}"


@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_every_layout_fills_exactly_its_part(
    layout: str, layouts: Layouts, in_memory: InMemory, build: Build, bits: Callable[[Sam], dict[str, Tensor]]
) -> None:
    name, tensors = layouts[layout]
    model = build(name, seed=2)
    before = bits(model)
    info = load_checkpoint(model, in_memory(tensors))  # type: ignore[arg-type]
    assert info.layout == layout.partition("/")[0]
    after = bits(model)
    filled = {official_name(n): t for n, t in tensors.items()}
    for key, value in after.items():
        assert torch.equal(value, filled.get(key, before[key])), key
    assert filled.keys() <= after.keys()
    assert model.head_state == ("trained" if model.has_hq else "random")
    assert {p.requires_grad for p in model.hq_parameters()} <= {True}


@pytest.mark.parametrize("mutation", ["drop", "rename", "reshape", "retype"])
@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_any_changed_name_or_shape_is_an_error_and_nothing_is_loaded(
    layout: str,
    mutation: str,
    layouts: Layouts,
    in_memory: InMemory,
    build: Build,
    bits: Callable[[Sam], dict[str, Tensor]],
) -> None:
    name, tensors = layouts[layout]
    model = build(name, seed=2)
    before = bits(model)
    for key, tensor in tensors.items():
        mutated = {n: t for n, t in tensors.items() if n != key}
        if mutation == "rename":
            mutated[renamed(key)] = tensor
        elif mutation == "reshape":
            mutated[key] = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
        elif mutation == "retype":
            mutated[key] = tensor.to(torch.float32 if tensor.dtype == torch.int64 else torch.int64)
        elif key.endswith("num_batches_tracked"):
            continue  # the only tensors that may be absent
        with pytest.raises(CheckpointError, match=re.escape(key)):
            load_checkpoint(model, in_memory(mutated))  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[key]) for key, tensor in bits(model).items())
    assert model.head_state == "random"


def test_the_message_lists_ten_names_of_each_kind(layouts: Layouts, in_memory: InMemory, build: Build) -> None:
    _, tensors = layouts["hq_sam"]
    keys = [key for key in tensors if "transformer" in key]
    changed = {n: t for n, t in tensors.items() if n not in keys[:12]}
    changed[keys[20]] = torch.zeros(3)
    changed["mask_decoder.transformer.layers.7.norm1.weight"] = torch.zeros(256)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(build("hq_test_vit"), in_memory(changed))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "does not fit hq_test_vit; nothing was loaded" in text
    assert "12 missing" in text and keys[9] in text and keys[10] not in text and "and 2 more" in text
    assert "1 unexpected: mask_decoder.transformer.layers.7.norm1.weight" in text
    assert f"1 of another shape or type: {keys[20]} (3 instead of 2048x256)" in text


def test_batch_counters_may_be_absent(layouts: Layouts, in_memory: InMemory, build: Build) -> None:
    name, tensors = layouts["light_hq_sam"]
    model = build(name)
    counters = [t for n, t in official_state_dict(model).items() if n.endswith("num_batches_tracked")]
    for counter in counters:
        counter.fill_(7)
    load_checkpoint(model, in_memory({n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}))  # type: ignore[arg-type]
    assert {int(counter) for counter in counters} == {7}


def test_unused_tensors_of_official_files_are_accepted(layouts: Layouts, in_memory: InMemory, build: Build) -> None:
    name, tensors = layouts["light_hq_sam"]
    extra = {
        "pixel_mean": torch.zeros(3, 1, 1),
        "image_encoder.norm_head.weight": torch.zeros(64),
        "image_encoder.head.weight": torch.zeros(1000, 64),
        "image_encoder.layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(49, 49, dtype=torch.int64),
    }
    assert load_checkpoint(build(name), in_memory(tensors | extra)).num_tensors == len(tensors) + 4  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_are_cast_to_the_types_of_the_model(
    dtype: torch.dtype, layouts: Layouts, in_memory: InMemory, build: Build
) -> None:
    name, tensors = layouts["light_hq_sam"]
    stored = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    model = build(name)
    load_checkpoint(model, in_memory(stored))  # type: ignore[arg-type]
    for key, value in official_state_dict(model).items():
        assert value.dtype == tensors[key].dtype and torch.equal(value, stored[key].to(value.dtype))
    double = build(name).to(dtype)
    load_checkpoint(double, in_memory(tensors))  # type: ignore[arg-type]
    assert double.dtype == dtype


# Which file belongs to which model


def test_a_sam_file_alone_is_not_enough_for_an_hq_model(layouts: Layouts, tmp_path: Path, build: Build) -> None:
    torch.save(layouts["sam"][1], tmp_path / "sam.pth")
    model = build("hq_test_vit")
    with pytest.raises(CheckpointError, match=r"sam\.pth is plain SAM \(test_vit\); hq_test_vit also needs an HQ head"):
        load_checkpoint(model, tmp_path / "sam.pth")
    assert model.head_state == "random"


def test_the_sentence_names_the_published_file(in_memory: InMemory) -> None:
    with torch.device("meta"):
        model = build_model(model_spec("hq_vit_l"))
    file = in_memory(official_state_dict(model, "sam"))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, file)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "some_file.pth is plain SAM (ViT-L); hq_vit_l also needs an HQ head: load an HQ-SAM file such as "
        "sam_hq_vit_l.pth, give the head's file as head=FILE, or pass fresh_hq_head=True to train one"
    )


def test_a_fresh_head_is_asked_for_by_name(
    layouts: Layouts, in_memory: InMemory, build: Build, bits: Callable[[Sam], dict[str, Tensor]]
) -> None:
    model = build("hq_test_vit", seed=2)
    before = {n: t.clone() for n, t in hq_state_dict(model).items()}
    load_checkpoint(model, in_memory(layouts["sam"][1]), fresh_hq_head=True)  # type: ignore[arg-type]
    assert model.head_state == "untrained"
    after = bits(model)
    for key, tensor in (layouts["sam"][1] | before).items():
        assert torch.equal(after[key], tensor)
    load_checkpoint(model, in_memory(layouts["hq_head/vit"][1]))  # type: ignore[arg-type]
    assert model.head_state == "trained"


def test_a_head_in_the_file_is_loaded_even_if_a_fresh_one_was_allowed(
    layouts: Layouts, in_memory: InMemory, build: Build
) -> None:
    model = build("hq_test_vit", seed=2)
    load_checkpoint(model, in_memory(layouts["hq_sam"][1]), fresh_hq_head=True)  # type: ignore[arg-type]
    assert model.head_state == "trained"
    key = "mask_decoder.hf_token.weight"
    assert torch.equal(hq_state_dict(model)[key], layouts["hq_sam"][1][key])


def test_another_sam_under_a_loaded_head_is_refused(layouts: Layouts, in_memory: InMemory, build: Build) -> None:
    model = build("hq_test_vit", seed=2)
    load_checkpoint(model, in_memory(layouts["hq_sam"][1]))  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="would replace the SAM below a head"):
        load_checkpoint(model, in_memory(layouts["sam"][1]), fresh_hq_head=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["hq_head", "hq_decoder"])
@pytest.mark.parametrize("kind", ["vit", "tiny"])
def test_two_files_make_one_model(
    head: str, kind: str, layouts: Layouts, tmp_path: Path, build: Build, bits: Callable[[Sam], dict[str, Tensor]]
) -> None:
    sam, hq = ("sam", "hq_sam") if kind == "vit" else ("mobile_sam", "light_hq_sam")
    torch.save(layouts[sam][1], tmp_path / "sam.pth")
    torch.save(layouts[f"{head}/{kind}"][1], tmp_path / "head.pth")
    model = build(f"hq_test_{kind}", seed=2)
    info = load_checkpoint(model, tmp_path / "sam.pth", head=tmp_path / "head.pth")
    assert (info.layout, info.has_sam, info.has_hq, info.variant) == (hq, True, True, f"test_{kind}")
    assert info.size_bytes == sum((tmp_path / n).stat().st_size for n in ("sam.pth", "head.pth"))
    assert model.head_state == "trained"
    assert all(torch.equal(tensor, layouts[hq][1][key]) for key, tensor in bits(model).items())


def test_the_head_file_wins_over_the_head_inside(layouts: Layouts, in_memory: InMemory, build: Build) -> None:
    model, other = build("hq_test_vit", seed=2), hq_state_dict(build("hq_test_vit", seed=3))
    load_checkpoint(model, in_memory(layouts["hq_sam"][1]), head=in_memory(other))  # type: ignore[arg-type]
    assert all(torch.equal(tensor, other[key]) for key, tensor in hq_state_dict(model).items())


def test_a_whole_decoder_brings_its_tuned_trunk(layouts: Layouts, in_memory: InMemory, build: Build) -> None:
    tuned = official_state_dict(build("hq_test_vit", seed=5))
    decoder = {n.removeprefix("mask_decoder."): t for n, t in tuned.items() if n.startswith("mask_decoder.")}
    model = build("hq_test_vit", seed=2)
    load_checkpoint(model, in_memory(layouts["sam"][1]), head=in_memory(decoder))  # type: ignore[arg-type]
    assert all(torch.equal(official_state_dict(model)[f"mask_decoder.{n}"], t) for n, t in decoder.items())


def test_an_hq_file_in_a_plain_model_leaves_the_head_out(
    layouts: Layouts, in_memory: InMemory, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("sam_test_tiny", seed=2)
    with caplog.at_level(logging.INFO, "hqsam"):
        info = load_checkpoint(model, in_memory(layouts["light_hq_sam"][1]))  # type: ignore[arg-type]
    assert info.has_hq and "its HQ head is left out of sam_test_tiny" in caplog.text
    expected = layouts["mobile_sam"][1]
    assert all(torch.equal(tensor, expected[key]) for key, tensor in official_state_dict(model).items())


def test_a_head_over_random_weights_is_told(
    layouts: Layouts, in_memory: InMemory, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    load_checkpoint(build("hq_test_vit"), in_memory(layouts["hq_head/vit"][1]))  # type: ignore[arg-type]
    assert "SAM's own weights were not loaded from any file yet" in caplog.text


@pytest.mark.parametrize("part", ["hq", "hq_decoder"])
def test_a_model_is_not_built_from_a_head_and_random_weights(
    part: Literal["hq", "hq_decoder"], tmp_path: Path, build: Build
) -> None:
    file = save_checkpoint(build("hq_test_vit"), tmp_path / "part.safetensors", part=part).path
    with pytest.raises(CheckpointError, match=r"lacks SAM's image encoder.*hqsam convert SAM_FILE OUT --head"):
        create_model("hq_test_vit", file)


@pytest.mark.parametrize(
    ("model", "layout", "head", "message"),
    [
        (
            "hq_test_tiny",
            "hq_sam",
            None,
            r"is HQ-SAM \(test_vit\) with a ViT .*; hq_test_tiny has a TinyViT .*; it fits",
        ),
        ("sam_test_vit", "mobile_sam", None, r"MobileSAM, a plain SAM .* it fits create_model\(\"sam_test_tiny\"\)"),
        ("sam_test_vit", "hq_head/vit", None, "an HQ head alone, which sam_test_vit has no use for; .* hq_test_vit"),
        ("sam_test_vit", "hq_decoder/vit", None, "which sam_test_vit has no use for"),
        ("sam_test_vit", "sam", "hq_head/vit", "sam_test_vit has no HQ head; leave out head="),
        ("hq_test_vit", "sam", "sam", "is plain SAM .*; as `head` give a file with an HQ head"),
        ("hq_test_vit", "sam", "hq_sam", "is HQ-SAM .*; as `head` give a file"),
    ],
)
def test_files_of_other_models(
    model: str, layout: str, head: str | None, message: str, layouts: Layouts, in_memory: InMemory, build: Build
) -> None:
    extra = None if head is None else in_memory(layouts[head][1])
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(build(model), in_memory(layouts[layout][1]), head=extra)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["hq_head", "hq_decoder"])
def test_a_head_for_another_encoder(layout: str, in_memory: InMemory, build: Build) -> None:
    with torch.device("meta"):
        large = official_state_dict(build_model(model_spec("hq_vit_l")))
    part = {n: t for n, t in large.items() if n.startswith("mask_decoder.")}
    if layout == "hq_head":
        part = {n: part[n] for n in hq_state_dict(build("hq_test_vit"))}
    with pytest.raises(
        CheckpointError, match=r"\(ViT-L\) for an encoder with 1024 channels; hq_test_vit has 32; it fits"
    ):
        load_checkpoint(build("hq_test_vit"), in_memory(part))  # type: ignore[arg-type]


def test_a_model_without_memory_is_refused(layouts: Layouts, in_memory: InMemory) -> None:
    with torch.device("meta"):
        model = build_model(model_spec("hq_test_vit"))
    with pytest.raises(CheckpointError, match="meta device"):
        load_checkpoint(model, in_memory(layouts["hq_sam"][1]))  # type: ignore[arg-type]


# State after loading


@pytest.mark.parametrize("layout", ["hq_sam", "light_hq_sam"])
def test_nothing_computed_from_old_weights_survives(
    layout: str, layouts: Layouts, in_memory: InMemory, build: Build
) -> None:
    name, tensors = layouts[layout]
    used, fresh = build(name, seed=2), build(name, seed=4)
    images = torch.linspace(-1, 1, 3 * used.image_size**2).view(1, 3, used.image_size, used.image_size)
    with torch.no_grad():
        old = used.image_encoder(images)
        for model in (used, fresh):
            load_checkpoint(model, in_memory(tensors))  # type: ignore[arg-type]
        new, expected = used.image_encoder(images), fresh.image_encoder(images)
    assert not torch.equal(old.image_embedding, new.image_embedding)
    assert torch.equal(new.image_embedding, expected.image_embedding)
    assert torch.equal(new.early_feature, expected.early_feature)


def test_loading_works_whatever_hooks_the_model_has(layouts: Layouts, in_memory: InMemory, build: Build) -> None:
    model = build("hq_test_vit", seed=2)
    model.register_state_dict_post_hook(lambda module, state, prefix, metadata: state.clear())
    load_checkpoint(model, in_memory(layouts["hq_sam"][1]))  # type: ignore[arg-type]
    assert official_state_dict(model).keys() == layouts["hq_sam"][1].keys()


# The trained tensors alone, as a training state keeps them


def test_hq_state_goes_back_and_forth(build: Build) -> None:
    source, model = build("hq_test_tiny", seed=1), build("hq_test_tiny", seed=2)
    sam = {n: t.clone() for n, t in official_state_dict(model, "sam").items()}
    state = hq_state_dict(source)
    assert all(n.startswith("mask_decoder.") for n in state)
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in model.hq_parameters())
    load_trained_state_dict(model, state)
    assert all(torch.equal(t, state[n]) for n, t in hq_state_dict(model).items())
    assert all(torch.equal(t, sam[n]) for n, t in official_state_dict(model, "sam").items())
    assert model.head_state == "trained"


def test_hq_state_shares_memory_and_has_no_gradient(build: Build) -> None:
    model = build("hq_test_vit")
    state = hq_state_dict(model)
    fill_parameters(model, seed=9)
    assert torch.equal(state["mask_decoder.hf_token.weight"], model.mask_decoder.head.token.weight)
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.popitem(), "the trained state does not fit hq_test_vit; nothing was loaded. Tensors 1 missing"),
        (lambda s: s.update({"mask_decoder.iou_token.weight": torch.ones(1, 256)}), "1 unexpected"),
        (lambda s: s.update({"mask_decoder.hf_token.weight": torch.ones(2, 256)}), "2x256 instead of 1x256"),
    ],
)
def test_a_wrong_hq_state_is_refused(change: Callable[[dict[str, Tensor]], object], message: str, build: Build) -> None:
    state = dict(hq_state_dict(build("hq_test_vit", seed=1)))
    change(state)
    model = build("hq_test_vit", seed=2)
    with pytest.raises(CheckpointError, match=message):
        load_trained_state_dict(model, state)
    assert model.head_state == "random"


def test_a_plain_model_has_no_hq_state(build: Build) -> None:
    model = build("sam_test_vit")
    with pytest.raises(CheckpointError, match="has no HQ head"):
        hq_state_dict(model)
    with pytest.raises(CheckpointError, match="sam_test_vit has no HQ head"):
        load_trained_state_dict(model, {})


def test_mobile_sam_loads(shared_weights: Path) -> None:
    model = build_model(model_spec("sam_vit_tiny"))
    info = load_checkpoint(model, shared_weights / "mobile_sam.safetensors")
    assert (info.layout, info.variant, info.dtype, info.num_tensors) == ("mobile_sam", "vit_tiny", "float16", 439)
    assert info.num_parameters == 9_808_452
