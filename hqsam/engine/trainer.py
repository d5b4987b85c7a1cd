"""Training of the HQ head in three scales: `forward_loss`, `Trainer.train_step`, `fit`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hqsam.data import Batch
from hqsam.engine.distributed import World, gather_objects, sum_over_processes
from hqsam.engine.schedule import StepPlan, is_due, learning_rate
from hqsam.engine.signals import StopSignals
from hqsam.engine.train_config import TrainConfig
from hqsam.errors import HqsamError
from hqsam.losses import PointLoss, bce_dice_per_mask, select_points
from hqsam.models import Sam
from hqsam.types import ImageFeatures

if TYPE_CHECKING:
    from hqsam.engine.logs import RunLog
    from hqsam.engine.state import StateFolder
    from hqsam.engine.validation import Validator

logger = logging.getLogger(__name__)


class NonFiniteLossError(HqsamError):
    """The loss became NaN or infinite; the message names the step and the samples."""


class StepResult(NamedTuple):
    """What one optimizer step did, over all processes."""

    step: int  # number of steps done, this one included
    loss: float  # bce + dice
    bce: float
    dice: float
    grad_norm: float
    lr: float
    images: int
    seconds: float
    wait_seconds: float  # of which this process waited for data


def autocast(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Bfloat16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()


def image_features(model: Sam, batch: Batch) -> ImageFeatures:
    """Encoder outputs of a batch: the kept ones it carries, or computed now without gradient."""
    if batch.features is not None:
        return batch.features
    if batch.images is None:
        raise ValueError("a batch needs images or encoder features, got neither")
    with torch.no_grad():
        features: ImageFeatures = model.image_encoder(model.preprocess_canvas(batch.images, batch.input_hw))
    return features


def forward_loss(model: Sam, batch: Batch, *, amp: bool = False) -> PointLoss:
    """Forward pass of one micro-batch, as published: BCE and dice of the HQ logits alone.

    SAM's own masks are not computed; its transformer is, since the HQ token travels through it.

    Args:
        model: an HQ model.
        batch: on the model's device; N masks with one prompt each.
        amp: run encoder and decoder under bfloat16 autocast; the loss is computed in full precision.

    Returns:
        (N,) terms, with gradient to the HQ parameters. The loss of a step is the mean of their sum over its masks.
    """
    with autocast(model.device, amp):
        output = model.decode(image_features(model, batch), batch.prompts, candidates=(), use_hq=True)
    if output.hq_logits is None:
        raise ValueError("the model gave no HQ logits: it has no HQ head to train")
    logits = output.hq_logits.to(model.dtype)
    points = select_points(logits.detach(), batch.loss_candidates.to(logits.dtype), batch.loss_uniform.to(logits.dtype))
    return bce_dice_per_mask(logits, batch.masks, points)


class Trainer:
    """The model under training, its optimizer and how many steps are done.

    Only `Sam.hq_parameters` reach the optimizer, so nothing of SAM can change.
    """

    def __init__(self, model: Sam, plan: StepPlan, config: TrainConfig, world: World) -> None:
        if not model.has_hq:
            raise ValueError(f"training needs a model with an HQ head, got {config.model.name!r}; use its hq_ name")
        self.model = model.train()
        self.plan = plan
        self.config = config
        self.world = world
        self.step = 0
        self.parameters = list(model.hq_parameters())
        optim = config.optim
        self.optimizer = torch.optim.Adam(self.parameters, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps)

    def train_step(self, batches: Sequence[Batch], *, stop: bool = False) -> Tensor:
        """One optimizer step: mean gradient over all masks of all micro-batches of all processes.

        Nothing waits for the device here.

        Args:
            batches: this process's micro-batches, on any device.
            stop: this process was asked to stop.

        Returns:
            (6,) on the device: sums over all processes of BCE, dice, masks and stop requests, then the gradient norm
            before clipping and 1.0 if this process's own loss is finite, else 0.0.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, dtype=self.model.dtype, device=self.model.device)
        for batch in batches:
            losses = forward_loss(self.model, batch.to(self.model.device), amp=self.config.loop.amp == "bf16")
            terms = torch.stack([losses.bce.sum(), losses.dice.sum()])
            terms.sum().backward()
            sums += terms.detach()
        finite = sums.isfinite().all().to(sums.dtype)[None]
        masks = sum(len(batch.masks) for batch in batches)
        counts = torch.tensor([masks, float(stop)], dtype=sums.dtype).to(sums.device, non_blocking=True)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        *gradients, totals = sum_over_processes([*gradients, torch.cat([sums, counts])], self.world)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient / totals[2]
        limit = self.config.optim.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.plan, self.config.optim)
        self.optimizer.step()
        self.step += 1
        self.model.head_state = "trained"
        return torch.cat([totals, norm[None].to(totals.dtype), finite])


