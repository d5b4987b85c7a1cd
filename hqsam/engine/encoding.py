"""Encoder outputs computed once and kept: the encoder is frozen and costs many times the rest of a step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from hqsam.data import FeatureStore, Sample, TrainingSet
from hqsam.engine.distributed import World, from_main, wait_for_all
from hqsam.engine.objective import autocast
from hqsam.engine.schedule import Item
from hqsam.engine.terminal import progress_bar, terminal
from hqsam.models import Sam
from hqsam.types import ImageFeatures

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 30.0


class _Views(Dataset[list[Sample]]):
    """Views without kept features, in batches; the sample's own prompts and points are not used."""

    def __init__(self, data: TrainingSet, batches: Sequence[Sequence[Item]]) -> None:
        self.data = data
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> list[Sample]:
        return [self.data[item] for item in self.batches[position]]


def encode_views(
    model: Sam,
    data: TrainingSet,
    items: Sequence[Item],
    store: FeatureStore,
    world: World,
    *,
    batch_size: int = 1,
    workers: int = 1,
    amp: bool = False,
) -> int:
    """Fill a store with what is missing; what is there already is kept, so the pass can be interrupted at any time.

    Args:
        model: its encoder is run.
        data: the training set.
        items: (view, index) pairs, see `planned_views`; processes share them.
        store: where features go, in half precision.
        world: the group.
        batch_size: images encoded at once; on a CPU one is fastest for inputs of 512 px and more.
        workers: loading processes.
        amp: run the encoder under bfloat16 autocast.

    Returns:
        How many views this process encoded.
    """
    # One process looks for all: the others would already miss in their lists what a faster one has just written, and
    # the parts would no longer add up.
    missing = from_main(lambda: [item for item in items if not store.has(data.view_key(*item))], world)
    mine = missing[world.rank :: world.size]
    logger.info("%d of %d views are kept already, %d to encode", len(items) - len(missing), len(items), len(missing))
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    loader = DataLoader(
        _Views(data, batches), batch_size=None, num_workers=workers, pin_memory=world.device.type == "cuda"
    )
    done = 0
    for samples in _reported(loader, len(batches), world):
        images = torch.stack([sample.image for sample in samples if sample.image is not None]).to(world.device)
        sizes = torch.tensor([sample.input_hw for sample in samples], device=world.device)
        with torch.inference_mode(), autocast(world.device, amp):
            features: ImageFeatures = model.image_encoder(model.preprocess_canvas(images, sizes))
        rows = (part.half().cpu() for part in features)
        for sample, embedding, early in zip(samples, *rows, strict=True):
            store.save(sample.view_key, ImageFeatures(embedding, early))
        done += len(samples)
    wait_for_all(world)
    return done


def _reported(loader: DataLoader[list[Sample]], total: int, world: World) -> Iterator[list[Sample]]:
    """A progress bar on a terminal, a line every half minute elsewhere."""
    if total == 0:
        return
    start = told = time.monotonic()
    with progress_bar(visible=world.is_main) as bar:
        task = bar.add_task("encoding, batches", total=total)
        for count, samples in enumerate(loader, 1):
            yield samples
            bar.advance(task)
            now = time.monotonic()
            if not terminal().is_terminal and (now - told > _REPORT_SECONDS or count == total):
                told, left = now, (now - start) / count * (total - count)
                logger.info("encoded %d of %d batches, %.0f minutes left", count, total, left / 60)
