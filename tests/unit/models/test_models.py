from __future__ import annotations

import copy

import pytest
import torch

from hqsam import create_model, list_models, model_spec
from hqsam.models.drop_path import drop_paths, dropped_paths
from hqsam.models.layers import Upsample4x, conv3x3, conv3x3_dot
from hqsam.registry import build_model
from hqsam.types import PAD, ImageFeatures, Prompts
from tests.helpers import fill_parameters

TEST_MODELS = ["hq_test_vit", "hq_test_tiny", "sam_test_vit", "sam_test_tiny"]
HQ_PARAMETERS = {"hq_vit_b": 1_071_104, "hq_vit_l": 1_333_248, "hq_vit_h": 1_595_392, "hq_vit_tiny": 448_512}
# TinyViT without its classifier
ENCODER_MILLIONS = {"sam_vit_b": 89.7, "sam_vit_l": 308.3, "sam_vit_h": 637.0, "sam_vit_tiny": 5.7}


@pytest.fixture(scope="module")
def hq():
    return fill_parameters(build_model(model_spec("hq_test_vit"))).eval()


def _features(count: int = 1, side: int = 8, channels: int = 32) -> ImageFeatures:
    g = torch.Generator().manual_seed(1)
    return ImageFeatures(
        torch.randn(count, 256, side, side, generator=g), torch.randn(count, channels, side, side, generator=g)
    )


def _boxes(count: int) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(2)) * 128
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


@pytest.mark.parametrize("name", HQ_PARAMETERS)
def test_number_of_hq_parameters(name):
    with torch.device("meta"):
        model = build_model(model_spec(name))
    assert sum(p.numel() for p in model.hq_parameters()) == HQ_PARAMETERS[name]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in model.hq_parameters()}


@pytest.mark.parametrize("name", ENCODER_MILLIONS)
def test_encoder_size(name):
    with torch.device("meta"):
        model = build_model(model_spec(name))
    assert sum(p.numel() for p in model.image_encoder.parameters()) / 1e6 == pytest.approx(
        ENCODER_MILLIONS[name], abs=0.06
    )


