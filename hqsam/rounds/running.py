"""One round, from the annotations to the decision. Every step is there whole or not at all, so any may be the last."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hqsam.checkpoints import atomic_path, remove_leftovers
from hqsam.checkpoints.reading import read_strings
from hqsam.checkpoints.recommendations import RECOMMENDED_FUSION
from hqsam.engine.config import config_to_yaml, load_config
from hqsam.engine.distributed import World, choose_device
from hqsam.engine.evaluation.program import run as run_evaluation
from hqsam.engine.signals import StopSignals
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.training import train
from hqsam.errors import DataError
from hqsam.rounds.deciding import decide, measured_changes
from hqsam.rounds.report import write_report
from hqsam.rounds.settings import evaluation, open_settings, place_training, recommendations
from hqsam.rounds.snapshot import HELD_OUT_FILE, TRAIN_FILE, Snapshot, check_snapshot, take_snapshot
from hqsam.rounds.state import CURRENT_FILE, Round, Rounds, read_rounds
from hqsam.serve.locks import locked
from hqsam.serve.store import AnnotationStore

logger = logging.getLogger(__name__)

ROUND_KEY = "round"
"""In the string map of a model's file: the number of the round that it is of."""
_CANDIDATE, _SETTINGS, _TRAINING = "model.safetensors", "settings.yaml", "train"
_NEXT = "next"


class NothingNewError(Exception):
    """No annotation and no setting changed since the last round."""


class StoppedError(Exception):
    """A signal ended the round; the same call goes on from there."""


@dataclass(frozen=True, kw_only=True)
class RoundOptions:
    """How rounds are made.

    Attributes:
        config: a training configuration; None for the one for small data.
        overrides: `key=value` settings of the training.
        held_out_tenths: share of the images that is measured on, fixed by the first round; None: that, or two.
        min_masks: a round needs as many to train on.
        min_held_out: and as many images to measure on, at least two.
    """

    config: Path | None = None
    overrides: Sequence[str] = ()
    held_out_tenths: int | None = None
    min_masks: int = 20
    min_held_out: int = 10


def run_round(store: AnnotationStore, folder: Path, options: RoundOptions) -> Round:
    """Make a round, or go on with the one that was interrupted.

    Args:
        store: the annotations.
        folder: of all rounds.
        options: how.

    Returns:
        The round with its outcome; `current.safetensors` is the model that was decided for.

    Raises:
        HqsamError: too few annotations, defects in them, or settings that cannot be; no round was begun.
        NothingNewError: nothing changed since the last round.
        StoppedError: a signal came.
    """
    folder = folder.absolute()
    with _only_one(folder):
        remove_leftovers(folder)
        known = read_rounds(folder)
        if known is not None:  # a crash may have come between what is written
            settle_current(known, folder)
            write_report(known, folder)
        if known is None or known.unfinished is None:
            known, item = _begin(store, folder, known, options)
        else:
            item = known.unfinished
            _refuse_other_settings(folder / item.folder, options)
            logger.info("going on with round %d, on its own annotations", item.number)
        return _finish(known, item, folder)


def abandon_round(folder: Path) -> Round:
    """Give up the round that is under way; the current model stays.

    Raises:
        DataError: none is.
    """
    folder = folder.absolute()
    with _only_one(folder):
        known = read_rounds(folder)
        item = None if known is None else known.unfinished
        if known is None or item is None:
            raise DataError(f"no round is under way in {folder}")
        item.outcome, item.reason = "abandoned", "given up"
        _close(known, item, folder)
        return item


def settle_current(known: Rounds, folder: Path) -> None:
    """Make `current.safetensors` what `rounds.json` says, should a crash have come between the two."""
    if known.current is None:
        return
    target = folder / CURRENT_FILE
    item = known.rounds[known.current - 1]
    if target.is_file() and read_strings(target).get(ROUND_KEY) == str(item.number):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(folder / item.folder / _CANDIDATE, temporary)


def _begin(store: AnnotationStore, folder: Path, known: Rounds | None, options: RoundOptions) -> tuple[Rounds, Round]:
    tenths = _tenths(known, options)
    beside = folder / _NEXT  # becomes the round's folder once nothing speaks against it; at the same depth
    shutil.rmtree(beside, ignore_errors=True)
    try:
        snapshot = take_snapshot(store, beside, tenths)
        _refuse_too_few(snapshot, options)
        config = open_settings(options.config, options.overrides, snapshot.trained_on.images)
        if known is None:
            name = config.model.name
            known = Rounds(
                model=name.partition(".")[0],
                start_name=name,
                start_checkpoint=_absolute(config.model.checkpoint),
                held_out_tenths=tenths,
            )
        _refuse_another_start(known, config, options)
        number = len(known.rounds) + 1
        path = folder / f"round_{number:04d}"
        digest = hashlib.sha256(f"{snapshot.digest}\n{config_to_yaml(config)}".encode()).hexdigest()[:16]
        item = _new_round(known, number, path.name, snapshot, digest)
        if known.rounds and known.rounds[-1].digest == item.digest and known.rounds[-1].outcome != "abandoned":
            raise NothingNewError(f"neither annotations nor settings changed since round {known.rounds[-1].number}")
        for warning in check_snapshot(snapshot):
            logger.warning("%s", warning)
        place_training(config, path / _TRAINING, path / TRAIN_FILE, _start(known, folder))
        with atomic_path(beside / _SETTINGS) as temporary:
            temporary.write_text(config_to_yaml(config), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)  # of a crash between the next two lines
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    known.rounds.append(item)
    known.write(folder)
    return known, item


