"""The training state on disk: everything that the next step depends on, written atomically, so no run can be lost."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hqsam.checkpoints import (
    atomic_path,
    load_trained_state_dict,
    official_state_dict,
    remove_leftovers,
    save_checkpoint,
)
from hqsam.checkpoints.adapters import adapter_state_dict, load_adapter_state_dict
from hqsam.checkpoints.state import Selection
from hqsam.engine.config import default_values, flatten_config
from hqsam.engine.distributed import World, from_main, gather_objects
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.trainer import Trainer
from hqsam.errors import CheckpointError, ConfigError
from hqsam.models import Sam

logger = logging.getLogger(__name__)

FORMAT = "hqsam training state"
VERSION = 1

EXACTNESS = (
    "seed",
    "model.name",
    "model.image_size",
    "model.trained",
    "model.head",
    "model.drop_path",
    "model.lora",
    "loop.dtype",
    "loop.amp",
    "loop.ema",
    "data.",
    "clicks.",
    "loss.",
    "optim.name",
    "optim.beta",
    "optim.eps",
    "optim.layer_decay",
    "optim.weight_decay",
)
"""Keys, or beginnings of keys, whose change makes the rest of a run differ from an unbroken one."""
STRUCTURE = ("model.name", "model.trained", "model.head", "model.lora_rank", "optim.name")
"""Keys that say which tensors a state holds and how they are grouped: it fits no other run, on purpose or not."""
HARMLESS = ("data.root", "data.workers", "data.val", "data.check", "data.on_defect")
"""Exceptions to `EXACTNESS`."""


class StateFolder:
    """The folder ``checkpoints/`` of a run: ``step_0000500.pt`` and so on.

    A file appears under its name only when it is complete, so the highest number is the latest state whatever
    happened to the process.
    """

    def __init__(self, run_folder: Path, world: World, config: TrainConfig) -> None:
        self.folder = run_folder / "checkpoints"
        self.world = world
        self.keep_last = config.loop.keep_last

    def files(self) -> list[Path]:
        """States in the order of their steps."""
        found = [path for path in self.folder.glob("step_*.pt") if re.fullmatch(r"step_\d+\.pt", path.name)]
        return sorted(found, key=lambda path: int(path.stem[5:]))

    def save(self, trainer: Trainer, best: float | None = None) -> Path:
        """Write the state of all processes and drop outdated files. Every process must call this.

        Args:
            trainer: what to save.
            best: the best validation value so far.

        Returns:
            The file.

        Raises:
            OutputError: it cannot be written; on every process.
        """
        path = self.folder / f"step_{trainer.step:07d}.pt"
        random_states = gather_objects(_random_state(trainer.model.device), self.world)

        def write() -> None:
            remove_leftovers(self.folder)
            with atomic_path(path) as temporary:
                torch.save({**training_state(trainer), "rng": random_states, "best": best}, temporary)
            for old in self._outdated(path):
                old.unlink(missing_ok=True)

        from_main(write, self.world)
        return path

    def _outdated(self, newest: Path) -> list[Path]:
        """States beyond the last ones of this run; and later steps, which a run left that was begun again before them.

        Those would be taken for the latest, and push this run's own out of the last ones.
        """
        files = self.files()
        end = files.index(newest) + 1
        return files[: max(0, end - self.keep_last)] + files[end:]

    def find(self, resume: str) -> Path | None:
        """The state that ``resume=auto|none|FILE`` asks for, seen from the first process; None to start anew.

        Raises:
            CheckpointError: FILE does not exist.
        """
        return from_main(lambda: self._find(resume), self.world)

    def _find(self, resume: str) -> Path | None:
        if resume == "none":
            return None
        if resume == "auto":
            return newest_whole(self.files())
        if not Path(resume).is_file():
            raise CheckpointError(f"resume must be auto, none or a state file; there is no file {resume}")
        return Path(resume)


def newest_whole(files: Sequence[Path]) -> Path | None:
    """The last of the states that is not damaged, or the last one where all are; None without any.

    A state is whole when it appears, but disks fail: a file cut short or with a changed byte is passed over by name.
    """
    for path in reversed(files):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip() is not None
        except (OSError, zipfile.BadZipFile):
            damaged = True
        if not damaged:
            return path
        logger.warning("%s is damaged and passed over; going on from an older state if there is one", path)
    return files[-1] if files else None


def training_state(trainer: Trainer) -> dict[str, Any]:
    """What `restore` needs, as plain values and tensors; weights under their official names."""
    model, adapter, average = trainer.model, trainer.adapter, trainer.average
    return {
        "format": FORMAT,
        "version": VERSION,
        "step": trainer.step,
        "epoch": trainer.plan.epoch_of(trainer.step),
        "position": trainer.step % trainer.plan.steps_per_epoch,
        "global_batch": trainer.plan.global_batch,
        "steps_per_epoch": trainer.plan.steps_per_epoch,
        "data": trainer.plan.data,
        "config": flatten_config(trainer.config),
        "head": official_state_dict(model, trained_selection(model)),
        "lora": None if adapter is None else adapter_state_dict(model, adapter),
        "ema": None if average is None else average.values,
        "optimizer": trainer.optimizer.state_dict(),
    }


def trained_selection(model: Sam) -> Selection:
    """What of a model training changes in place, in the smallest selection that is a checkpoint."""
    if not model.has_hq or not {"head", "decoder"}.issuperset(model.trained_parts):
        return "all"
    return "hq_decoder" if "decoder" in model.trained_parts else "hq"


def save_trained(trainer: Trainer, path: Path, metadata: Mapping[str, str]) -> None:
    """Write what training changed to the smallest file that holds all of it.

    That is the HQ head, the head and SAM's mask decoder, or the whole model where other parts of SAM were trained or
    its encoder was adapted (merged).
    """
    if trainer.adapter is None:
        save_checkpoint(trainer.model, path, part=trained_selection(trainer.model), metadata=metadata)
        return
    with trainer.adapter.merged():
        save_checkpoint(trainer.model, path, metadata=metadata)


def read_state(path: Path) -> dict[str, Any]:
    """Read a state without running code from it.

    Raises:
        CheckpointError: truncated, not a training state, or of a newer version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for broken files
        raise CheckpointError(
            f"cannot read the training state {path}: {str(error).splitlines()[0]}; "
            "give an older one with resume=FILE or start anew with resume=none"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a training state; weights go to model.checkpoint, resume takes checkpoints/step_*.pt"
        )
    if state["version"] > VERSION:
        raise CheckpointError(f"{path} has state version {state['version']}, this program reads up to {VERSION}")
    return state


