"""One variant of the training benchmark, in its own process: ``python -m benchmarks.train_worker SPEC RESULT``.

The specification's `kind` is "published", "ours", or "facts" for what is true of all variants: the machine, its rate of
matrix products, and the arithmetic of the models; it also generates the pictures to train on.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from benchmarks.machine import PeakMemory, describe_machine, has_bf16_units, matrix_rates, synchronize
from benchmarks.pictures import write_pictures
from hqsam.data import Batch, TrainingSet, collate, epoch_order, open_dataset
from hqsam.engine.allocator import keep_freed_memory
from hqsam.engine.config import load_config
from hqsam.engine.distributed import World, choose_device, join_world
from hqsam.engine.schedule import PlannedBatches, StepPlan
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.train_data import data_options
from hqsam.engine.training import open_run
from hqsam.registry import build_model, model_spec
from hqsam.types import ImageFeatures, Prompts

_MAX_STEPS = 20_000
_RUN_AHEAD = 20  # steps that a GPU may be given before a number is asked for, as in the training program


class Loop(NamedTuple):
    """What is measured: a loader, and what is done with a batch of it."""

    loader: DataLoader[Batch]
    step: Callable[[Batch], object]
    device: torch.device
    encoded: tuple[int, float] = (0, 0.0)  # views encoded beforehand, and the seconds it took


def train_config(spec: dict[str, Any], output: str) -> TrainConfig:
    """The published recipe on the benchmark's pictures."""
    settings = {
        "output_dir": output,
        "resume": "none",
        "device": spec["device"],
        "model.name": spec["model"],
        "model.random_weights": "true",
        "data.train": f"[{spec['data']}]",
        "data.workers": spec["workers"],
        "data.prompts.prompts_per_image": spec["prompts"],
        "loop.batch_size": spec["batch"],
        "loop.max_steps": _MAX_STEPS,
        "loop.amp": spec["amp"],
    }
    if spec["keep"] is not None:
        settings |= {"data.keep_features": spec["keep"], "data.views": 1}
    return load_config(TrainConfig, None, [f"{key}={value}" for key, value in settings.items()])


@contextmanager
def open_ours(spec: dict[str, Any]) -> Iterator[Loop]:
    """The training program up to its loop, as `hqsam train` opens it."""
    with tempfile.TemporaryDirectory() as output:
        config = train_config(spec, output)
        with join_world(config.device) as world:
            keep_freed_memory(world.device)
            run = open_run(config, world)
            start = time.perf_counter()
            views = run.encode()
            synchronize(world.device)
            encoded = (views, time.perf_counter() - start)

            def step(batch: Batch) -> None:
                totals = run.trainer.train_step([batch])
                if world.device.type == "cpu" or run.trainer.step % _RUN_AHEAD == 0:
                    _require_finite(totals[5].item() == 1)

            yield Loop(run.loader(), step, world.device, encoded)


@contextmanager
def open_published(spec: dict[str, Any]) -> Iterator[Loop]:
    """The published loop on the same samples, which come from the same loading processes."""
    from benchmarks.published_train import PublishedTrainer

    with tempfile.TemporaryDirectory() as output:
        config = train_config(spec, output)
    with join_world(config.device) as world:
        torch.manual_seed(config.seed)
        trainer = PublishedTrainer(model_spec(spec["model"]), world.device)

        def step(batch: Batch) -> None:
            _require_finite(math.isfinite(trainer.train_step(batch)))

        yield Loop(published_loader(config, world), step, world.device)


def published_loader(config: TrainConfig, world: World) -> DataLoader[Batch]:
    """The samples that our program would train on, without building its model."""
    records = [record for name in config.data.train for record in open_dataset(name)]
    size = model_spec(config.model.name).image_size
    data = TrainingSet(records, data_options(config.data), size, config.seed)
    length = max(len(data), config.loop.batch_size)

    def order(epoch: int) -> list[int]:
        return [int(k) for k in epoch_order(data.sources, seed=config.seed, epoch=epoch, num_samples=length)]

    plan = StepPlan(order, length, config.loop.batch_size, 1, 1, epochs=1, max_steps=_MAX_STEPS)
    return DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=PlannedBatches(plan, 0, 0),
        collate_fn=collate,
        num_workers=config.data.workers,
        pin_memory=world.device.type == "cuda",
    )


