"""Training in three scales: `forward_loss` (in `objective`), `Trainer.train_step`, `fit`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from hqsam.data import Batch
from hqsam.engine.averaging import WeightAverage
from hqsam.engine.clicks import with_not_a_point
from hqsam.engine.distributed import World, gather_objects, sum_over_processes
from hqsam.engine.objective import LossTerms, forward_loss, image_features, one_by_one
from hqsam.engine.optimizer import make_optimizer
from hqsam.engine.sam_objective import forward_sam_loss
from hqsam.engine.schedule import StepPlan, is_due, learning_rate
from hqsam.engine.score_objective import score_terms
from hqsam.engine.signals import StopSignals
from hqsam.engine.train_config import TrainConfig
from hqsam.errors import HqsamError
from hqsam.models import EncoderLoRA, Sam
from hqsam.types import ImageFeatures, Prompts

if TYPE_CHECKING:
    from hqsam.engine.logs import RunLog
    from hqsam.engine.state import StateFolder
    from hqsam.engine.validation import Validator

logger = logging.getLogger(__name__)


class NonFiniteLossError(HqsamError):
    """The loss became NaN or infinite; the message names the step and the samples.

    Attributes:
        step: number of the step, from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class StepResult(NamedTuple):
    """What one optimizer step did, over all processes."""

    step: int  # number of steps done, this one included
    loss: float  # minimised: of the HQ mask, of SAM + HQ, of SAM where parts of it are trained, or of the score
    bce: float  # of the HQ mask; of a plain SAM the focal loss
    dice: float
    grad_norm: float
    lr: float
    images: int
    seconds: float
    wait_seconds: float  # of which this process waited for data


