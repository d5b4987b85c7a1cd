from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hqsam.checkpoints import CheckpointError, inspect_checkpoint, official_state_dict
from hqsam.checkpoints.formats import ARCHITECTURES, Architecture, architecture_of, recognise
from hqsam.checkpoints.reading import TensorFile
from hqsam.models import Sam
from hqsam.registry import build_model, list_models, model_spec

NAMES = [name for name in list_models() if "." not in name]
Layouts = dict[str, tuple[str, dict[str, Tensor]]]


def file_of(tensors: dict[str, Tensor]) -> TensorFile:
    return TensorFile(Path("some.pth"), tensors, {}, 0)


def on_meta(name: str) -> Sam:
    with torch.device("meta"):
        return build_model(model_spec(name))


def test_the_table_of_encoders_is_that_of_the_registry() -> None:
    assert {name.partition("_")[2] for name in NAMES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_recognised_from_its_tensors(name: str) -> None:
    model = on_meta(name)
    info = recognise(file_of(official_state_dict(model))).info
    kind, _, variant = name.partition("_")
    layouts = {"sam": ("sam", "mobile_sam"), "hq": ("hq_sam", "light_hq_sam")}[kind]
    assert (info.layout, info.variant) == (layouts["tiny" in name], variant)
    assert (info.has_sam, info.has_hq, info.dtype) == (True, kind == "hq", "float32")
    assert info.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "params", "hq_params"),
    [
        ("vit_b", 93_735_472, 1_071_104),
        ("vit_l", 312_342_832, 1_333_248),
        ("vit_h", 641_090_608, 1_595_392),
        ("vit_tiny", 9_808_452, 448_512),
    ],
)
def test_published_parameter_counts(name: str, params: int, hq_params: int) -> None:
    model = on_meta(f"hq_{name}")
    whole, head, sam = (recognise(file_of(official_state_dict(model, part))).info for part in ("all", "hq", "sam"))
    assert (whole.num_parameters, head.num_parameters, sam.num_parameters) == (params + hq_params, hq_params, params)
    assert head.variant == name
    decoder = {n.removeprefix("mask_decoder."): t for n, t in official_state_dict(model).items() if "mask_decoder" in n}
    info = recognise(file_of(decoder)).info
    assert (info.layout, info.variant, info.has_sam, info.has_hq) == ("hq_decoder", name, False, True)


@pytest.mark.parametrize("prefix", ["", "mask_decoder."])
def test_a_head_alone_with_and_without_prefix(prefix: str) -> None:
    head = official_state_dict(on_meta("hq_vit_l"), "hq")
    info = recognise(file_of({prefix + n.removeprefix("mask_decoder."): t for n, t in head.items()})).info
    assert (info.layout, info.variant, info.num_tensors, info.has_sam) == ("hq_head", "vit_l", 25, False)
    assert info.title == "an HQ head alone (ViT-L)"


def test_a_head_that_fits_several_encoders_has_no_variant(layouts: Layouts) -> None:
    assert recognise(file_of(layouts["hq_head/vit"][1])).info.variant is None


def test_unknown_dimensions_have_no_variant(layouts: Layouts) -> None:
    tensors = {n: t for n, t in layouts["sam"][1].items() if "blocks.3." not in n}
    info = recognise(file_of(tensors)).info
    assert (info.layout, info.variant, info.title) == ("sam", None, "plain SAM")
    assert str(architecture_of(tensors)) == "ViT of width 32 and depth 3"


def test_one_wrong_tensor_does_not_change_the_architecture(layouts: Layouts) -> None:
    for layout in ("hq_sam", "light_hq_sam"):
        _, tensors = layouts[layout]
        expected = architecture_of(tensors)
        for name in tensors:
            assert architecture_of({**tensors, name: torch.zeros(5)}) == expected


def test_architecture_phrases() -> None:
    assert str(ARCHITECTURES["vit_tiny"]) == "TinyViT of width 64/128/160/320 and depth 2/2/6/2"
    assert Architecture("vit", (768,), (12,)).variant == "vit_b"
    assert [ARCHITECTURES[f"vit_{k}"].early_channels for k in ("b", "l", "h", "tiny")] == [768, 1024, 1280, 160]


def test_dtype_is_that_of_the_floating_tensors(layouts: Layouts) -> None:
    _, tensors = layouts["light_hq_sam"]
    half = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    assert recognise(file_of(half)).info.dtype == "float16"
    assert recognise(file_of({**half, "mask_decoder.hf_token.weight": torch.ones(1, 256)})).info.dtype == "mixed"


def test_inspect_reads_a_file(tmp_path: Path, layouts: Layouts) -> None:
    torch.save({"state_dict": {f"module.{n}": t for n, t in layouts["hq_sam"][1].items()}}, tmp_path / "a.pth")
    info = inspect_checkpoint(tmp_path / "a.pth")
    assert info.path == tmp_path / "a.pth" and info.size_bytes == (tmp_path / "a.pth").stat().st_size
    assert (info.layout, info.variant, info.num_tensors) == ("hq_sam", "test_vit", len(layouts["hq_sam"][1]))
    assert info.metadata == {}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("image_encoder.",), "holds only an image encoder;"),
        (("prompt_encoder.", "mask_decoder."), "holds only a prompt encoder and SAM's mask decoder and an HQ head"),
        (("image_encoder.", "mask_decoder."), "holds only an image encoder and SAM's mask decoder and an HQ head"),
        (("mask_decoder.iou_token",), "holds only SAM's mask decoder;"),
    ],
)
def test_incomplete_models_are_refused(layouts: Layouts, keep: tuple[str, ...], message: str) -> None:
    tensors = {n: t for n, t in layouts["hq_sam"][1].items() if n.startswith(keep)}
    with pytest.raises(CheckpointError, match=message):
        recognise(file_of(tensors))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv1.weight": 1, "fc.bias": 1}, "not a checkpoint of the SAM family; .* conv1.weight, fc.bias"),
        ({"image_encoder.trunk.blocks.0.norm1.weight": 1}, "not a checkpoint of the SAM family"),
    ],
)
def test_other_models_are_refused(tensors: dict[str, int], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        recognise(file_of({name: torch.ones(size) for name, size in tensors.items()}))


def test_unknown_tensors_are_counted_and_ten_are_named(layouts: Layouts) -> None:
    extra = {f"mask_decoder.extra{i}": torch.ones(1) for i in range(12)}
    with pytest.raises(CheckpointError, match=r"holds 12 tensors .*extra0, .*extra9 and 2 more"):
        recognise(file_of({**layouts["hq_sam"][1], **extra}))