def restore(trainer: Trainer, path: Path, *, exact: bool) -> float | None:
    """Continue from a state.

    Args:
        trainer: built from the new configuration, which wins over the one in the state.
        path: state file.
        exact: refuse settings under which the rest of the run would differ from an unbroken one
            (``resume=auto``); otherwise warn (``resume=FILE``).

    Returns:
        The best validation value so far.

    Raises:
        CheckpointError: the file is unusable or of another model.
        ConfigError: refused settings.
    """
    state = from_main(lambda: read_state(path), trainer.world)
    _compare(state, trainer, path, exact=exact)
    load_trained_state_dict(trainer.model, state["head"], trained_selection(trainer.model))
    if trainer.adapter is not None:
        load_adapter_state_dict(trainer.model, trainer.adapter, state["lora"])
    if trainer.average is not None:  # a run that kept none so far begins one here
        trainer.average.load(state.get("ema") or trainer.parameters)
    keys = ("name", "factor", "betas", "eps", "weight_decay")
    settings = [{key: group[key] for key in keys} for group in trainer.optimizer.param_groups]
    trainer.optimizer.load_state_dict(state["optimizer"])
    for group, new in zip(trainer.optimizer.param_groups, settings, strict=True):
        group.update(new)
    trainer.step = state["step"]
    states = state["rng"]
    if trainer.world.rank < len(states):
        _set_random_state(states[trainer.world.rank], trainer.model.device)
    best = state["best"]
    return None if best is None else float(best)


def _compare(state: Mapping[str, Any], trainer: Trainer, path: Path, *, exact: bool) -> None:
    # A setting that the state's version did not have yet was what its default is now.
    old, new = {**default_values(TrainConfig), **state["config"]}, flatten_config(trainer.config)
    for values in (old, new):  # where features are kept is free; whether they are is half precision or full
        values["data.keep_features"] = values["data.keep_features"] is not None
    changed = {key: (old.get(key), value) for key, value in new.items() if old.get(key) != value}
    for name in ("global_batch", "steps_per_epoch"):
        if state[name] != getattr(trainer.plan, name):
            changed[name.replace("_", " ")] = (state[name], getattr(trainer.plan, name))
    breaking = {
        key: values
        for key, values in changed.items()
        if " " in key or (key.startswith(EXACTNESS) and not key.startswith(HARMLESS))
    }
    if state["data"] != trainer.plan.data:
        breaking["the list of training images"] = (state["data"], trainer.plan.data)
    if other := [key for key in STRUCTURE if key in changed]:
        theirs = ", ".join(f"{key}={changed[key][0]}" for key in other)
        raise ConfigError(f"{path} is the state of another model: {theirs}; start anew with resume=none")
    if breaking and exact:
        lines = [f"{key} was {was!r}, is {now!r}" for key, (was, now) in breaking.items()]
        raise ConfigError(
            f"resuming from {path} would not continue the same run:\n  "
            + "\n  ".join(lines)
            + f"\nset them back, take the new values on purpose with resume={path}, or start anew with resume=none"
        )
    told = breaking or {key: values for key, values in changed.items() if key.startswith(("optim.", "loop.epochs"))}
    for key, (was, now) in told.items():
        logger.warning("resume: %s was %r in %s; the new value %r wins", key, was, path.name, now)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Torch's own generators; whatever else is random has a generator made from (seed, epoch, index)."""
    state = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
