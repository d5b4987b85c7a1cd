"""Parts of the HQ head and tuned copies of SAM's parts: their masks, their parameters, what they leave alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hqsam.models import FULL_HEAD, Sam, build_head, head_name, head_title
from hqsam.models.layers import MLP, Upsample4x
from hqsam.registry import create_model
from hqsam.types import ImageFeatures, Prompts
from tests.helpers import fill_parameters

FUSED = ["early", "final", "mask", "early+final", "early+mask", "final+mask", FULL_HEAD]
COPIES = ["sam_token", "sam_decoder"]
HEADS = [*FUSED, "token", *COPIES]


def build(head: str) -> Sam:
    model = create_model("hq_test_tiny", device="cpu", dtype=torch.float64, head=head)
    fill_parameters(model, 3)
    return model


def make_inputs(model: Sam) -> tuple[ImageFeatures, Prompts]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 128, 128, generator=generator, dtype=torch.float64)
    boxes = torch.tensor([[10.0, 10, 60, 70], [5, 5, 100, 90], [20, 20, 40, 50]], dtype=torch.float64)
    with torch.no_grad():
        features = model.image_encoder(images)
    return features, Prompts.from_parts(boxes=boxes).with_image_index(torch.tensor([0, 1, 1]))


def expected_parameters(head: str, early: int) -> int:
    """By hand, from the layers of figure 2 of the paper."""
    token_and_mlp = 256 + 2 * (256 * 256 + 256) + (256 * 32 + 32)
    parts = {
        "early": (early * 256 * 4 + 256) + 2 * 256 + (256 * 32 * 4 + 32),
        "final": (256 * 64 * 4 + 64) + 2 * 64 + (64 * 32 * 4 + 32),
        "mask": (32 * 64 * 9 + 64) + 2 * 64 + (64 * 32 * 9 + 32),
    }
    return token_and_mlp + sum(size for part, size in parts.items() if part in head.split("+"))


@pytest.mark.parametrize(
    ("name", "early"), [("hq_vit_tiny", 160), ("hq_vit_b", 768), ("hq_vit_l", 1024), ("hq_vit_h", 1280)]
)
def test_missing_parts_have_no_parameters(name: str, early: int) -> None:
    for head in [*FUSED, "token", "sam_token"]:
        count = sum(parameter.numel() for parameter in build_head(head, early).parameters())
        assert count == expected_parameters(head, early), head
    published = {160: 448_512, 768: 1_071_104, 1024: 1_333_248, 1280: 1_595_392}
    assert expected_parameters(FULL_HEAD, early) == published[early]


def test_a_copy_of_the_decoder_has_what_its_mask_depends_on() -> None:
    model = build("sam_decoder")
    trunk = model.mask_decoder.trunk
    unused = [trunk.iou_head, *trunk.hypernetworks[1:]]
    size = sum(p.numel() for p in trunk.parameters()) - sum(p.numel() for part in unused for p in part.parameters())
    assert sum(p.numel() for p in model.hq_parameters()) == size
    features, prompts = make_inputs(model)
    model.decode(features, prompts, candidates=()).hq_logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.hq_parameters())


def upsampled(stack: Upsample4x, x: Tensor) -> Tensor:
    """The three layers, channels first, as torch has them."""
    x = F.conv_transpose2d(x, stack.up1.weight, stack.up1.bias, stride=2)
    return F.conv_transpose2d(F.gelu(stack.norm(x)), stack.up2.weight, stack.up2.bias, stride=2)


@pytest.mark.parametrize("name", [*FUSED, "token"])
def test_masks_are_products_with_the_sum_of_the_fused_features(name: str) -> None:
    model = build(name)
    features, prompts = make_inputs(model)
    head, trunk = model.mask_decoder.head, model.mask_decoder.trunk
    seen: dict[str, Tensor] = {}
    run = trunk.run

    def spy(*args: object, **kwargs: object) -> object:
        output = run(*args, **kwargs)
        seen.update(token=output.extra_tokens[:, 0], mask=output.mask_feature.permute(0, 3, 1, 2))
        return output

    trunk.run = spy
    with torch.no_grad():
        got = model.decode(features, prompts, chunk_size=len(prompts)).hq_logits  # the spy keeps one
        wanted = name.split("+")
        feature = torch.zeros_like(seen["mask"])
        if "early" in wanted:
            feature += upsampled(head.early_fusion, features.early_feature)[prompts.image_index]
        if "final" in wanted:
            feature += upsampled(head.final_fusion, features.image_embedding)[prompts.image_index]
        if "mask" in wanted:
            feature += head.mask_fusion.conv2(F.gelu(head.mask_fusion.norm(head.mask_fusion.conv1(seen["mask"]))))
        if name == "token":
            feature = seen["mask"]
        expected = torch.einsum("nd,ndhw->nhw", head.mlp(seen["token"]), feature)[:, None]
    assert got is not None
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_kept_image_parts_and_chunks_change_nothing(name: str) -> None:
    model = build(name)
    features, prompts = make_inputs(model)
    with torch.no_grad():
        whole = model.decode(features, prompts, candidates=(1, 2, 3))
        kept = model.prepare(features)
        parts = model.decode(features, prompts, candidates=(1, 2, 3), prepared=kept, chunk_size=2)
    assert kept.hq_features is not None
    assert kept.hq_features.shape == (2, 32 if {"early", "final"} & set(name.split("+")) else 0, 32, 32)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_begins_as_sam_and_leaves_sam_alone(name: str) -> None:
    model = create_model("hq_test_tiny", device="cpu", dtype=torch.float64, head=name)
    features, prompts = make_inputs(model)
    with torch.no_grad():
        sam = model.decode(features, prompts, use_hq=False)
        start = model.decode(features, prompts)
        fill_parameters(model.mask_decoder.head, 1)
        tuned = model.decode(features, prompts)
    # to rounding: the copy computes the first block's image-only work for each prompt
    torch.testing.assert_close(start.hq_logits, sam.sam_logits, rtol=0, atol=1e-12)
    assert not torch.allclose(tuned.hq_logits, start.hq_logits)
    for output in (start, tuned):
        assert torch.equal(output.sam_logits, sam.sam_logits) and torch.equal(output.iou, sam.iou)


def test_a_tuned_token_is_sam_with_that_token() -> None:
    model = build("sam_token")
    features, prompts = make_inputs(model)
    plain = create_model("sam_test_tiny", device="cpu", dtype=torch.float64)
    plain.prompt_encoder.load_state_dict(model.prompt_encoder.state_dict())
    plain.mask_decoder.load_state_dict(model.mask_decoder.trunk.state_dict())
    head = model.mask_decoder.head
    with torch.no_grad():
        plain.mask_decoder.mask_tokens.weight[:1] = head.sam_token.weight
        plain.mask_decoder.hypernetworks[0].load_state_dict(head.sam_mlp.state_dict())
        expected = plain.decode(features, prompts, use_hq=False).sam_logits
        torch.testing.assert_close(model.decode(features, prompts).hq_logits, expected, rtol=0, atol=1e-12)
    assert isinstance(head.sam_mlp, MLP)


def test_names_have_one_spelling_and_a_title() -> None:
    assert head_name("mask+early") == "early+mask"
    assert [head_name(name) for name in HEADS] == HEADS
    assert [build(name).head for name in HEADS] == HEADS
    assert len({head_title(name) for name in HEADS}) == len(HEADS)
    assert create_model("sam_test_tiny", device="cpu").head is None


@pytest.mark.parametrize("name", ["", "all", "early+early", "early,final", "early+token"])
def test_an_unknown_head_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"head must be features joined by \+, of early, final, mask, or one of token"):
        create_model("hq_test_tiny", device="cpu", head=name)


def test_a_plain_sam_has_no_head_to_choose() -> None:
    with pytest.raises(ValueError, match=r"plain SAM and has no head; leave out head='token'"):
        create_model("sam_test_tiny", device="cpu", head="token")