class Trainer:
    """The model under training, its optimizer and how many steps are done.

    Only what `trained` names reaches the optimizer, so nothing else can change: the parameters of the model's trained
    parts, by default the HQ head alone, and those of an encoder adapter.

    Attributes:
        adapter: low-rank updates of the encoder that are trained with the rest, or None.
        average: running average of what is trained, or None.
        trained: the trained parameters by group: "head", "decoder", "prompt", "encoder", "lora", "score".
    """

    def __init__(
        self, model: Sam, plan: StepPlan, config: TrainConfig, world: World, adapter: EncoderLoRA | None = None
    ) -> None:
        if not model.trained_parts:
            raise ValueError(f"nothing of {config.model.name} is trained; choose parts with set_trained")
        self.model = model.train()
        self.plan = plan
        self.config = config
        self.world = world
        self.adapter = adapter
        self.step = 0
        self.trained: dict[str, list[nn.Parameter]] = {}
        self.trained.update(model.trained_parameters().items())
        if adapter is not None:
            self.trained["lora"] = list(adapter.parameters())
        self.parameters = [parameter for group in self.trained.values() for parameter in group]
        self.encoder_changes = adapter is not None or "encoder" in model.trained_parts
        self.rounds = config.clicks.plan()
        self.optimizer = make_optimizer(model, self.trained, config.optim)
        self.average = None if config.loop.ema is None else WeightAverage(self.parameters, config.loop.ema)

    def train_step(self, batches: Sequence[Batch], *, stop: bool = False) -> Tensor:
        """One optimizer step: mean gradient over all masks of all micro-batches of all processes.

        Nothing waits for the device here.

        Args:
            batches: this process's micro-batches, on any device.
            stop: this process was asked to stop.

        Returns:
            (7,) on the device: sums over all processes of BCE, dice, masks and stop requests; the gradient norm before
            clipping; 1.0 if this process's own loss is finite, else 0.0; the sum of the whole loss over all processes.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, dtype=self.model.dtype, device=self.model.device)
        for batch in batches:
            moved = batch.to(self.model.device)
            for part in moved.by_image() if one_by_one(moved) else (moved,):
                sums += self.backward(part)
        finite = sums.isfinite().all().to(sums.dtype)[None]
        masks = sum(len(batch.masks) for batch in batches)
        counts = torch.tensor([masks, float(stop)], dtype=sums.dtype).to(sums.device, non_blocking=True)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        *gradients, totals = sum_over_processes([*gradients, torch.cat([sums[:2], counts, sums[2:]])], self.world)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient / totals[2]
        limit = self.config.optim.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit)
        rate = learning_rate(self.step, self.plan, self.config.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        if self.model.has_hq:
            self.model.head_state = "trained"
        return torch.cat([totals[:4], norm[None].to(totals.dtype), finite, totals[4:]])

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of one micro-batch: of its prompts, then of the same prompts asked again round by round.

        The encoder runs once for all prompts and rounds. Each round of each `loop.prompt_chunk` prompts frees its
        memory before the next begins. The loss is the mean over rounds.

        Args:
            batch: on the model's device.

        Returns:
            (3,) sums over the masks of BCE, dice and the whole loss, without gradient.
        """
        encoded = image_features(self.model, batch, amp=self.config.loop.amp == "bf16", trained=self.encoder_changes)
        features = encoded
        if self.encoder_changes:  # gradients of all rounds meet here in full precision, and go through the encoder once
            features = ImageFeatures(*(part.detach().to(self.model.dtype).requires_grad_() for part in encoded))
        sums = torch.zeros(3, dtype=self.model.dtype, device=self.model.device)
        size = self.config.loop.prompt_chunk or len(batch.masks)
        for start in range(0, len(batch.masks), size):
            sums += self._backward_rounds(batch.prompts_at(slice(start, start + size)), features)
        if self.encoder_changes:  # a plain SAM never looks at the early feature
            both = zip(encoded, features, strict=True)
            pairs = [(out, part.grad.to(out.dtype)) for out, part in both if part.grad is not None]
            torch.autograd.backward([out for out, _ in pairs], [gradient for _, gradient in pairs])
        return sums / (self.rounds.count + 1)

    def _backward_rounds(self, batch: Batch, features: ImageFeatures) -> Tensor:
        rounds = self.rounds
        prompts = with_not_a_point(batch.prompts) if rounds.clicks else batch.prompts
        sums = torch.zeros(3, dtype=self.model.dtype, device=self.model.device)
        for turn in range(rounds.count + 1):
            more = turn < rounds.count
            terms = self._round_loss(batch, features, prompts, first=turn == 0, answer=more)
            (terms.total.sum() / (rounds.count + 1)).backward()
            sums += torch.stack([part.detach().sum() for part in (terms.bce, terms.dice, terms.total)])
            if more and terms.answer is not None:
                prompts = rounds.ask_again(prompts, turn + 1, terms.answer, batch.masks, batch.click_draws)
        return sums

    def _round_loss(
        self, batch: Batch, features: ImageFeatures, prompts: Prompts, *, first: bool, answer: bool
    ) -> LossTerms:
        amp = self.config.loop.amp == "bf16"
        if "score" in self.trained:
            return score_terms(self.model, batch, amp=amp, features=features, prompts=prompts, answer=answer)
        if self.model.has_hq:
            share = self.config.loss.sum_share
            return forward_loss(
                self.model, batch, amp=amp, features=features, prompts=prompts, answer=answer, sum_share=share
            )
        return forward_sam_loss(self.model, batch, features, prompts, first=first, amp=amp)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """For the length of a block, the model as it would be exported: with the average, where there is one."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()


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
        bad = (~rows[:, [4, 6]].isfinite()).any(dim=1).nonzero().flatten().tolist()
        if bad:
            first = pending[bad[0]]
            mine = first.keys if rows[bad[0], 5] == 0 else []
            keys = [key for part in gather_objects(mine, self.world) for key in part]
            raise NonFiniteLossError(
                f"the loss or its gradient is not finite at step {first.step}; "
                + (f"samples: {', '.join(keys)}. " if keys else "each sample's loss is finite, the gradient is not. ")
                + "States saved before are unharmed: look at these samples, lower optim.lr or set optim.clip, "
                "and start again with resume=auto",
                first.step,
            )
        results = []
        for item, (bce, dice, masks, _, norm, _, loss) in zip(pending, rows.tolist(), strict=True):
            means = (loss / masks, bce / masks, dice / masks)
            results.append(StepResult(item.step, *means, norm, item.lr, item.images, item.seconds, item.wait_seconds))
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
        with trainer.averaged():
            if not validator.catch_up(trainer, log, signals):
                return False
        mark = time.perf_counter()
        for waited, batches in _timed_groups(loader, loop.accumulate):
            totals = trainer.train_step(batches, stop=signals.received)
            step, last = trainer.step, trainer.step == plan.total_steps
            keys = [key for batch in batches for key in batch.keys]
            seconds = time.perf_counter() - mark
            mark += seconds
            rate = learning_rate(step - 1, plan, trainer.config.optim)
            recorder.add(_Pending(step, totals, keys, rate, plan.global_batch, seconds, waited))
            validate, save = is_due(step, loop.val_every, plan), is_due(step, loop.save_every, plan)
            # On a CPU there is nothing to wait for, so every step is looked at; on a GPU a look costs a wait.
            stopping = False
            if totals.device.type == "cpu" or step % loop.log_every == 0 or validate or save or last:
                results, stopping = recorder.settle()
                log.steps(results)
            paused = time.perf_counter()
            if save or last or stopping:
                states.save(trainer, validator.best)  # before a validation, whose minutes a kill may fall into
            if (validate or last) and not stopping:
                with trainer.averaged():
                    stopping = not validator.run(trainer, log, signals)
                if stopping:
                    states.save(trainer, validator.best)
            if stopping:
                logger.warning("stopped by %s after step %d; resume=auto goes on from here", signals.name, step)
                return False
            mark += time.perf_counter() - paused  # not the step's own time
    return True