@dataclass
class _Pending:
    """A step whose numbers may still be on the way from the device."""

    step: int
    totals: Tensor
    keys: list[str]
    lr: float
    images: int
    seconds: float
    wait_seconds: float


class StepRecorder:
    """Keeps the numbers of steps on the device until somebody needs them: one transfer for many steps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pending: list[_Pending] = []

    def add(self, pending: _Pending) -> None:
        """Remember a step."""
        self.pending.append(pending)

    def settle(self) -> tuple[list[StepResult], bool]:
        """Fetch what was remembered.

        Returns:
            The steps since the last call, and whether any process was asked to stop during them.

        Raises:
            NonFiniteLossError: a loss or gradient is NaN or infinite.
        """
        if not self.pending:
            return [], False
        pending, self.pending = self.pending, []
        rows = torch.stack([item.totals for item in pending]).cpu()
        bad = (~rows[:, [0, 1, 4]].isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad:
            first = pending[bad[0]]
            mine = first.keys if rows[bad[0], 5] == 0 else []
            keys = [key for part in gather_objects(mine, self.world) for key in part]
            raise NonFiniteLossError(
                f"the loss or its gradient is not finite at step {first.step}; "
                + (f"samples: {', '.join(keys)}. " if keys else "each sample's loss is finite, the gradient is not. ")
                + "States saved before are unharmed: look at these samples, lower optim.lr or set optim.clip, "
                "and start again with resume=auto"
            )
        results = []
        for item, (bce, dice, masks, _, norm, _) in zip(pending, rows.tolist(), strict=True):
            bce, dice = bce / masks, dice / masks
            results.append(
                StepResult(
                    item.step, bce + dice, bce, dice, norm, item.lr, item.images, item.seconds, item.wait_seconds
                )
            )
        return results, bool(rows[:, 3].any())


def _timed_groups(loader: Iterable[Batch], size: int) -> Iterator[tuple[float, list[Batch]]]:
    """Groups of `size` micro-batches, each with the seconds that it was waited for."""
    iterator = iter(loader)
    while True:
        start = time.perf_counter()
        group = [batch for _, batch in zip(range(size), iterator, strict=False)]
        if not group:
            return
        yield time.perf_counter() - start, group


def fit(trainer: Trainer, loader: Iterable[Batch], log: RunLog, states: StateFolder, validator: Validator) -> bool:
    """Train from `trainer.step` to the end of the plan.

    Args:
        trainer: what is trained.
        loader: micro-batches from the trainer's step on, in the plan's order.
        log: where numbers go.
        states: where the training state goes.
        validator: what measures the model.

    Returns:
        True if the plan is done, False if SIGTERM or SIGINT ended it: the step was finished and its state saved.
    """
    loop, plan, world = trainer.config.loop, trainer.plan, trainer.world
    recorder = StepRecorder(world)
    with StopSignals() as signals:
        if not validator.catch_up(trainer, log, signals):
            return False
        mark = time.perf_counter()
        for waited, batches in _timed_groups(loader, loop.accumulate):
            totals = trainer.train_step(batches, stop=signals.received)
            step, last = trainer.step, trainer.step == plan.total_steps
            keys = [key for batch in batches for key in batch.keys]
            seconds = time.perf_counter() - mark
            mark += seconds
            rate = trainer.optimizer.param_groups[0]["lr"]
            recorder.add(_Pending(step, totals, keys, rate, plan.global_batch, seconds, waited))
            validate, save = is_due(step, loop.val_every, plan), is_due(step, loop.save_every, plan)
            # On a CPU there is nothing to wait for, so every step is looked at; on a GPU a look costs a wait.
            stopping = False
            if totals.device.type == "cpu" or step % loop.log_every == 0 or validate or save or last:
                results, stopping = recorder.settle()
                log.steps(results)
            if save or last or stopping:
                states.save(trainer, validator.best)  # before a validation, whose minutes a kill may fall into
            if (validate or last) and not stopping and not validator.run(trainer, log, signals):
                stopping = True
                states.save(trainer, validator.best)
            if stopping:
                logger.warning("stopped by %s after step %d; resume=auto goes on from here", signals.name, step)
                return False
            if validate or save:  # not the step's own time
                mark = time.perf_counter()
    return True
