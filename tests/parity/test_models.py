"""Small models in float64 against the published implementations: differences are rounding, not judgement."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from hqsam.models import TinyViTSpec, select_masks
from hqsam.models.mask_decoder import DecoderInput
from hqsam.registry import model_spec
from hqsam.types import ImageFeatures, Prompts
from tests.parity.oracles import build_pair

pytestmark = pytest.mark.parity
TOLERANCE = 1e-9

TINY = replace(
    model_spec("hq_test_tiny"),
    # the reference TinyViT has its 64 x 64 grid and its last width of 320 written into the code
    image_size=1024,
    encoder=TinyViTSpec(widths=(8, 8, 16, 320), depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)),
)
HQ_VIT, SAM_VIT = model_spec("hq_test_vit"), model_spec("sam_test_vit")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _parts(side: int, count: int, kind: str) -> dict[str, torch.Tensor]:
    g = _generator()
    points = torch.rand(count, 3, 2, generator=g) * side
    labels = torch.tensor([[1, 0, -1], [1, 1, 0], [0, 1, 1], [1, 0, 0]])[:count]
    corners = torch.rand(count, 2, 2, generator=g) * side
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    masks = torch.randn(count, 1, side // 4, side // 4, generator=g)
    have = {"points": points, "labels": labels, "boxes": boxes, "masks": masks}
    names = {"points": ("points", "labels"), "boxes": ("boxes",), "masks": ("masks",)}
    return {name: have[name] for part in kind.split("+") for name in names[part]}


@pytest.mark.parametrize("spec", [HQ_VIT, TINY], ids=["vit", "tiny"])
def test_encoder_features(spec):
    oracle, ours = build_pair(spec)
    oracle.double(), ours.double()
    images = torch.randn(1, 3, spec.image_size, spec.image_size, generator=_generator(), dtype=torch.float64)
    with torch.no_grad():
        embedding, interm = oracle.image_encoder(images)
        features = ours.image_encoder(images)
    assert (embedding - features.image_embedding).abs().max() < TOLERANCE
    assert (interm[0].permute(0, 3, 1, 2) - features.early_feature).abs().max() < TOLERANCE


@pytest.mark.parametrize("kind", ["points", "boxes", "masks", "points+boxes", "points+boxes+masks"])
def test_prompt_encoder(kind):
    oracle, ours = build_pair(HQ_VIT)
    parts = _parts(HQ_VIT.image_size, 4, kind)
    points = (parts["points"], parts["labels"]) if "points" in parts else None
    arguments = (points, parts.get("boxes"), parts.get("masks"))
    with torch.no_grad():
        for theirs, mine in zip(oracle.prompt_encoder(*arguments), ours.prompt_encoder(*arguments), strict=True):
            assert theirs.shape == mine.shape
            assert torch.allclose(theirs, mine, atol=2e-6)
        assert torch.allclose(oracle.prompt_encoder.get_dense_pe(), ours.prompt_encoder.get_dense_pe(), atol=2e-6)


@pytest.mark.parametrize("kind", ["points", "boxes", "masks", "points+boxes+masks"])
def test_hq_decoder_all_outputs(kind):
    oracle, ours = build_pair(HQ_VIT)
    oracle.double(), ours.double()
    side, grid = HQ_VIT.image_size, HQ_VIT.image_size // 16
    g = _generator()
    features = ImageFeatures(
        torch.randn(1, 256, grid, grid, generator=g, dtype=torch.float64),
        torch.randn(1, 32, grid, grid, generator=g, dtype=torch.float64),
    )
    parts = _parts(side, 4, kind)
    points = (parts["points"], parts["labels"]) if "points" in parts else None
    with torch.no_grad():
        # The reference casts coordinates to float32, so both decoders get its float32 embeddings.
        encoder = oracle.float().prompt_encoder
        sparse, dense = encoder(points, parts.get("boxes"), parts.get("masks"))
        sparse, dense, image_pe = sparse.double(), dense.double(), encoder.get_dense_pe().double()
        oracle.double()
        inputs = DecoderInput(features.image_embedding, image_pe, sparse, dense)
        for multimask, hq_only in product((False, True), (False, True)):
            theirs, iou = oracle.mask_decoder(
                image_embeddings=features.image_embedding,
                image_pe=image_pe,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                hq_token_only=hq_only,
                interm_embeddings=[features.early_feature.permute(0, 2, 3, 1)],
            )
            output = ours.mask_decoder(inputs, ours.hq_features(features), (1, 2, 3) if multimask else (0,))
            mine, my_iou = select_masks(output, multimask=multimask, fusion="hq" if hq_only else "sum")
            assert (theirs - mine).abs().max() < TOLERANCE
            assert (iou - my_iou).abs().max() < TOLERANCE


@pytest.mark.parametrize("multimask", [False, True])
def test_plain_sam_decoder(multimask):
    oracle, ours = build_pair(SAM_VIT)
    grid = SAM_VIT.image_size // 16
    embedding = torch.randn(1, 256, grid, grid, generator=_generator(), dtype=torch.float64)
    with torch.no_grad():
        sparse, dense = oracle.prompt_encoder(None, _parts(SAM_VIT.image_size, 3, "boxes")["boxes"], None)
        image_pe = oracle.prompt_encoder.get_dense_pe().double()
        oracle.double(), ours.double()
        theirs, iou = oracle.mask_decoder(embedding, image_pe, sparse.double(), dense.double(), multimask)
        inputs = DecoderInput(embedding, image_pe, sparse.double(), dense.double())
        output = ours.mask_decoder(inputs, (1, 2, 3) if multimask else (0,))
    assert (theirs - output.sam_logits).abs().max() < TOLERANCE
    assert (iou - output.iou).abs().max() < TOLERANCE


def test_fusion_sam_of_an_hq_model_is_plain_sam():
    """Without the HQ token an HQ model is the frozen SAM to the last bit of the published one's arithmetic."""
    oracle, ours = build_pair(SAM_VIT)
    hq = build_pair(HQ_VIT)[1]
    hq.mask_decoder.trunk.load_state_dict(ours.mask_decoder.state_dict())
    hq.prompt_encoder.load_state_dict(ours.prompt_encoder.state_dict())
    grid = SAM_VIT.image_size // 16
    features = ImageFeatures(torch.randn(1, 256, grid, grid, generator=_generator()), torch.zeros(1, 32, grid, grid))
    prompts = Prompts.from_parts(**_parts(SAM_VIT.image_size, 3, "points"))
    with torch.no_grad():
        a = ours.decode(features, prompts, candidates=(0, 1, 2, 3), use_hq=False)
        b = hq.decode(features, prompts, candidates=(0, 1, 2, 3), use_hq=False)
        sparse, dense = oracle.prompt_encoder(*_as_points(prompts), None, None)
        theirs, iou = oracle.mask_decoder.predict_masks(
            features.image_embedding, oracle.prompt_encoder.get_dense_pe(), sparse, dense
        )
    assert torch.equal(a.sam_logits, b.sam_logits) and b.hq_logits is None
    assert torch.allclose(theirs, a.sam_logits, atol=1e-4) and torch.allclose(iou, a.iou, atol=1e-5)


