"""Every key of an ablation, and the training and evaluation settings that follow for each of its variants."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from hqsam.engine.config import MISSING, load_config, setting
from hqsam.engine.evaluation.config import EvalConfig, EvalModelConfig
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.training import trained_parts
from hqsam.errors import ConfigError, HqsamError
from hqsam.models import head_name
from hqsam.registry import model_spec

T = TypeVar("T", TrainConfig, EvalConfig)

_DECIDED_HERE = "decided by the ablation"
_RESERVED: Mapping[type, tuple[str, ...]] = {
    TrainConfig: ("output_dir", "resume", "loop.encode_only"),
    EvalConfig: ("output_dir", "device", "model."),
}
"""Keys, or beginnings of keys, that variants and evaluations must leave alone."""


@dataclass(kw_only=True)
class AblationConfig:
    """Variants of one training run, and what each is evaluated on."""

    output_dir: str = setting(MISSING, "folder of the table and of all variants")
    train: TrainConfig = field(default_factory=lambda: TrainConfig(output_dir=_DECIDED_HERE))
    variants: dict[str, list[str]] = setting(MISSING, "name of a variant -> its own key=value settings of the training")
    evaluations: dict[str, list[str]] = setting(MISSING, "name -> key=value settings of an evaluation; see `evaluate`")


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: as in the table.
        folder: where all of it is kept.
        train: its training run.
        evaluations: name -> settings of an evaluation of the exported model.
    """

    name: str
    folder: Path
    train: TrainConfig
    evaluations: Mapping[str, EvalConfig]

    @property
    def exported(self) -> Path:
        """The model that training leaves."""
        return Path(self.train.output_dir) / "model.safetensors"


def plan_variants(config: AblationConfig) -> list[Variant]:
    """All variants with complete settings; nothing is read or written.

    Raises:
        ConfigError: what is wrong with the variants and evaluations, all of it.
    """
    problems = list(_problems_of_names(config))
    base = OmegaConf.to_container(OmegaConf.structured(config.train))
    trained, evaluated = {}, {}
    for name, overrides in config.variants.items():
        place = f"output_dir={Path(config.output_dir) / folder_name(name) / 'train'}"
        try:
            trained[name] = _derive(TrainConfig, base, overrides, [place, "resume=auto"])
            _require_trainable(trained[name])
        except HqsamError as error:
            problems.append(f"variant {name!r}: {error}")
    for title, overrides in config.evaluations.items():
        decided = [f"output_dir={_DECIDED_HERE}", f"model.name={_DECIDED_HERE}", f"device={config.train.device}"]
        try:
            evaluated[title] = _derive(EvalConfig, None, ["plots=0", *overrides], decided)
            _require_masks(evaluated[title])
        except HqsamError as error:
            problems.append(f"evaluation {title!r}: {error}")
    if problems:
        raise ConfigError("\n  ".join([f"{len(problems)} problem(s) in the ablation:", *problems]))
    folder = Path(config.output_dir)
    return [_join(name, folder / folder_name(name), train, evaluated) for name, train in trained.items()]


def select_variants(variants: Sequence[Variant], names: Sequence[str]) -> list[Variant]:
    """The variants of some names, all where none is given.

    Raises:
        ConfigError: there is no variant of that name.
    """
    known = [variant.name for variant in variants]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no variant {unknown[0]!r}; there are {', '.join(map(repr, known))}")
    return [variant for variant in variants if not names or variant.name in names]


def folder_name(name: str) -> str:
    """A name as a folder's: letters and digits, joined by underscores."""
    return "_".join(re.findall(r"[a-z0-9]+", name.lower()))


def _problems_of_names(config: AblationConfig) -> Iterator[str]:
    for key, named in (("variants", config.variants), ("evaluations", config.evaluations)):
        if not named:
            yield f"{key} is empty"
        folders: dict[str, str] = {}
        for name in named:
            folder = folder_name(name)
            if not folder:
                yield f"{key}: {name!r} has neither letters nor digits"
            elif folder in folders:
                yield f"{key}: {folders[folder]!r} and {name!r} would share the folder {folder}"
            folders[folder] = name
    if config.train.output_dir != _DECIDED_HERE:
        yield "train.output_dir is decided by the ablation: every variant has a folder in output_dir"


def _join(name: str, folder: Path, train: TrainConfig, evaluated: Mapping[str, EvalConfig]) -> Variant:
    exported = str(folder / "train" / "model.safetensors")
    model = EvalModelConfig(name=train.model.name.partition(".")[0], checkpoint=exported)
    evaluations = {
        title: replace(config, output_dir=str(folder / folder_name(title)), model=model)
        for title, config in evaluated.items()
    }
    return Variant(name, folder, train, evaluations)


def _require_trainable(train: TrainConfig) -> None:
    try:
        head_name(train.model.head)
        if not model_spec(train.model.name).hq:
            raise ConfigError(f"model.name={train.model.name} is plain SAM; use an hq_ name")
        trained_parts(train, has_hq=True)  # what a training would refuse is refused before the first one begins
    except HqsamError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _derive(schema: type[T], base: Any, overrides: Sequence[str], decided: Sequence[str]) -> T:
    taken = [text for text in overrides if text.startswith(_RESERVED[schema])]
    if taken:
        raise ConfigError(f"{taken[0].partition('=')[0]} is decided by the ablation")
    return load_config(schema, base, [*overrides, *decided])


def _require_masks(config: EvalConfig) -> None:
    if config.task != "masks":
        raise ConfigError(f"the table has mask and boundary IoU, so task must be masks, got {config.task}")