def _new_round(known: Rounds, number: int, name: str, snapshot: Snapshot, digest: str) -> Round:
    return Round(
        number=number,
        folder=name,
        start=known.current,
        digest=digest,
        annotated=snapshot.annotated,
        trained_on=snapshot.trained_on,
        held_out=snapshot.held_out,
        untouched=snapshot.untouched,
        masks_per_image=snapshot.statistics["masks_per_image"],
        seconds_per_mask=snapshot.statistics["seconds_per_mask"],
        proposals=snapshot.statistics["proposals"],
    )


def _finish(known: Rounds, item: Round, folder: Path) -> Round:
    path = folder / item.folder
    config = load_config(TrainConfig, path / _SETTINGS)
    start, candidate = (config.model.name, config.model.checkpoint), path / _CANDIDATE
    if not candidate.is_file():
        if not train(config, World(device=choose_device(config.device))):
            raise StoppedError
        _write_candidate(path / _TRAINING / "model.safetensors", candidate, item.number, recommendations(*start))
    models = {"before": start, "after": (known.model, str(candidate))}
    for name, model in models.items():
        if not (path / name / "results.json").is_file():
            with StopSignals() as signals:
                settings = evaluation(config, path / name, path / HELD_OUT_FILE, model)
                run_evaluation(settings, World(device=choose_device(config.device)), signals)
    item.changes = measured_changes(path / "before", path / "after")
    decision = decide(item.changes)
    item.outcome, item.reason = ("adopted" if decision.adopted else "kept"), decision.reason
    _close(known, item, folder)
    return item


def _close(known: Rounds, item: Round, folder: Path) -> None:
    """Write down the outcome, from which everything else follows."""
    known.write(folder)
    settle_current(known, folder)
    shutil.rmtree(folder / item.folder / _TRAINING / "features", ignore_errors=True)
    write_report(known, folder)


def _write_candidate(trained: Path, target: Path, number: int, before: dict[str, str]) -> None:
    """The trained model with the number of its round, and with what the model before it recommended."""
    from safetensors.torch import load_file, save_file

    # Training hands on how to ask, but not the fusion, which it may have changed; here it is measured with the old one.
    kept = {key: before[key] for key in (RECOMMENDED_FUSION,) if key in before}
    with atomic_path(target) as temporary:
        save_file(load_file(trained), temporary, {**read_strings(trained), **kept, ROUND_KEY: str(number)})


def _start(known: Rounds, folder: Path) -> tuple[str, str | None]:
    if known.current is None:
        return known.start_name, known.start_checkpoint
    return known.model, str(folder / known.rounds[known.current - 1].folder / _CANDIDATE)


def _tenths(known: Rounds | None, options: RoundOptions) -> int:
    asked = options.held_out_tenths
    if known is None:
        return 2 if asked is None else asked
    if asked not in (None, known.held_out_tenths):
        raise DataError(
            f"{known.held_out_tenths} tenths of the images are held out since the first round; with {asked} some that "
            "were trained on would be measured on, or the other way round"
        )
    return known.held_out_tenths


def _refuse_too_few(snapshot: Snapshot, options: RoundOptions) -> None:
    masks, images = snapshot.trained_on.masks, snapshot.held_out.images
    if masks < max(1, options.min_masks):
        raise DataError(f"{masks} masks to train on, {max(1, options.min_masks)} are needed: annotate more images")
    if images < max(2, options.min_held_out):
        raise DataError(
            f"{images} images with masks to measure on, {max(2, options.min_held_out)} are needed: annotate more "
            "images; which ones are held out goes by a hash of their names"
        )


def _refuse_other_settings(path: Path, options: RoundOptions) -> None:
    """A round that was interrupted goes on with its settings; others would be passed over in silence."""
    own = load_config(TrainConfig, path / _SETTINGS)
    asked = open_settings(options.config, options.overrides, 0)
    if options.config is None and not any(text.startswith("loop.max_steps=") for text in options.overrides):
        asked.loop.max_steps = own.loop.max_steps  # it goes by the number of images
    start = (own.model.name, own.model.checkpoint)
    place_training(asked, Path(own.output_dir), Path(own.data.train[0]), start)
    if asked != own:
        raise DataError(
            f"{path.name} is under way with other settings, see its {_SETTINGS}: go on with them, or give it up with "
            "--abandon"
        )


def _refuse_another_start(known: Rounds, config: TrainConfig, options: RoundOptions) -> None:
    asked = config.model.name, _absolute(config.model.checkpoint)
    named = options.config is not None or any(text.startswith("model.") for text in options.overrides)
    if named and asked != (known.start_name, known.start_checkpoint):
        raise DataError(
            f"these rounds began with {known.start_name} ({known.start_checkpoint or 'its own weights'}) and go on "
            f"from their current model; for {asked[0]} ({asked[1] or 'its own weights'}) begin in another folder"
        )


def _absolute(checkpoint: str | None) -> str | None:
    return None if checkpoint is None else str(Path(checkpoint).absolute())


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of rounds."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", wait=False))
        except BlockingIOError as error:
            raise DataError(f"another round is running in {folder}") from error
        yield