def _as_points(prompts: Prompts) -> tuple[tuple[torch.Tensor, torch.Tensor]]:
    return ((prompts.coords[:, :-1], prompts.kinds[:, :-1]),)


def test_end_to_end_forward():
    """`Sam.forward` on two images of different shapes and numbers of prompts."""
    oracle, ours = build_pair(HQ_VIT)
    g = _generator()
    records = [
        {
            "image": (torch.rand(3, 96, 128, generator=g) * 255).round(),
            "original_size": (48, 64),
            "boxes": torch.tensor([[10.0, 10, 60, 70], [5, 30, 100, 90]]),
        },
        {
            "image": (torch.rand(3, 128, 128, generator=g) * 255).round(),
            "original_size": (128, 128),
            "point_coords": torch.tensor([[[30.0, 40.0], [80.0, 90.0]]]),
            "point_labels": torch.tensor([[1, 0]]),
        },
    ]
    with torch.no_grad():
        expected = oracle(records, multimask_output=True)
    for theirs, mine in zip(expected, ours(records, multimask_output=True), strict=True):
        assert torch.allclose(theirs["low_res_logits"], mine["low_res_logits"], atol=1e-4)
        assert torch.allclose(theirs["iou_predictions"], mine["iou_predictions"], atol=1e-5)
        assert theirs["masks"].shape == mine["masks"].shape
        assert (theirs["masks"] == mine["masks"]).float().mean() > 0.9999
