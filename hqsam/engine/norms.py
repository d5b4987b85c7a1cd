"""Batch norms of an encoder that is trained from nothing: their statistics are taken once, before the first step."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from hqsam.data import TrainingSet, collate
from hqsam.engine.schedule import StepPlan
from hqsam.models import Sam

_IMAGES = 8


@torch.no_grad()
def settle_batch_norms(model: Sam, dataset: TrainingSet, plan: StepPlan) -> None:
    """Give batch norms the statistics of the first images of a run; nothing happens to an encoder without any.

    In training they use these and never gather others (`Sam.train`). Random layers would each make a signal smaller, so
    that little of it came through; with statistics of their own inputs every one begins with outputs of variance 1.

    Args:
        model: its encoder has random weights.
        dataset: samples with pixels.
        plan: its first steps say which images; they are the same on every process.
    """
    norms = [module for module in model.image_encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    coming = itertools.chain.from_iterable(map(plan.items, range(min(_IMAGES, plan.total_steps))))
    items = list(itertools.islice(dict.fromkeys(coming), _IMAGES))
    batch = collate([dataset[item] for item in items]).to(model.device)
    if batch.images is None:
        raise ValueError("batch norms need images, and the samples came with kept encoder outputs")
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model.image_encoder(model.preprocess_canvas(batch.images, batch.input_hw))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.eval()
        norm.momentum = momentum