@pytest.mark.parametrize("name", TEST_MODELS)
def test_shapes_and_finite(name):
    model = create_model(name, device="cpu")
    side = model.image_size
    with torch.no_grad():
        features = model.image_encoder(torch.randn(2, 3, side, side))
        prompts = Prompts.from_parts(boxes=_boxes(3), image_index=torch.tensor([0, 1, 1]))
        output = model.decode(features, prompts, candidates=(1, 2, 3), use_hq=model.has_hq)
    assert features.image_embedding.shape == (2, 256, side // 16, side // 16)
    assert features.early_feature.shape == (2, model.image_encoder.early_channels, side // 16, side // 16)
    assert output.sam_logits.shape == (3, 3, side // 4, side // 4)
    assert output.iou.shape == (3, 3)
    assert (output.hq_logits is not None) == model.has_hq
    assert output.sam_logits.isfinite().all()


def test_frozen_part_stays_in_eval_mode(hq):
    hq.train()
    assert hq.mask_decoder.head.training
    assert not hq.image_encoder.training and not hq.mask_decoder.trunk.training
    hq.eval()
    assert not any(module.training for module in hq.modules())


def test_only_the_head_gets_gradients(hq):
    output = hq.decode(_features(), Prompts.from_parts(boxes=_boxes(2)), candidates=())
    assert output.sam_logits.shape == (2, 0, 32, 32)
    output.hq_logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in hq.hq_parameters())
    assert all(p.grad is None for p in hq.mask_decoder.trunk.parameters())
    hq.zero_grad(set_to_none=True)


@torch.no_grad()
def test_chunks_do_not_change_the_result(hq):
    prompts = Prompts.from_parts(boxes=_boxes(7))
    whole = hq.decode(_features(), prompts, chunk_size=7)
    parts = hq.decode(_features(), prompts, chunk_size=2)
    assert torch.allclose(whole.sam_logits, parts.sam_logits, atol=1e-5)
    assert torch.allclose(whole.hq_logits, parts.hq_logits, atol=1e-5)


@torch.no_grad()
def test_many_images_equal_one_by_one(hq):
    features = _features(3)
    boxes, index = _boxes(5), torch.tensor([2, 0, 1, 0, 2])
    together = hq.decode(features, Prompts.from_parts(boxes=boxes, image_index=index))
    for row, image in enumerate(index):
        single = ImageFeatures(*(f[image : image + 1] for f in features))
        alone = hq.decode(single, Prompts.from_parts(boxes=boxes[row : row + 1]))
        assert torch.allclose(alone.sam_logits[0], together.sam_logits[row], atol=1e-5)
        assert torch.allclose(alone.hq_logits[0], together.hq_logits[row], atol=1e-5)
        assert torch.allclose(alone.iou[0], together.iou[row], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("use_hq", [True, False])
@pytest.mark.parametrize("images", [1, 3])
def test_what_is_kept_of_images_changes_nothing(hq, images, use_hq):
    """One prompt at a time, which prepares nothing by itself; those with masks cannot use it all."""
    features = _features(images)
    kept = hq.prepare(features, use_hq=use_hq)
    assert kept.tokens.image.shape == (images, 64, 256) and (kept.hq_features is not None) == use_hq
    mask = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(4))
    for number, masks in ((0, None), (images - 1, None), (images - 1, mask)):
        prompts = Prompts.from_parts(boxes=_boxes(1), masks=masks, image_index=torch.tensor([number]))
        plain = hq.decode(features, prompts, candidates=(0, 1), use_hq=use_hq)
        found = hq.decode(features, prompts, candidates=(0, 1), use_hq=use_hq, prepared=kept)
        torch.testing.assert_close(found.sam_logits, plain.sam_logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.hq_logits, plain.hq_logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.iou, plain.iou, rtol=0, atol=1e-6)


@torch.no_grad()
def test_padding_of_ragged_prompts_changes_nothing(hq):
    g = torch.Generator().manual_seed(3)
    parts = [
        Prompts.from_parts(boxes=_boxes(1)),
        Prompts.from_parts(torch.rand(1, 10, 2, generator=g) * 128, torch.ones(1, 10, dtype=torch.int64)),
        Prompts.from_parts(masks=torch.randn(1, 1, 32, 32, generator=g)),
    ]
    joined = Prompts.cat(parts)
    assert (joined.kinds == PAD).any() and joined.has_mask.tolist() == [False, False, True]
    together = hq.decode(_features(), joined)
    for row, prompts in enumerate(parts):
        alone = hq.decode(_features(), prompts)
        assert torch.allclose(alone.sam_logits[0], together.sam_logits[row], atol=1e-5)
        assert torch.allclose(alone.hq_logits[0], together.hq_logits[row], atol=1e-5)


@torch.no_grad()
def test_nothing_is_cached_that_depends_on_weights():
    spec = model_spec("hq_test_tiny")
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(4))
    model, other = (fill_parameters(build_model(spec), seed).eval() for seed in (0, 1))
    model.image_encoder(images)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.copy_(theirs)
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)
    assert torch.equal(model.image_encoder(images).image_embedding, other.image_encoder(images).image_embedding)


def test_folded_convolution_equals_the_plain_form():
    g = torch.Generator().manual_seed(5)
    conv = torch.nn.Conv2d(6, 4, 3, padding=1).double()
    x = torch.randn(2, 7, 9, 6, generator=g, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, generator=g, dtype=torch.float64, requires_grad=True)
    plain = torch.einsum("nhwd,nd->nhw", conv3x3(conv, x), weights)[:, None]
    folded = conv3x3_dot(conv, x, weights)
    assert torch.allclose(plain, folded, atol=1e-12)
    targets = [x, weights, conv.weight, conv.bias]
    for a, b in zip(
        torch.autograd.grad(plain.square().sum(), targets, retain_graph=True),
        torch.autograd.grad(folded.square().sum(), targets),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10)


