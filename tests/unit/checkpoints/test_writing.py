from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hqsam.checkpoints import (
    CheckpointError,
    atomic_path,
    convert_checkpoint,
    hq_state_dict,
    inspect_checkpoint,
    load_checkpoint,
    official_state_dict,
    read_tensors,
    save_checkpoint,
    with_unused_classifier,
    writing,
)
from hqsam.drop_in import sam_model_registry
from hqsam.models import Sam
from hqsam.registry import EMBEDDED_HEAD, EMBEDDED_SAM, create_model, load_by_name
from hqsam.types import REFINEMENTS

Layouts = dict[str, tuple[str, dict[str, Tensor]]]
Build = Callable[..., Sam]
Same = Callable[[dict[str, Tensor], dict[str, Tensor]], None]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["sam_test_vit", "hq_test_vit", "sam_test_tiny", "hq_test_tiny"])
def test_round_trip_is_bit_exact(name: str, suffix: str, tmp_path: Path, build: Build, assert_same: Same) -> None:
    source, model = build(name, seed=1), build(name, seed=2)
    written = save_checkpoint(source, tmp_path / f"new/folder/model{suffix}")
    loaded = load_checkpoint(model, tmp_path / f"new/folder/model{suffix}")
    assert written == loaded
    assert_same(official_state_dict(model), official_state_dict(source))
    assert model.head_state == ("trained" if source.has_hq else "random")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_head_alone(suffix: str, tmp_path: Path, build: Build, assert_same: Same) -> None:
    source, model = build("hq_test_tiny", seed=1), build("hq_test_tiny", seed=2)
    info = save_checkpoint(source, tmp_path / f"head{suffix}", part="hq")
    assert (info.layout, info.num_tensors, info.has_sam) == ("hq_head", 25, False)
    load_checkpoint(model, info.path)
    assert_same(hq_state_dict(model), hq_state_dict(source))


