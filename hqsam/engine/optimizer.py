"""The optimizer: which parameters go together, and how fast each group learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hqsam.engine.train_config import OptimConfig
from hqsam.models import Sam

_MATRICES = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def make_optimizer(
    model: Sam, trained: Mapping[str, Sequence[nn.Parameter]], config: OptimConfig
) -> torch.optim.Optimizer:
    """Adam or AdamW over what is trained.

    Every part is a group with its own `name` and `factor` of the learning rate. The image encoder is a group for each
    layer, whose factor falls by `layer_decay` from one to the one before it. With AdamW the weights of linear layers
    and convolutions are apart from all else (biases, norms, embeddings, positions), which does not decay.

    Args:
        model: the model under training.
        trained: its trained parameters by part: "head", "decoder", "prompt", "encoder", "lora", "score".
        config: rates, betas and decay.
    """
    factors = {
        "head": 1.0,
        "decoder": config.decoder_factor,
        "prompt": config.prompt_factor,
        "encoder": config.encoder_factor,
        "lora": config.lora_factor,
        "score": 1.0,
    }
    groups: list[dict[str, Any]] = []
    for part, parameters in trained.items():
        if part == "encoder":
            layers: list[list[nn.Parameter]] = model.image_encoder.layers()  # type: ignore[operator]
            for depth, layer in enumerate(layers):
                factor = factors[part] * config.layer_decay ** (len(layers) - 1 - depth)
                groups.append({"params": layer, "name": f"{part}.{depth}", "factor": factor})
        else:
            groups.append({"params": list(parameters), "name": part, "factor": factors[part]})
    options: dict[str, Any] = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    if config.name == "adam":
        return torch.optim.Adam(groups, **options)
    return torch.optim.AdamW(_split_by_decay(model, groups, config.weight_decay), **options)


def _split_by_decay(model: Sam, groups: Sequence[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, _MATRICES)}
    split = []
    for group in groups:
        decaying = [parameter for parameter in group["params"] if id(parameter) in matrices]
        others = [parameter for parameter in group["params"] if id(parameter) not in matrices]
        if decaying:
            split.append({**group, "params": decaying, "weight_decay": weight_decay})
        if others:
            split.append({**group, "params": others, "name": f"{group['name']}.plain", "weight_decay": 0.0})
    return split