def test_upsampling_equals_two_transposed_convolutions():
    up = Upsample4x(5, 7, 3)
    torch.nn.init.normal_(up.norm.weight)
    torch.nn.init.normal_(up.norm.bias)
    x = torch.randn(2, 4, 6, 5)
    plain = up.up2(torch.nn.functional.gelu(up.norm(up.up1(x.permute(0, 3, 1, 2)))))
    assert torch.allclose(up(x), plain.permute(0, 2, 3, 1), atol=1e-6)


def test_reduced_precision_keeps_positions_exact(hq):
    half = copy.deepcopy(hq).to(torch.bfloat16)
    assert half.prompt_encoder.positions.frequencies.dtype == torch.float32
    assert torch.equal(half.prompt_encoder.positions.frequencies, hq.prompt_encoder.positions.frequencies)
    with torch.no_grad():
        output = half.decode(_features(), Prompts.from_parts(boxes=_boxes(2)))
    assert output.sam_logits.dtype == torch.bfloat16 and output.sam_logits.isfinite().all()


@torch.no_grad()
def test_canvas_with_sizes_equals_the_predictor_padding(hq):
    image = torch.randint(0, 256, (3, 100, 128), dtype=torch.uint8)
    canvas = torch.full((1, 3, 128, 128), 128, dtype=torch.uint8)
    canvas[0, :, :100] = image
    padded = hq.preprocess_canvas(canvas, torch.tensor([[100, 128]]))
    assert torch.equal(padded[0], hq.preprocess(image))
    assert hq.preprocess_canvas(canvas)[0, :, 100:].abs().min() > 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.decode(_features(2), Prompts.from_parts(boxes=_boxes(1))), "image_index"),
        (lambda m: m.decode(_features(), Prompts.from_parts(boxes=_boxes(1)), candidates=(4,)), "candidates"),
        (lambda m: m.preprocess(torch.zeros(3, 200, 10)), "at most 128"),
    ],
)
def test_wrong_calls(hq, call, text):
    with pytest.raises(ValueError, match=text):
        call(hq)


def test_registry_names():
    assert "hq_vit_tiny.embedded" in list_models("hq_*")
    with pytest.raises(ValueError, match=r"did you mean.*hq_vit_l"):
        create_model("hq_vitl")
    with pytest.raises(ValueError, match="has no tag 'official2'"):
        model_spec("hq_vit_tiny.official2")
    with pytest.raises(ValueError, match="names its weights already"):
        create_model("hq_vit_tiny.embedded", "file.pth")
    with pytest.raises(ValueError, match="no pretrained weights"):
        create_model("hq_test_vit", "pretrained")


@pytest.mark.parametrize("name", ["sam_test_vit", "sam_test_tiny", "sam_vit_tiny_small"])
def test_layers_hold_every_parameter_of_the_encoder_once(name):
    with torch.device("meta"):
        encoder = build_model(model_spec(name)).image_encoder
    held = [id(p) for layer in encoder.layers() for p in layer]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters())


@torch.no_grad()
def test_branches_left_out(hq):
    """With every branch but those of the first block left out, the others change nothing."""
    model = build_model(model_spec("sam_test_vit"))
    image = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    usual = model.image_encoder(image).image_embedding
    model.image_encoder.set_drop_path(0.6)
    paths = drop_paths(model.image_encoder)
    assert [path.rate for path in paths] == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6])
    assert torch.equal(model.image_encoder(image).image_embedding, usual)
    draws = torch.zeros(2, 8)
    draws[1] = 0.99  # nothing of the second image, and what stays is enlarged
    with dropped_paths(model.image_encoder, draws):
        got = model.image_encoder(image).image_embedding
    for block in model.image_encoder.backbone.blocks[1:]:
        block.attn.proj.weight.zero_(), block.attn.proj.bias.zero_()
        block.mlp.fc2.weight.zero_(), block.mlp.fc2.bias.zero_()
    torch.testing.assert_close(got[0], model.image_encoder(image).image_embedding[0])
    assert not torch.allclose(got[1], usual[1])
    with pytest.raises(ValueError, match="8 branches"), dropped_paths(model.image_encoder, torch.zeros(2, 3)):
        pass