class WaitClock:
    """Time that the device stood still for want of data.

    On a CPU that is the time in which the loop waited for the loader. A GPU works on while the loop waits, so there it
    is the gap, on the GPU's own clock, between the end of a step and the arrival of the next batch.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Take a batch and count the wait for it."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            batch = next(batches)
            self.seconds += time.perf_counter() - start
            return batch
        done, arrived = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        done.record()
        batch = next(batches)
        arrived.record()
        self.gaps.append((done, arrived))
        return batch

    def total(self) -> float:
        """Seconds so far; the device must have finished."""
        milliseconds = [float(done.elapsed_time(arrived)) for done, arrived in self.gaps]
        return self.seconds + sum(milliseconds) / 1000


def measure(loop: Loop, spec: dict[str, Any]) -> dict[str, Any]:
    """Warm up, then time whole steps, waiting for the device before the first and after the last one only."""
    memory = PeakMemory(loop.device)
    batches = iter(loop.loader)
    for _ in range(spec["warmup"]):
        loop.step(next(batches))
    synchronize(loop.device)
    clock, steps, start = WaitClock(loop.device), 0, time.perf_counter()
    while steps < spec["steps"] or time.perf_counter() - start < spec["seconds"]:
        loop.step(clock.next_batch(batches))
        steps += 1
    synchronize(loop.device)
    seconds = time.perf_counter() - start
    views, encode_seconds = loop.encoded
    return {
        "samples_per_second": steps * spec["batch"] * spec["prompts"] / seconds,
        "seconds_per_step": seconds / steps,
        "wait_share": clock.total() / seconds,
        "steps": steps,
        **memory.read(),
        "views_encoded": views,
        "encode_seconds": encode_seconds,
    }


def facts(spec: dict[str, Any]) -> dict[str, Any]:
    """The machine, its rate of matrix products in FLOP/s, and the FLOP of a step by model and prompts an image.

    Pictures are written for each model whose folder is named.
    """
    device = choose_device(spec["device"])
    flop = {name: {str(n): step_flop(name, n) for n in spec["prompts"]} for name in spec["models"]}
    sizes = {name: model_spec(name).image_size for name in spec["models"]}
    for name, folder in spec["folders"].items():
        write_pictures(Path(folder), spec["pictures"], sizes[name])
    return {
        "machine": describe_machine(device),
        "bf16_units": has_bf16_units(device),
        "matrix_rates": matrix_rates(device),
        "flop": flop,
        "image_sizes": sizes,
    }


def step_flop(name: str, prompts: int) -> dict[str, float]:
    """Floating-point operations of one image: the encoder forwards, and the decoder forwards and backwards.

    Counted on tensors without content. Only products are counted, two operations for each multiply-add.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build_model(model_spec(name)).train()
        image = torch.empty(1, 3, model.image_size, model.image_size)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as encoder, torch.no_grad():
            features: ImageFeatures = model.image_encoder(image)
        boxes = Prompts.from_parts(boxes=torch.empty(prompts, 4))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as decoder:
            logits = model.decode(features, boxes, candidates=(), use_hq=True).hq_logits
            if logits is not None:
                logits.sum().backward()
    return {"encoder": float(encoder.get_total_flops()), "decoder": float(decoder.get_total_flops())}


def _require_finite(ok: bool) -> None:
    if not ok:
        raise FloatingPointError("the loss is not finite: what was timed is not training")


def main(spec_file: str, result_file: str) -> None:
    """Measure what the specification says and write the result."""
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    if spec["kind"] == "facts":
        result = facts(spec)
    else:
        opened = {"published": open_published, "ours": open_ours}[spec["kind"]]
        with opened(spec) as loop:
            result = measure(loop, spec)
    Path(result_file).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
