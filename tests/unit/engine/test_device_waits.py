"""No forward pass of a training step makes the program wait for a GPU; tensors without content stand for one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hqsam.engine.clicks import Rounds, correction_clicks, with_not_a_point
from hqsam.engine.objective import forward_loss, image_features
from hqsam.engine.sam_objective import forward_sam_loss
from hqsam.models.drop_path import drop_paths
from hqsam.registry import create_model
from tests.unit.engine.test_trainer import make_batch


class Waits(TorchDispatchMode):
    """Names of the operations that a GPU would have to be waited for: values read, tensors moved while blocking."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        moves = len({tensor.device.type for tensor in tensors}) > 1 and not kwargs.get("non_blocking")
        if moves or func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(func))
        return result


def move(model: nn.Module, device: str) -> None:
    """Put empty parameters and buffers of the same shapes in place of the model's."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no GPU, not even one without content")
@pytest.mark.parametrize("decoder", [False, True])
def test_loss_and_clicks(decoder: bool) -> None:
    model = create_model("hq_test_tiny", device="cpu")
    if decoder:
        model.set_trained(["head", "decoder"])
    batch = make_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        move(model, "cuda")
        with Waits() as waits:
            batch = batch.to("cuda")
            for answer in (False, True):
                terms = forward_loss(model, batch, answer=answer)
            assert terms.answer is not None and terms.answer.device.type == "cuda"
            correction_clicks(terms.answer, batch.masks, batch.click_draws[:, 0])
            assert waits.found == []
            terms.total.cpu()
    assert len(waits.found) == 1


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no GPU, not even one without content")
def test_rounds_of_sam() -> None:
    model = create_model("sam_test_tiny", device="cpu")
    model.image_encoder.set_drop_path(0.5)  # type: ignore[operator]
    rounds, branches = Rounds(2, 2), len(drop_paths(model.image_encoder))
    batch = replace(make_batch(), click_draws=torch.rand(2, rounds.num_draws), path_draws=torch.rand(2, branches))
    with FakeTensorMode(allow_non_fake_inputs=True):
        move(model, "cuda")
        with Waits() as waits:
            batch = batch.to("cuda")
            features = image_features(model, batch, trained=True)
            prompts = with_not_a_point(batch.prompts)
            for turn in range(rounds.count + 1):
                part = batch.prompts_at(slice(0, 1))
                terms = forward_sam_loss(model, part, features, prompts[:1], first=turn == 0)
                assert terms.answer is not None and terms.answer.device.type == "cuda"
                if turn < rounds.count:
                    prompts = rounds.ask_again(prompts[:1], turn + 1, terms.answer, part.masks, part.click_draws)
            assert waits.found == []
            terms.total.cpu()
    assert len(waits.found) == 1
