"""A training run from its configuration: model, data, kept features, the loop, what it leaves behind.

`python train.py CONFIG.yaml [key=value ...]`; ``torchrun`` starts the same program in several processes.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from hqsam.checkpoints import atomic_path, remove_leftovers, save_adapter, save_checkpoint
from hqsam.checkpoints.recommendations import how_to_ask
from hqsam.data import Batch, collate
from hqsam.engine.allocator import keep_freed_memory
from hqsam.engine.config import config_to_yaml, describe_settings, load_config
from hqsam.engine.data_check import checked_records, write_skipped
from hqsam.engine.distributed import World, broadcast_parameters, configure_logging, join_world
from hqsam.engine.encoding import encode_views
from hqsam.engine.logs import RunLog
from hqsam.engine.norms import settle_batch_norms
from hqsam.engine.report import write_report
from hqsam.engine.schedule import PlannedBatches, planned_views
from hqsam.engine.signals import STOPPED, ignore_stop_signals
from hqsam.engine.state import StateFolder, restore
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.train_data import RunRecords, TrainData, generated_val_records, open_train_data
from hqsam.engine.trainer import NonFiniteLossError, Trainer, fit
from hqsam.engine.validation import Validator
from hqsam.errors import ConfigError, HqsamError
from hqsam.models import FULL_HEAD, EncoderLoRA, Sam, ScoreHead, TrainablePart
from hqsam.registry import create_model, model_spec

logger = logging.getLogger(__name__)

USAGE = """usage: train.py CONFIG.yaml [key=value ...]

example: python train.py configs/train/smoke.yaml output_dir=runs/smoke
         torchrun --nproc_per_node=8 train.py configs/train/hq_vit_l.yaml
"""


def build_model(config: TrainConfig, world: World) -> Sam:
    """The model to train; what is random in it depends on the seed alone.

    Raises:
        ConfigError: an unknown name, a part to train that is not there, no weights where that was not asked for, or a
            score of a head that is not trained.
        CheckpointError: the checkpoint is unusable.
    """
    settings, dtype = config.model, {"float32": torch.float32, "float64": torch.float64}[config.loop.dtype]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # layers are initialised from torch's global generator
        try:
            model = create_model(
                settings.name,
                settings.checkpoint,
                device=world.device,
                dtype=dtype,
                fresh_hq_head=settings.fresh_hq_head,
                image_size=settings.image_size,
                head=settings.head if model_spec(settings.name).hq else None,
            )
        except HqsamError:
            raise
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error
    parts = trained_parts(config, has_hq=model.has_hq)
    nothing = model.head_state == "random" if model.has_hq else not _names_weights(config)
    if nothing and not settings.random_weights:
        files = "SAM's file with model.fresh_hq_head=true, an HQ file" if model.has_hq else "SAM's file"
        raise ConfigError(
            f"model.checkpoint is null, so all of {settings.name} would be random; give {files} to go on from, "
            "or model.random_weights=true if that is meant"
        )
    _settle_score_head(model, config)
    model.set_trained(parts)
    if settings.drop_path:
        model.image_encoder.set_drop_path(settings.drop_path)  # type: ignore[operator]
    broadcast_parameters(itertools.chain.from_iterable(model.trained_parameters().values()), world)
    return model


def _settle_score_head(model: Sam, config: TrainConfig) -> None:
    """A score head is trained for the masks that the model has; where the masks change, it knows them no more."""
    if config.model.trained == "score":
        if model.head_state == "untrained":
            raise ConfigError("model.trained=score judges the masks of a trained HQ head; this model's is untrained")
        if config.model.lora_rank:
            raise ConfigError("model.trained=score freezes everything else: set model.lora_rank=0")
        if model.score_head is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                try:
                    model.set_score_head(ScoreHead())
                except ValueError as error:
                    raise ConfigError(f"model.trained=score: {error}") from error
    elif model.score_head is not None:
        logger.warning("the score head of %s is left out: the masks that it knows change", config.model.checkpoint)
        model.set_score_head(None)


def _names_weights(config: TrainConfig) -> bool:
    """Whether a file or the tag of the model's name gives the encoder its weights."""
    return config.model.checkpoint is not None or "." in config.model.name


_PARTS: Mapping[str, TrainablePart] = {
    "hq": "head",
    "decoder": "decoder",
    "prompt": "prompt",
    "encoder": "encoder",
    "score": "score",
}


