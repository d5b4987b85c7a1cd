"""Files of transformers mean the same masks here; its answers are frozen (fixtures/make_transformers.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hqsam.checkpoints import CheckpointError, convert_checkpoint, inspect_checkpoint, load_checkpoint
from hqsam.models import Sam
from hqsam.registry import build_model, model_spec
from hqsam.types import Prompts
from tests.helpers import fill_parameters
from tests.parity.oracles import relative
from tests.parity.transformers_cases import CASES, FILE, pixels

pytestmark = pytest.mark.parity
COPY = "prompt_encoder.shared_embedding.positional_embedding"
ORIGINAL = "shared_image_embedding.positional_embedding"


class Names(nn.Module):
    """Stands for a module of which names and shapes are known."""

    def __init__(self, tensors: dict[str, Tensor], buffers: list[str]) -> None:
        super().__init__()
        self.tensors, self.known_buffers = tensors, buffers

    def named_buffers(self, *_: Any, **__: Any) -> Any:
        return [(name, self.tensors[name]) for name in self.known_buffers]

    def state_dict(self, *_: Any, **__: Any) -> Any:
        return self.tensors


def frozen(kind: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a transformers model, and what it answered."""
    with safe_open(FILE, framework="pt") as file:
        names = json.loads(file.metadata()["names"])[kind]
    tensors = {name: torch.empty(shape) for name, (shape, _) in names.items()}
    tensors[COPY] = tensors[ORIGINAL]  # transformers keeps one tensor under two names
    fill_parameters(Names(tensors, [name for name, (_, buffer) in names.items() if buffer]))
    answers = {key.removeprefix(f"{kind}/"): t for key, t in load_file(FILE).items() if key.startswith(f"{kind}/")}
    return tensors, answers


def ours(model: Sam, case: dict[str, Tensor], *, multimask: bool, hq_only: bool) -> tuple[Tensor, Tensor]:
    """Masks and scores in transformers' order: a model with a head sorts SAM's three by score."""
    masks = case.get("masks")
    prompts = Prompts.from_parts(
        case.get("points"), case.get("labels"), case.get("boxes"), None if masks is None else masks[None]
    )
    output = model.decode(
        model.image_encoder(pixels()), prompts, candidates=(1, 2, 3) if multimask else (0,), use_hq=model.has_hq
    )
    sam, iou = output.sam_logits, output.iou
    if output.hq_logits is None:
        return sam, iou
    iou, order = iou.sort(dim=1, descending=True)
    sam = sam.take_along_dim(order[:, :, None, None], dim=1)
    return (output.hq_logits if hq_only else sam + output.hq_logits), iou


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sam", "hq"])
def test_masks_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    tensors, answers = frozen(kind)
    save_file({name: t for name, t in tensors.items() if name != COPY}, tmp_path / "model.safetensors")
    model = build_model(model_spec(f"{kind}_test_vit"))
    info = load_checkpoint(model, tmp_path / "model.safetensors")
    assert (info.layout, info.variant) == ("transformers_hq_sam" if kind == "hq" else "transformers_sam", "test_vit")
    assert max(worst_difference(model, kind, answers)) <= 1e-4
    # The rest is one number: transformers has eps 1e-6 in the transformer's norms, the published code 1e-5.
    for module in getattr(model.mask_decoder, "trunk", model.mask_decoder).transformer.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    assert max(worst_difference(model, kind, answers)) <= 1e-5


def worst_difference(model: Sam, kind: str, answers: dict[str, Tensor]) -> tuple[float, float]:
    """Of mask logits, over their range, and of scores."""
    of_masks, of_scores = [], []
    for name, case in CASES.items():
        for multimask in (False, True):
            for mode in ("all", "hq") if kind == "hq" else ("all",):
                masks, iou = ours(model, case, multimask=multimask, hq_only=mode == "hq")
                key = f"{name}/{'multi' if multimask else 'single'}/{mode}"
                assert masks.shape == answers[f"{key}/masks"].shape
                of_masks.append(relative(answers[f"{key}/masks"], masks))
                of_scores.append(float((answers[f"{key}/iou"] - iou).abs().max()))
    assert len(of_masks) + len(of_scores) == len(answers)
    return max(of_masks), max(of_scores)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", ["sam", "hq"])
def test_its_file_comes_back_bit_by_bit(kind: str, suffix: str, tmp_path: Path) -> None:
    tensors, _ = frozen(kind)
    source = tmp_path / f"theirs{suffix}"
    if suffix == ".safetensors":
        save_file({name: t.clone() for name, t in tensors.items()}, source)
    else:
        torch.save(tensors, source)
    convert_checkpoint(source, tmp_path / "official.safetensors")
    assert inspect_checkpoint(tmp_path / "official.safetensors").layout == ("hq_sam" if kind == "hq" else "sam")
    convert_checkpoint(tmp_path / "official.safetensors", tmp_path / "back.safetensors", to="transformers")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys()
    assert all(back[n].dtype == t.dtype and torch.equal(back[n], t) for n, t in tensors.items())


def test_one_tensor_under_two_names_is_one(tmp_path: Path) -> None:
    tensors, _ = frozen("hq")
    tensors[COPY] = tensors[COPY] + 1e-6
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=f"one tensor twice with different numbers: {COPY}"):
        inspect_checkpoint(tmp_path / "model.pth")
    del tensors[ORIGINAL]
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=ORIGINAL):
        load_checkpoint(build_model(model_spec("hq_test_vit")), tmp_path / "model.pth")
