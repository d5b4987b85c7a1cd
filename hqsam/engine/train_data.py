"""The data of a training run, from its configuration."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hqsam.data import (
    ConcatSource,
    FeatureStore,
    FileSource,
    ImageRecord,
    SampleSource,
    SyntheticSource,
    TrainDataOptions,
    TrainingSet,
    epoch_order,
    open_dataset,
    select_records,
)
from hqsam.engine.distributed import World, from_main
from hqsam.engine.schedule import StepPlan
from hqsam.engine.train_config import DataConfig, TrainConfig
from hqsam.errors import ConfigError, HqsamError
from hqsam.models import Sam
from hqsam.models.drop_path import drop_paths


@dataclass(frozen=True)
class RunRecords:
    """The images of a run.

    Attributes:
        train: what is trained on; empty where all of it is generated.
        val: what is validated on; may be empty.
        partial: names of training images some of whose objects are left out, with the positions of those.
        skipped: what was left out because of a defect: `part` ("train" or "val") and the fields of a finding.
    """

    train: list[ImageRecord]
    val: list[ImageRecord]
    partial: Mapping[str, Sequence[int]] = field(default_factory=dict)
    skipped: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class TrainData:
    """What a run is trained on.

    Attributes:
        dataset: samples, with kept features where they are kept.
        plain: the same samples always with pixels.
        plan: the samples of every step.
        store: kept features, or None.
    """

    dataset: TrainingSet
    plain: TrainingSet
    plan: StepPlan
    store: FeatureStore | None


def open_train_data(config: TrainConfig, model: Sam, records: RunRecords, world_size: int = 1) -> TrainData:
    """Make samples and the plan of every step.

    Args:
        config: the run's settings.
        model: what is trained.
        records: the images, from `hqsam.engine.data_check.checked_records`.
        world_size: processes.

    Raises:
        DataError: the data are unusable, or the kept features are of another run.
        ConfigError: no data, or values that contradict each other or the data.
    """
    data, loop = config.data, config.loop
    source = _open_source(data, records.train, model.image_size)
    try:
        paths = len(drop_paths(model.image_encoder))
        options = data_options(data, click_draws=config.clicks.plan().num_draws, path_draws=paths)
        if not model.has_hq:  # SAM's own loss looks at whole masks: no points are drawn in vain
            options = dataclasses.replace(options, points_per_mask=1)
        plain = TrainingSet(source, options, model.image_size, config.seed)
        length = max(data.epoch_images or len(plain), loop.batch_size * loop.accumulate * world_size)
        order = functools.partial(_order, tuple(plain.sources), config.seed, tuple(data.weights.items()), length)
        order(0)
    except HqsamError:
        raise
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
    plan = StepPlan(
        order,
        length,
        loop.batch_size,
        loop.accumulate,
        world_size,
        epochs=loop.epochs,
        max_steps=loop.max_steps,
        data=_digest(source, records.partial),
    )
    if data.keep_features is None:
        return TrainData(plain, plain, plan, None)
    store = FeatureStore(
        data.keep_features,
        model_fingerprint=encoder_fingerprint(model, data.encode_amp),
        view_fingerprint=plain.view_fingerprint(),
    )
    return TrainData(TrainingSet(source, options, model.image_size, config.seed, store), plain, plan, store)


def data_options(config: DataConfig, *, click_draws: int = 0, path_draws: int = 0) -> TrainDataOptions:
    """How samples are made; the sections `augment`, `prompts` and `points` have the names of the options."""
    return TrainDataOptions(
        views=config.views,
        click_draws=click_draws,
        path_draws=path_draws,
        use_alpha=config.use_alpha,
        **dataclasses.asdict(config.augment),
        **dataclasses.asdict(config.prompts),
        **dataclasses.asdict(config.points),
    )


def open_val_records(data: DataConfig) -> list[ImageRecord]:
    """What is validated on; empty where nothing was named."""
    return select_records(_open_all(data.val, data.root), holdout=data.val_holdout) if data.val else []


def generated_val_records(config: TrainConfig, image_size: int, world: World) -> list[ImageRecord]:
    """The generated scenes that are validated on; the first process writes them, every one reads them.

    Raises:
        OutputError: they cannot be written; on every process.
    """
    count = config.data.val_synthetic
    if not count:
        return []
    from hqsam.data.synthetic import write_scenes

    folder, kinds = Path(config.output_dir) / "val_scenes", _object_kinds(config.data)
    return open_dataset(str(from_main(lambda: write_scenes(folder, count, image_size, kinds=kinds or None), world)))


def encoder_fingerprint(model: Sam, amp: str) -> str:
    """What kept features depend on besides the pixels: the encoder's weights and the precision it ran in."""
    digest = hashlib.sha256(amp.encode())
    for name, tensor in model.image_encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_train_records(data: DataConfig) -> list[ImageRecord]:
    """The files to train on; empty where nothing was named."""
    if not data.train:
        return []
    return select_records(
        _open_all(data.train, data.root),
        sources=data.sources or None,
        holdout=data.holdout,
        exclude_files=[Path(path) for path in data.exclude_files],
        max_images=data.max_images,
    )


def _digest(source: SampleSource, partial: Mapping[str, Sequence[int]]) -> str:
    """Stands for the list of training images, and for the objects that are left out of some."""
    names = [source.key(k) for k in range(len(source))]
    names += [f"{key} without objects {list(numbers)}" for key, numbers in sorted(partial.items())]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _object_kinds(data: DataConfig) -> list[str]:
    """Kinds of objects in generated scenes, empty for all; ConfigError for unknown ones or without scenes."""
    if data.synthetic_kinds:
        from hqsam.data.synthetic import OBJECT_KINDS

        if unknown := sorted(set(data.synthetic_kinds) - set(OBJECT_KINDS)):
            raise ConfigError(
                f"data.synthetic_kinds: {unknown[0]!r} is no kind to train on; there are {', '.join(OBJECT_KINDS)}"
            )
        if not data.synthetic and not data.val_synthetic:
            raise ConfigError("data.synthetic_kinds is for generated scenes: set data.synthetic or data.val_synthetic")
    return data.synthetic_kinds


def _open_source(data: DataConfig, records: list[ImageRecord], image_size: int) -> SampleSource:
    parts: list[SampleSource] = []
    kinds = _object_kinds(data)
    if records:
        parts.append(FileSource(records, use_alpha=data.use_alpha))
    if data.synthetic:
        parts.append(SyntheticSource(data.synthetic, image_size, kinds=kinds))
    if not parts:
        raise ConfigError("there is nothing to train on: data.train is empty and data.synthetic is 0")
    return ConcatSource(parts)


@functools.lru_cache(maxsize=2)
def _order(
    sources: tuple[str, ...],
    seed: int,
    weights: tuple[tuple[str, float], ...],
    length: int,
    epoch: int,
) -> Sequence[int]:
    """One epoch's order; the last ones are remembered, since every step asks."""
    order = epoch_order(sources, seed=seed, epoch=epoch, weights=dict(weights) or None, num_samples=length)
    indices: list[int] = order.tolist()
    return indices


def _open_all(names: list[str], root: str | None) -> list[ImageRecord]:
    return [record for name in names for record in open_dataset(name, root=root)]