def trained_parts(config: TrainConfig, *, has_hq: bool) -> list[TrainablePart]:
    """The parts that `model.trained` names.

    Raises:
        ConfigError: an unknown part, one that the model lacks, or settings that contradict what is trained.
    """
    settings = config.model
    names = settings.trained.split("+")
    if unknown := [name for name in names if name not in _PARTS] or [n for n in names if names.count(n) > 1]:
        raise ConfigError(
            f"model.trained={settings.trained}: {unknown[0]!r} is unknown or twice there; parts, joined by +, are "
            f"{', '.join(_PARTS)}"
        )
    if "score" in names and (not has_hq or len(names) > 1):
        raise ConfigError(
            f"model.trained={settings.trained}: a score head is trained alone, of an hq_ model; got {settings.name}"
        )
    if "hq" in names and not has_hq:
        raise ConfigError(
            f"model.trained={settings.trained}: {settings.name} is plain SAM and has no HQ head to train; use an hq_ "
            "name, or name parts of SAM such as decoder+prompt or decoder+prompt+encoder"
        )
    if "hq" not in names and has_hq and "score" not in names:
        raise ConfigError(
            f"model.trained={settings.trained} leaves out the head of {settings.name}: add hq, or train the sam_ model"
        )
    if "encoder" in names and config.data.keep_features is not None:
        raise ConfigError(
            "model.trained names the encoder, so its outputs change with every step and cannot be kept: "
            "set data.keep_features=null"
        )
    if "encoder" in names and settings.lora_rank:
        raise ConfigError("model.lora_rank adapts an encoder that stays as it is: leave encoder out of model.trained")
    _refuse_idle_settings(config, names)
    prompts = config.data.prompts
    several = config.clicks.rounds or (prompts.mix.get("points") and prompts.num_points > 1)
    if "decoder" in names and not has_hq and not several:
        raise ConfigError(
            "a first prompt of one box, point or mask trains SAM's three masks of ambiguous prompts alone, and nothing "
            "here trains the single mask: set clicks.rounds, or points in data.prompts.mix and num_points above 1"
        )
    return [_PARTS[name] for name in names]


def _refuse_idle_settings(config: TrainConfig, names: Sequence[str]) -> None:
    """Refuse settings of what is not trained: they would change nothing."""
    settings, optim, trained = config.model, config.optim, f"model.trained={config.model.trained}"
    if "encoder" not in names:
        for key, value, idle in (
            ("model.drop_path", settings.drop_path, 0),
            ("optim.layer_decay", optim.layer_decay, 1),
        ):
            if value != idle:
                raise ConfigError(
                    f"{key}={value} is for a trained encoder, which {trained} leaves out; set {key}={idle}"
                )
    if "hq" not in names and config.loss.sum_share:
        raise ConfigError(f"loss.sum_share={config.loss.sum_share} is for the HQ head, which {trained} leaves out")
    if not model_spec(settings.name).hq and settings.head != FULL_HEAD:
        raise ConfigError(f"model.head={settings.head} is for an HQ head, and {settings.name} is plain SAM")
    if optim.weight_decay and optim.name == "adam":
        raise ConfigError(f"optim.weight_decay={optim.weight_decay} needs optim.name=adamw")


def build_adapter(model: Sam, config: TrainConfig, world: World) -> EncoderLoRA | None:
    """The adapter of the encoder that is trained with the model, if one is asked for.

    Raises:
        ConfigError: encoder outputs are to be kept, which an adapter changes with every step.
    """
    if config.model.lora_rank == 0:
        return None
    if config.data.keep_features is not None:
        raise ConfigError(
            "model.lora_rank adapts the encoder, so its outputs change with every step and cannot be kept: "
            "set data.keep_features=null"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapter = EncoderLoRA(model.image_encoder, config.model.lora_rank, config.model.lora_alpha)
    broadcast_parameters(adapter.parameters(), world)
    return adapter


@dataclass
class Run:
    """A training run that is ready to go on.

    Attributes:
        config: its settings.
        world: the group.
        trainer: model, optimizer, plan; restored where a state was found.
        data: what is trained on.
        records: the images that are left after the data check.
        states: saved states.
        best: best validation value so far.
    """

    config: TrainConfig
    world: World
    trainer: Trainer
    data: TrainData
    records: RunRecords
    states: StateFolder
    best: float | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir)

    def loader(self) -> DataLoader[Batch]:
        """This process's micro-batches from the trainer's step on."""
        return DataLoader(
            self.data.dataset,  # type: ignore[arg-type]
            batch_sampler=PlannedBatches(self.trainer.plan, self.world.rank, self.trainer.step),
            collate_fn=collate,
            num_workers=self.config.data.workers,
            pin_memory=self.world.device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
            # A loader takes a seed for its workers from the global generator, whose state is saved and compared.
            generator=torch.Generator().manual_seed(self.config.seed),
        )

    def export(self) -> None:
        """Write ``model.safetensors``, everything that was trained merged in, and an adapter beside it.

        The file recommends what the start did and validation measured; which fusion is best training may have changed.
        """
        trainer = self.trainer
        metadata = {"step": str(trainer.step), **how_to_ask(trainer.model)}
        if "score" in trainer.trained and trainer.model.default_fusion is not None:  # its masks stay what they were
            metadata["recommended_fusion"] = trainer.model.default_fusion
        with trainer.averaged():
            if trainer.adapter is None:
                save_checkpoint(trainer.model, self.folder / "model.safetensors", metadata=metadata)
                return
            step = {"step": metadata["step"]}
            save_adapter(trainer.model, trainer.adapter, self.folder / "lora.safetensors", metadata=step)
            with trainer.adapter.merged():
                save_checkpoint(trainer.model, self.folder / "model.safetensors", metadata=metadata)

    def keep_batch(self, step: int) -> Path:
        """Make this process's samples of a step once more, and write them to a file of plain tensors.

        Args:
            step: from 1.
        """
        path = self.folder / f"failed_step_{step:07d}_rank{self.world.rank}.pt"
        micro = self.trainer.plan.micro_batches(step - 1, self.world.rank)
        batches = [collate([self.data.dataset[item] for item in items]).plain() for items in micro]
        with atomic_path(path) as temporary:
            torch.save(batches, temporary)
        return path

    def encode(self) -> int:
        """Fill `data.keep_features` with what the rest of the run needs; returns how many views were encoded here."""
        data, settings = self.data, self.config.data
        if data.store is None:
            return 0
        on_cpu = self.world.device.type == "cpu"
        return encode_views(
            self.trainer.model,
            data.plain,
            planned_views(self.trainer.plan, self.trainer.step, data.plain.view_key),
            data.store,
            self.world,
            batch_size=self.config.loop.encode_batch,
            workers=min(1, settings.workers) if on_cpu else settings.workers,  # a CPU's cores belong to the encoder
            amp=settings.encode_amp == "bf16",
        )


