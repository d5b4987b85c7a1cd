"""The published training loop, from its description and the modules of `segment_anything_hq` 0.3.

A step encodes the batch at once without gradient. Then, image by image: the prompt encoder, SAM's frozen decoder, whose
masks nobody uses, and the HQ decoder with all its masks. The loss is BCE + dice of the HQ logits on uncertain points,
the optimizer Adam. Float32 throughout, one prompt an image.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hqsam.data import Batch
from hqsam.models import SamViTSpec, TinyViTSpec
from hqsam.registry import ModelSpec
from hqsam.types import BOX_TOP_LEFT, NEGATIVE, POSITIVE

_DIM = 256
_HEAD = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")


class PublishedTrainer:
    """The modules and one optimizer step.

    Attributes:
        sam: encoder, prompt encoder and plain mask decoder; frozen.
        decoder: the HQ decoder, whose own part of SAM is frozen too.
    """

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        from segment_anything_hq import modeling

        grid = spec.image_size // 16
        prompt_encoder = modeling.PromptEncoder(
            embed_dim=_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(spec.image_size, spec.image_size),
            mask_in_chans=16,
        )
        plain = modeling.MaskDecoder(**_decoder_options(modeling))
        self.sam = modeling.Sam(_build_encoder(modeling, spec.encoder, spec.image_size), prompt_encoder, plain)
        self.sam.to(device).eval().requires_grad_(False)
        early = spec.encoder.width if isinstance(spec.encoder, SamViTSpec) else spec.encoder.widths[2]
        self.decoder = modeling.MaskDecoderHQ(vit_dim=early, **_decoder_options(modeling)).to(device)
        self.decoder.load_state_dict(plain.state_dict(), strict=False)  # it starts from SAM's decoder
        self.decoder.requires_grad_(False)
        for name in _HEAD:
            getattr(self.decoder, name).requires_grad_(True)
        self.device = device
        self.parameters = [p for p in self.decoder.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)

    def train_step(self, batch: Batch) -> float:
        """One optimizer step; returns the loss, which the published loop reads after every step."""
        batch = batch.to(self.device)
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def loss(self, batch: Batch) -> Tensor:
        """BCE + dice of a batch with one prompt an image."""
        if batch.images is None:
            raise ValueError("the published loop has no kept encoder outputs; give it images")
        logits = self.hq_logits(batch.images, [published_prompt(batch, row) for row in range(len(batch.images))])
        points = _uncertain_points(logits, batch.loss_candidates, batch.loss_uniform)
        labels = batch.masks.to(logits.dtype) / 255.0
        truth = _sample(labels, points)
        predicted = _sample(logits, points)
        bce = F.binary_cross_entropy_with_logits(predicted, truth, reduction="none").mean(1)
        probability = predicted.sigmoid()
        overlap = 2 * (probability * truth).sum(1)
        dice = 1 - (overlap + 1) / (probability.sum(1) + truth.sum(1) + 1)
        return bce.mean() + dice.mean()

    def hq_logits(self, images: Tensor, prompts: list[dict[str, Tensor]]) -> Tensor:
        """(B, 3, S, S) uint8 images with a prompt each to (B, 1, S / 4, S / 4) logits."""
        sam = self.sam
        with torch.no_grad():
            embeddings, early = sam.image_encoder(torch.stack([sam.preprocess(image) for image in images]))
            pe = sam.prompt_encoder.get_dense_pe()
            embedded = []
            for embedding, prompt in zip(embeddings, prompts, strict=True):
                points = (prompt["point_coords"], prompt["point_labels"]) if "point_coords" in prompt else None
                sparse, dense = sam.prompt_encoder(points, prompt.get("boxes"), prompt.get("mask_inputs"))
                sam.mask_decoder(embedding[None], pe, sparse, dense, False, False, None)
                embedded.append((sparse, dense))
        decoder = self.decoder
        vit = early[0].permute(0, 3, 1, 2)
        features = decoder.embedding_encoder(embeddings) + decoder.compress_vit_feat(vit)
        rows = []
        for row, (sparse, dense) in enumerate(embedded):
            masks, _ = decoder.predict_masks(embeddings[row, None], pe, sparse, dense, features[row, None])
            rows.append(masks[:, -1:])
        return torch.cat(rows)


def published_prompt(batch: Batch, row: int) -> dict[str, Tensor]:
    """A prompt of a batch as the published code names it: boxes, points with labels, or a mask."""
    prompts = batch.prompts
    kinds, coords = prompts.kinds[row], prompts.coords[row]
    if bool(prompts.mask_flags()[row]) and prompts.masks is not None:
        return {"mask_inputs": prompts.masks[row, None]}
    if bool((kinds == BOX_TOP_LEFT).any()):
        start = int((kinds == BOX_TOP_LEFT).nonzero()[0])
        return {"boxes": coords[start : start + 2].reshape(1, 4)}
    chosen = (kinds == NEGATIVE) | (kinds == POSITIVE)
    return {"point_coords": coords[chosen][None], "point_labels": kinds[chosen][None]}


def _uncertain_points(logits: Tensor, candidates: Tensor, uniform: Tensor) -> Tensor:
    with torch.no_grad():
        uncertainty = -_sample(logits, candidates).abs()
        rows = uncertainty.topk(candidates.shape[1] // 3 - uniform.shape[1], dim=1).indices
        return torch.cat([candidates.gather(1, rows[..., None].expand(-1, -1, 2)), uniform], dim=1)


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """(B, 1, H, W) at (B, P, 2) xy in [0, 1] -> (B, P)."""
    return F.grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def _decoder_options(modeling: Any) -> dict[str, Any]:
    return {
        "num_multimask_outputs": 3,
        "transformer": modeling.TwoWayTransformer(depth=2, embedding_dim=_DIM, mlp_dim=2048, num_heads=8),
        "transformer_dim": _DIM,
        "iou_head_depth": 3,
        "iou_head_hidden_dim": 256,
    }


def _build_encoder(modeling: Any, encoder: SamViTSpec | TinyViTSpec, image_size: int) -> nn.Module:
    if isinstance(encoder, TinyViTSpec):
        tiny: nn.Module = modeling.TinyViT(
            img_size=image_size,
            num_classes=1,
            embed_dims=list(encoder.widths),
            depths=list(encoder.depths),
            num_heads=list(encoder.num_heads),
            window_sizes=list(encoder.window_sizes),
            drop_path_rate=0.0,
        )
        return tiny
    vit: nn.Module = modeling.ImageEncoderViT(
        depth=encoder.depth,
        embed_dim=encoder.width,
        img_size=image_size,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=encoder.num_heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=encoder.global_blocks,
        window_size=encoder.window_size,
        out_chans=_DIM,
    )
    return vit