def test_the_plain_sam_inside(tmp_path: Path, build: Build, assert_same: Same) -> None:
    source, plain = build("hq_test_vit", seed=1), build("sam_test_vit", seed=2)
    source.head_state = "untrained"
    save_checkpoint(source, tmp_path / "sam.pth", part="sam")
    load_checkpoint(plain, tmp_path / "sam.pth")
    assert_same(official_state_dict(plain), official_state_dict(source, "sam"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_types(dtype: torch.dtype, tmp_path: Path, build: Build) -> None:
    source = build("hq_test_tiny", seed=1)
    info = save_checkpoint(source, tmp_path / "a.safetensors", dtype=dtype)
    assert info.dtype == str(dtype).removeprefix("torch.")
    stored = read_tensors(info.path)
    for name, tensor in official_state_dict(source).items():
        expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert stored[name].dtype == expected.dtype and torch.equal(stored[name], expected)
    assert source.dtype == torch.float32


def test_the_unused_classifier_is_there_for_strict_builders_only(tmp_path: Path, build: Build) -> None:
    source = build("sam_test_tiny")
    full = save_checkpoint(source, tmp_path / "full.safetensors", dtype=torch.float16)
    small = save_checkpoint(source, tmp_path / "small.safetensors", dtype=torch.float16, include_unused_head=False)
    added = {n: t for n, t in load_file(full.path).items() if n not in load_file(small.path)}
    assert {n: tuple(t.shape) for n, t in added.items()} == {
        "image_encoder.norm_head.weight": (64,),
        "image_encoder.norm_head.bias": (64,),
        "image_encoder.head.weight": (1000, 64),
        "image_encoder.head.bias": (1000,),
    }
    assert all(t.dtype == torch.float16 and not t.any() for t in added.values())
    assert full.num_parameters == small.num_parameters
    load_checkpoint(build("sam_test_tiny", seed=2), small.path)


def test_a_vit_or_a_head_has_no_classifier(build: Build) -> None:
    for official in (official_state_dict(build("sam_test_vit")), hq_state_dict(build("hq_test_tiny"))):
        assert with_unused_classifier(official) == official


def test_metadata_of_safetensors(tmp_path: Path, build: Build) -> None:
    metadata = {"fusion": "hq", "layout": "cannot be overridden"}
    info = save_checkpoint(build("hq_test_tiny"), tmp_path / "a.safetensors", metadata=metadata)
    assert info.metadata == {
        "format": "pt",
        "hqsam_format": "1",
        "layout": "light_hq_sam",
        "variant": "test_tiny",
        "image_size": "128",
        "fusion": "hq",
    }
    assert save_checkpoint(build("hq_test_tiny"), tmp_path / "a.pth").metadata == {}


def test_what_describes_the_tensors_is_not_the_callers_to_say(tmp_path: Path, build: Build) -> None:
    metadata = {"hq_head": "token", "image_size": "64", "layout": "sam", "author": "me"}
    whole = save_checkpoint(build("hq_test_tiny"), tmp_path / "a.safetensors", metadata=metadata)
    assert whole.head == "early+final+mask" and whole.metadata["image_size"] == "128"
    head = save_checkpoint(build("hq_test_tiny"), tmp_path / "head.safetensors", part="hq", metadata=metadata)
    assert not {"hq_head", "image_size"} & set(head.metadata) and head.metadata["author"] == "me"
    part = convert_checkpoint(whole.path, tmp_path / "part.safetensors", to="hq_head")
    assert "image_size" not in part.metadata and part.metadata["author"] == "me"


def test_a_model_has_the_input_size_that_its_file_states(tmp_path: Path, assert_same: Same) -> None:
    made = create_model("sam_test_tiny", device="cpu", image_size=64)
    path = save_checkpoint(made, tmp_path / "a.safetensors").path
    again = create_model("sam_test_tiny", path, device="cpu")
    assert again.image_size == 64
    assert_same(official_state_dict(again), official_state_dict(made))
    assert create_model("sam_test_tiny", path, device="cpu", image_size=128).image_size == 128


@pytest.mark.parametrize("text", ["0", "100", "-64", "large", ""])
def test_a_stated_input_size_that_is_none(text: str, tmp_path: Path, build: Build) -> None:
    path = tmp_path / "a.safetensors"
    save_file(official_state_dict(build("sam_test_tiny")), path, {"image_size": text})
    with pytest.raises(CheckpointError, match="image_size must be a multiple of 16") as caught:
        create_model("sam_test_tiny", path, device="cpu")
    assert "\n" not in str(caught.value)


def test_only_the_tensors_and_not_their_storages_are_written(tmp_path: Path, build: Build) -> None:
    model = build("hq_test_vit")
    head = model.mask_decoder.head
    big = torch.zeros(10**7)
    big[:256] = head.token.weight.detach()
    head.token.weight.data = big[:256].view(1, 256)
    info = save_checkpoint(model, tmp_path / "a.pth", part="hq")
    assert info.size_bytes < 4 * info.num_parameters * 1.05


def test_an_untrained_head_is_not_saved_as_if_it_were(tmp_path: Path, build: Build) -> None:
    model = build("hq_test_vit")
    model.head_state = "untrained"
    for part in ("all", "hq"):
        with pytest.raises(CheckpointError, match="untrained and would pass for a trained one"):
            save_checkpoint(model, tmp_path / "a.pth", part=part)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("model.bin", {}, r"ends with \.pth, \.pt, \.safetensors, got 'model\.bin'"),
        ("model", {}, "ends with"),
        ("model.pth", {"metadata": {"a": "b"}}, "cannot carry metadata; save as .safetensors"),
        ("model.safetensors", {"metadata": {"a": 1}}, r"must be strings, got {'a': 1}"),
        ("model.pth", {"part": "hq"}, "a plain SAM has no HQ head"),
        ("model.pth", {"part": "head"}, "part must be one of 'all', 'sam', 'hq', 'hq_decoder', got 'head'"),
        ("model.pth", {"dtype": torch.int8}, r"floating-point dtype, got torch\.int8"),
        ("folder.pth", {}, "is a folder"),
    ],
)
def test_wrong_requests_write_nothing(
    name: str, arguments: dict[str, Any], message: str, tmp_path: Path, build: Build
) -> None:
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(build("sam_test_vit"), tmp_path / name, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pth"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = build("hq_test_vit"), tmp_path / "model.pth"
    save_checkpoint(model, path)
    old = path.read_bytes()

    def out_of_space(tensors: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(writing.torch, "save", out_of_space)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(model, path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["model.pth"]


def test_atomic_path_replaces_and_respects_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "state.bin"
    for content in (b"one", b"two"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent and temporary != path
            temporary.write_bytes(content)
        assert path.read_bytes() == content
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert os.listdir(path.parent) == ["state.bin"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_have_the_usual_permissions(tmp_path: Path, suffix: str, build: Build) -> None:
    path = save_checkpoint(build("hq_test_vit"), tmp_path / f"a{suffix}", part="hq").path
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


# Conversion


@pytest.mark.parametrize("layout", ["sam", "hq_sam", "mobile_sam", "light_hq_sam", "hq_decoder/vit", "hq_head/tiny"])
def test_every_layout_converts_bit_exactly(layout: str, layouts: Layouts, tmp_path: Path) -> None:
    tensors = layouts[layout][1]
    torch.save(tensors, tmp_path / "a.pth")
    info = convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.safetensors", include_unused_head=False)
    assert info.layout == layout.partition("/")[0]
    convert_checkpoint(tmp_path / "b.safetensors", tmp_path / "c.pth", include_unused_head=False)
    back = read_tensors(tmp_path / "c.pth")
    whole = {n if f"mask_decoder.{n}" not in back else f"mask_decoder.{n}": t for n, t in tensors.items()}
    assert back.keys() == whole.keys()
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in whole.items())


def test_conversion_merges_a_head(layouts: Layouts, tmp_path: Path, build: Build) -> None:
    torch.save(layouts["mobile_sam"][1], tmp_path / "sam.pth")
    source = build("hq_test_tiny", seed=1)
    save_checkpoint(source, tmp_path / "head.safetensors", part="hq", metadata={"fusion": "hq"})
    info = convert_checkpoint(
        tmp_path / "sam.pth", tmp_path / "all.safetensors", head=tmp_path / "head.safetensors", metadata={"note": "x"}
    )
    assert (info.layout, info.metadata["fusion"], info.metadata["note"]) == ("light_hq_sam", "hq", "x")
    model = build("hq_test_tiny", seed=2)
    load_checkpoint(model, info.path)
    assert all(torch.equal(t, layouts["light_hq_sam"][1][n]) for n, t in official_state_dict(model).items())


def test_conversion_takes_a_part_and_a_number_type(layouts: Layouts, tmp_path: Path) -> None:
    torch.save(layouts["hq_sam"][1], tmp_path / "a.pth")
    info = convert_checkpoint(tmp_path / "a.pth", tmp_path / "b.pth", part="sam", dtype=torch.float16)
    assert (info.layout, info.dtype) == ("sam", "float16")


def test_conversion_in_place(layouts: Layouts, tmp_path: Path) -> None:
    torch.save({"model": layouts["hq_sam"][1]}, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.pth")
    assert inspect_checkpoint(tmp_path / "a.pth").layout == "hq_sam"


@pytest.mark.parametrize(
    ("source", "head", "part", "message"),
    [
        ("sam", None, "hq", "it has no tensors for part='hq'"),
        ("hq_head/vit", None, "sam", "it has no tensors for part='sam'"),
        ("sam", None, "head", "part must be one of"),
        ("sam", "mobile_sam", "all", "not an HQ head for"),
        ("sam", "hq_sam", "all", "not an HQ head for"),
    ],
)
def test_impossible_conversions(
    source: str, head: str | None, part: Any, message: str, layouts: Layouts, tmp_path: Path
) -> None:
    torch.save(layouts[source][1], tmp_path / "a.pth")
    if head is not None:
        torch.save(layouts[head][1], tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(
            tmp_path / "a.pth", tmp_path / "b.pth", head=None if head is None else tmp_path / "head.pth", part=part
        )
    assert not (tmp_path / "b.pth").exists()


# Recommended fusion


@pytest.mark.parametrize("fusion", ["sum", "hq", "sam"])
def test_a_recommended_fusion_is_the_default_of_create_model(fusion: str, tmp_path: Path, build: Build) -> None:
    path = tmp_path / "a.safetensors"
    info = save_checkpoint(build("hq_test_vit"), path, metadata={"recommended_fusion": fusion})
    assert info.recommended_fusion == fusion == inspect_checkpoint(path).recommended_fusion
    model = create_model("hq_test_vit", path, device="cpu")
    assert model.default_fusion == fusion == model.resolve_fusion()
    assert create_model("sam_test_vit", path, device="cpu").default_fusion is None
    model, _ = load_by_name("hq_test_vit", path, device="cpu")  # what sam_model_registry does
    assert model.default_fusion is None


@pytest.mark.parametrize("refine", REFINEMENTS)
def test_a_recommended_refinement_is_the_default_of_create_model(refine: str, tmp_path: Path, build: Build) -> None:
    path = tmp_path / "a.safetensors"
    info = save_checkpoint(build("hq_test_tiny"), path, metadata={"recommended_refine": refine})
    assert info.recommended_refine == refine
    assert create_model("hq_test_tiny", path, device="cpu").default_refine == refine
    assert create_model("sam_test_tiny", path, device="cpu").default_refine == "none"
    assert load_by_name("hq_test_tiny", path, device="cpu")[0].default_refine == "none"
    alone = convert_checkpoint(path, tmp_path / "sam.safetensors", part="sam")
    assert "recommended_refine" not in alone.metadata
    with pytest.raises(CheckpointError, match=r"recommended_refine must be one of none, again, again\+again, zoom"):
        save_checkpoint(build("hq_test_tiny"), tmp_path / "b.safetensors", metadata={"recommended_refine": "twice"})


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_heeding_can_be_recommended(answer: str, tmp_path: Path, build: Build) -> None:
    path = tmp_path / "a.safetensors"
    info = save_checkpoint(build("hq_test_tiny"), path, metadata={"recommended_heed_clicks": answer})
    assert info.recommended_heed_clicks == (answer == "yes")
    assert create_model("hq_test_tiny", path, device="cpu").default_heed_clicks == (answer == "yes")
    assert not create_model("sam_test_tiny", path, device="cpu").default_heed_clicks
    assert not load_by_name("hq_test_tiny", path, device="cpu")[0].default_heed_clicks
    assert save_checkpoint(build("hq_test_tiny"), path).recommended_heed_clicks is None
    with pytest.raises(CheckpointError, match="recommended_heed_clicks must be one of yes, no"):
        save_checkpoint(build("hq_test_tiny"), tmp_path / "b.safetensors", metadata={"recommended_heed_clicks": "true"})
    both = {"recommended_heed_clicks": answer, "recommended_refine": "again+zoom"}
    if answer == "yes":
        with pytest.raises(CheckpointError, match="clicks are not heeded with a zoom"):
            save_checkpoint(build("hq_test_tiny"), tmp_path / "b.safetensors", metadata=both)
    else:
        save_checkpoint(build("hq_test_tiny"), tmp_path / "b.safetensors", metadata=both)


def test_an_upsampling_can_be_recommended(tmp_path: Path, build: Build) -> None:
    path = tmp_path / "a.safetensors"
    info = save_checkpoint(build("hq_test_tiny"), path, metadata={"recommended_upsampling": "guided"})
    assert info.recommended_upsampling == "guided"
    assert create_model("hq_test_tiny", path, device="cpu").default_upsampling == "guided"
    assert create_model("sam_test_tiny", path, device="cpu").default_upsampling == "bilinear"
    assert load_by_name("hq_test_tiny", path, device="cpu")[0].default_upsampling == "bilinear"
    assert save_checkpoint(build("hq_test_tiny"), path).recommended_upsampling is None
    with pytest.raises(CheckpointError, match="recommended_upsampling must be one of bilinear, guided"):
        save_checkpoint(build("hq_test_tiny"), tmp_path / "b.safetensors", metadata={"recommended_upsampling": "sharp"})


def test_what_the_embedded_head_recommends() -> None:
    model = create_model("hq_vit_tiny.embedded", device="cpu")
    assert model.default_refine == "again+again" and model.default_heed_clicks and model.default_upsampling == "guided"
    assert model.resolve_fusion() == "sum" and model.resolve_score(None, "sum") == "sam"


def test_the_registry_of_published_names_ignores_recommendations(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    convert_checkpoint(EMBEDDED_SAM, path, head=EMBEDDED_HEAD, metadata={"recommended_fusion": "hq"})
    assert create_model("hq_vit_tiny", path, device="cpu").default_fusion == "hq"
    assert sam_model_registry["vit_tiny"](checkpoint=path).default_fusion is None


def test_a_file_that_recommends_nothing(tmp_path: Path, build: Build) -> None:
    path = save_checkpoint(build("hq_test_vit"), tmp_path / "a.safetensors").path
    assert inspect_checkpoint(path).recommended_fusion is None
    assert create_model("hq_test_vit", path, device="cpu").default_fusion is None


def test_an_unknown_recommended_fusion(tmp_path: Path, build: Build) -> None:
    model, path = build("hq_test_vit"), tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="recommended_fusion must be one of sum, hq, sam, got 'best'"):
        save_checkpoint(model, path, metadata={"recommended_fusion": "best"})
    assert not path.exists()
    save_file({name: t.clone() for name, t in official_state_dict(model).items()}, path, {"recommended_fusion": "best"})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: recommended_fusion must be one of"):
        create_model("hq_test_vit", path, device="cpu")
    load_by_name("hq_test_vit", path, device="cpu")


def test_conversion_keeps_the_recommendation_of_the_head_in_use(tmp_path: Path, build: Build) -> None:
    source = build("hq_test_tiny", seed=1)
    for name, fusion in (("a", "hq"), ("b", "sam")):
        save_checkpoint(source, tmp_path / f"{name}.safetensors", part="hq", metadata={"recommended_fusion": fusion})
    plain = save_checkpoint(source, tmp_path / "plain.pth", part="hq").path
    sam = save_checkpoint(source, tmp_path / "sam.safetensors", part="sam").path
    merged = convert_checkpoint(sam, tmp_path / "merged.safetensors", head=tmp_path / "a.safetensors")
    assert merged.recommended_fusion == "hq"
    again = convert_checkpoint(merged.path, tmp_path / "again.safetensors", head=tmp_path / "b.safetensors")
    assert again.recommended_fusion == "sam"
    assert load_checkpoint(source, merged.path, head=plain).recommended_fusion is None
    assert convert_checkpoint(merged.path, tmp_path / "c.safetensors", head=plain).recommended_fusion is None
    alone = convert_checkpoint(merged.path, tmp_path / "d.safetensors", part="sam")
    assert "recommended_fusion" not in alone.metadata
