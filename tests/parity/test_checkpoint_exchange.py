"""Files go both ways between this package and the published ones, and mean the same masks there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hqsam.checkpoints import (
    convert_checkpoint,
    hq_state_dict,
    load_checkpoint,
    official_state_dict,
    read_tensors,
    save_checkpoint,
    with_unused_classifier,
)
from hqsam.checkpoints.foreign import from_official
from hqsam.models import Sam
from hqsam.registry import build_model, model_spec
from tests.helpers import fill_parameters

pytestmark = pytest.mark.parity
Require = Callable[[str], ModuleType]


@pytest.fixture
def published(require_oracle: Require) -> ModuleType:
    return require_oracle("segment_anything_hq")


def small_vit(package: ModuleType, *, hq: bool) -> nn.Module:
    """The published classes with the dimensions of `hq_test_vit`."""
    m = package.modeling
    decoder = {"transformer_dim": 256, "transformer": m.TwoWayTransformer(2, 256, 8, 2048)}
    sam = m.Sam(
        image_encoder=m.ImageEncoderViT(
            img_size=128,
            embed_dim=32,
            depth=4,
            num_heads=2,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1, 3),
        ),
        prompt_encoder=m.PromptEncoder(256, (8, 8), (128, 128), 16),
        mask_decoder=m.MaskDecoderHQ(**decoder, vit_dim=32) if hq else m.MaskDecoder(**decoder),
    )
    return sam.eval()  # type: ignore[no-any-return]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def masks(model: nn.Module, size: int) -> Tensor:
    """Low-resolution logits of one box on a fixed picture that is not square."""
    height, width = size * 3 // 4, size
    ramp = torch.linspace(0, 255, 3 * height * width).view(3, height, width)
    record = {
        "image": ramp.roll(width // 3, 2).sin().mul(127).add(128),
        "original_size": (height, width),
        "boxes": torch.tensor([[0.2 * width, 0.1 * height, 0.8 * width, 0.9 * height]]),
    }
    with torch.no_grad():
        (output,) = model([record], multimask_output=False)
    logits: Tensor = output["low_res_logits"]
    return logits


def assert_same_masks(ours: Sam, theirs: nn.Module) -> None:
    theirs.eval()  # the published TinyViT keeps attention biases from before loading otherwise
    a, b = (masks(model, ours.image_size) for model in (ours, theirs))
    assert (a - b).abs().max() <= 1e-4 * (b.max() - b.min())


@pytest.mark.parametrize("registry", ["sam_model_registry", "sam_model_registry_baseline"])
@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h", "vit_tiny"])
def test_names_shapes_and_counts_of_hq_package(published: ModuleType, registry: str, variant: str) -> None:
    # The published TinyViT cannot be built without memory, and is small.
    with torch.device("cpu" if variant == "vit_tiny" else "meta"):
        theirs = getattr(published, registry)[variant](None)
    with torch.device("meta"):
        ours = build_model(model_spec(("sam_" if "baseline" in registry else "hq_") + variant))
    compare_names(ours, theirs)
    unused = sum(
        p.numel()
        for n, p in theirs.named_parameters()
        if n.startswith(("image_encoder.norm_head", "image_encoder.head"))
    )
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - unused


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_names_shapes_and_counts_of_sam_package(require_oracle: Require, variant: str) -> None:
    with torch.device("meta"):
        theirs = require_oracle("segment_anything").sam_model_registry[variant](None)
        ours = build_model(model_spec(f"sam_{variant}"))
    compare_names(ours, theirs)


def compare_names(ours: Sam, theirs: nn.Module) -> None:
    official, expected = with_unused_classifier(official_state_dict(ours)), theirs.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in official.items()} == {n: (t.shape, t.dtype) for n, t in expected.items()}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("hq", [True, False], ids=["hq", "plain"])
def test_our_vit_file_in_the_published_package(published: ModuleType, tmp_path: Path, hq: bool, suffix: str) -> None:
    ours = fill_parameters(build_model(model_spec("hq_test_vit" if hq else "sam_test_vit")))
    path = save_checkpoint(ours, tmp_path / f"ours{suffix}").path
    state = torch.load(path, weights_only=True) if suffix == ".pth" else load_file(path)
    theirs = small_vit(published, hq=hq)
    theirs.load_state_dict(state, strict=True)
    assert equal(dict(theirs.state_dict()), official_state_dict(ours))
    assert_same_masks(ours, theirs)


@pytest.mark.parametrize("hq", [True, False], ids=["hq", "plain"])
def test_a_published_vit_file_here(published: ModuleType, tmp_path: Path, hq: bool) -> None:
    theirs = fill_parameters(small_vit(published, hq=hq))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_model(model_spec("hq_test_vit" if hq else "sam_test_vit"))
    assert load_checkpoint(ours, tmp_path / "theirs.pth").layout == ("hq_sam" if hq else "sam")
    assert equal(official_state_dict(ours), dict(theirs.state_dict()))
    assert_same_masks(ours, theirs)


def test_the_published_trainers_decoder_file_here(published: ModuleType, tmp_path: Path) -> None:
    theirs = fill_parameters(small_vit(published, hq=True))
    torch.save(theirs.mask_decoder.state_dict(), tmp_path / "epoch_11.pth")
    sam = {n: t for n, t in theirs.state_dict().items() if not n.startswith("mask_decoder.")}
    plain = fill_parameters(small_vit(published, hq=False), seed=3).state_dict()
    torch.save({**plain, **sam}, tmp_path / "sam.pth")  # its decoder is another than the tuned one
    ours = build_model(model_spec("hq_test_vit"))
    info = load_checkpoint(ours, tmp_path / "sam.pth", head=tmp_path / "epoch_11.pth")
    assert (info.layout, info.has_hq) == ("hq_sam", True)
    assert equal(official_state_dict(ours), dict(theirs.state_dict()))
    assert_same_masks(ours, theirs)


def test_our_decoder_file_in_the_published_trainer(published: ModuleType, tmp_path: Path) -> None:
    ours = fill_parameters(build_model(model_spec("hq_test_vit")))
    save_checkpoint(ours, tmp_path / "ours.pth")  # type: ignore[arg-type]
    assert convert_checkpoint(tmp_path / "ours.pth", tmp_path / "epoch.pth", to="hq_decoder").layout == "hq_decoder"
    theirs = small_vit(published, hq=True).mask_decoder
    theirs.load_state_dict(torch.load(tmp_path / "epoch.pth", weights_only=True), strict=True)
    expected = {n.removeprefix("mask_decoder."): t for n, t in official_state_dict(ours).items() if "mask_dec" in n}
    assert equal(dict(theirs.state_dict()), expected)


@pytest.fixture(scope="module")
def light() -> Sam:
    return fill_parameters(build_model(model_spec("hq_vit_tiny")))  # type: ignore[return-value]


@pytest.mark.slow
def test_our_tiny_file_in_the_published_builder(published: ModuleType, tmp_path: Path, light: Sam) -> None:
    path = save_checkpoint(light, tmp_path / "light.pth").path
    theirs = published.sam_model_registry["vit_tiny"](None)
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert equal(dict(theirs.state_dict()), with_unused_classifier(official_state_dict(light)))
    assert_same_masks(light, theirs)


def test_a_published_tiny_file_here(published: ModuleType, tmp_path: Path) -> None:
    theirs = fill_parameters(published.sam_model_registry["vit_tiny"](None), seed=1)
    state: dict[str, Any] = dict(theirs.state_dict())
    torch.save({"module." + n: t for n, t in state.items()}, tmp_path / "theirs.pth")
    ours = build_model(model_spec("hq_vit_tiny"))
    info = load_checkpoint(ours, tmp_path / "theirs.pth")
    assert (info.layout, info.variant, info.num_tensors) == ("light_hq_sam", "vit_tiny", len(state))
    unused = ("image_encoder.head.", "image_encoder.norm_head.")
    assert equal(official_state_dict(ours), {n: t for n, t in state.items() if not n.startswith(unused)})


def test_a_head_alone_has_the_published_names(published: ModuleType, tmp_path: Path) -> None:
    ours = fill_parameters(build_model(model_spec("hq_test_vit")))
    head = read_tensors(save_checkpoint(ours, tmp_path / "head.safetensors", part="hq").path)
    theirs = small_vit(published, hq=True)
    result = theirs.load_state_dict(head, strict=False)
    assert result.unexpected_keys == [] and equal(head, hq_state_dict(ours))
    plain = small_vit(published, hq=False).state_dict()
    assert set(result.missing_keys) == set(plain)


@pytest.mark.parametrize("variant", ["base", "large", "huge"])
def test_names_and_shapes_of_timms_encoder(variant: str) -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(f"samvit_{variant}_patch16").state_dict()
        ours = official_state_dict(build_model(model_spec(f"sam_vit_{variant[0]}")))
    encoder = from_official({n: t for n, t in ours.items() if n.startswith("image_encoder.")}, "timm")
    assert {n: t.shape for n, t in encoder.items()} == {n: t.shape for n, t in theirs.items()}


def test_names_and_shapes_of_timms_tiny_encoder() -> None:
    from timm.models.tiny_vit import TinyVit

    with torch.device("meta"):
        # of timm's `tiny_vit_5m_224`, a name that other packages take for themselves
        backbone = TinyVit(num_classes=0, embed_dims=(64, 128, 160, 320), num_heads=(2, 4, 5, 10))
        theirs = {n: t.shape for n, t in backbone.state_dict().items() if not n.startswith("head.")}
        ours = official_state_dict(build_model(model_spec("sam_vit_tiny")))
    encoder = from_official({n: t for n, t in ours.items() if n.startswith("image_encoder.")}, "timm")
    neck = {n: t.shape for n, t in encoder.items() if n.startswith("neck.")}
    assert len(neck) == 6 and {n: t.shape for n, t in encoder.items()} == {**theirs, **neck}


def test_timms_own_conversion_gives_the_same_file(tmp_path: Path) -> None:
    from timm.models.vision_transformer_sam import checkpoint_filter_fn

    official = official_state_dict(fill_parameters(build_model(model_spec("hq_test_vit"))))
    torch.save(official, tmp_path / "a.pth")
    convert_checkpoint(tmp_path / "a.pth", tmp_path / "timm.safetensors", to="timm")
    assert equal(load_file(tmp_path / "timm.safetensors"), checkpoint_filter_fn(official, None))