def open_run(config: TrainConfig, world: World | None = None) -> Run:
    """Build everything a run needs and restore its last state.

    Raises:
        HqsamError: the configuration, a file or the data are unusable; nothing was written.
    """
    world = world or World()
    if config.loop.encode_only and config.data.keep_features is None:
        raise ConfigError("loop.encode_only=true fills data.keep_features, which is null: name a folder")
    records = checked_records(config, world)
    model = build_model(config, world)
    data = open_train_data(config, model, records, world.size)
    trainer = Trainer(model, data.plan, config, world, build_adapter(model, config, world))
    if config.loop.compile:
        model.image_encoder.compile()
    records = replace(records, val=[*records.val, *generated_val_records(config, model.image_size, world)])
    run = Run(config, world, trainer, data, records, StateFolder(Path(config.output_dir), world, config))
    start = run.states.find(config.resume)
    if start is None and not _names_weights(config) and "encoder" in model.trained_parts:
        settle_batch_norms(model, data.plain, data.plan)
    if start is not None:
        run.best = restore(trainer, start, exact=config.resume == "auto")
        logger.info("going on from %s: step %d of %d", start, trainer.step, trainer.plan.total_steps)
    return run


def train(config: TrainConfig, world: World | None = None) -> bool:
    """Train as configured; every process of the group calls this.

    Args:
        config: from `load_config(TrainConfig, ...)`.
        world: the group; None for this process alone.

    Returns:
        True if the run is complete, False if a signal ended it after saving its state.

    Raises:
        HqsamError: the configuration, a file or the data are unusable, or the loss became non-finite.
    """
    return finish(open_run(config, world))


def finish(run: Run) -> bool:
    """The rest of a run, from its last state to its end; see `train`."""
    config, folder, trainer, is_main = run.config, run.folder, run.trainer, run.world.is_main
    if is_main:
        remove_leftovers(folder)
        with atomic_path(folder / "config.yaml") as temporary:
            temporary.write_text(config_to_yaml(config), encoding="utf-8")
        write_skipped(folder, run.records)
    run.encode()
    if config.loop.encode_only:
        return True
    validator = Validator(run.records.val, config, run.world, best=run.best)
    with RunLog(folder, run.world, trainer.plan, config, first_step=trainer.step) as log:
        try:
            complete = fit(trainer, run.loader(), log, run.states, validator)
        except NonFiniteLossError as error:
            try:
                batch = f"kept in {run.keep_batch(error.step)}"
            except HqsamError as reason:
                batch = f"not kept: {reason}"
            raise NonFiniteLossError(f"{error}\nits batch is {batch}", error.step) from error
        if complete and validator.last is None:  # it was complete before, only its report may be missing
            with trainer.averaged():
                validator.run(trainer, log)
    if complete and is_main:
        run.export()
        write_report(folder, config, trainer.plan, validator)
    return complete


def _message(error: HqsamError) -> str:
    """The text of an error; one that a loading process raised comes wrapped in its traceback."""
    text = str(error)
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return text
    return text.rstrip().rpartition(f"{type(error).__name__}: ")[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Program of `train.py`.

    Args:
        arguments: configuration file and overrides; None takes those of the command line.

    Returns:
        Exit status: 0 when complete, 143 when a signal stopped the run after saving; with one message on the standard
        error 1 for a loss that is not finite, 2 for bad input.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or {"-h", "--help"} & set(arguments):
        rows = [f"  {key:22} {default:12} {text}" for key, default, text in describe_settings(TrainConfig)]
        stream = sys.stdout if arguments else sys.stderr
        stream.write("\n".join([USAGE, "keys and defaults:", *rows]) + "\n")
        return 0 if arguments else 2
    try:
        config = load_config(TrainConfig, arguments[0], arguments[1:])
        with join_world(config.device) as world:
            configure_logging(world)
            keep_freed_memory(world.device)
            return 0 if train(config, world) else STOPPED
    except HqsamError as error:
        sys.stderr.write(f"error: {_message(error)}\n")
        return 1 if isinstance(error, NonFiniteLossError) else 2
