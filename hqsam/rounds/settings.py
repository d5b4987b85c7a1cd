"""The training and the evaluation of a round, as configurations of the engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hqsam.checkpoints.reading import read_strings
from hqsam.checkpoints.recommendations import RECOMMENDED_FUSION
from hqsam.engine.config import load_config
from hqsam.engine.evaluation.config import EvalConfig
from hqsam.engine.train_config import TrainConfig
from hqsam.engine.training import trained_parts
from hqsam.errors import ConfigError
from hqsam.registry import EMBEDDED_HEAD, model_spec

_PLACE = "set by the round"
_VIEWS, _STEP_IMAGES, _LEAST_STEPS = 4, 8, 100

SMALL_DATA: dict[str, Any] = {
    "output_dir": _PLACE,
    "model": {"name": "hq_vit_tiny.embedded"},
    "data": {
        "train": [_PLACE],
        "views": _VIEWS,
        "workers": 1,
        "augment": {"pad": "predictor", "jitter": [0.6, 1.2]},
        "prompts": {
            "prompts_per_image": 2,
            "mix": {"box": 2, "points": 1, "mask": 1},
            "box_jitter": 0.04,
            "mask_scale": "predictor",
        },
    },
    "optim": {"lr": 0.0003, "schedule": "cosine", "warmup_steps": 10},
    "loop": {"batch_size": 2, "accumulate": _STEP_IMAGES // 2, "save_every": 25, "keep_last": 1},
}
"""Those of configs/train/finetune.yaml, which says why; a test compares them."""
_OF_THE_ROUND = ("output_dir", "resume", "data.train", "data.val", "data.holdout", "data.val_holdout")


def open_settings(path: Path | None, overrides: Sequence[str], images: int) -> TrainConfig:
    """The settings of a round's training, without the places that the round gives them.

    Args:
        path: a training configuration; None takes `SMALL_DATA`, with steps for one pass over all views, 100 at least.
        overrides: `key=value` texts.
        images: how many are trained on.

    Raises:
        ConfigError: a setting that is illegal, belongs to the round, or changes the encoder.
    """
    taken = [text for text in overrides if text.partition("=")[0] in _OF_THE_ROUND]
    if taken:
        raise ConfigError(f"{taken[0]}: hqsam round decides this itself; leave it out")
    steps = max(_LEAST_STEPS, math.ceil(_VIEWS * images / _STEP_IMAGES))
    first = [f"loop.max_steps={steps}"] if path is None else []
    config = load_config(TrainConfig, SMALL_DATA if path is None else path, [*first, *overrides])
    settings, parts = config.model, config.model.trained.split("+")
    if "encoder" in parts or settings.lora_rank or settings.image_size is not None:
        raise ConfigError(
            "a round leaves the encoder as it is, so that embeddings that a server keeps stay valid: without encoder "
            "in model.trained, model.lora_rank and model.image_size"
        )
    if not model_spec(settings.name).hq or "score" in parts:
        raise ConfigError(
            f"a round trains the HQ head; got model.name={settings.name}, model.trained={settings.trained}"
        )
    if settings.fresh_hq_head or settings.random_weights:
        raise ConfigError("a round goes on from a trained head: leave out model.fresh_hq_head and model.random_weights")
    if "." not in settings.name and settings.checkpoint is None:
        raise ConfigError(f"model.checkpoint is missing: {settings.name} names no weights")
    trained_parts(config, has_hq=True)  # what training would refuse is refused before the round begins
    return config


def place_training(config: TrainConfig, folder: Path, train_file: Path, start: tuple[str, str | None]) -> TrainConfig:
    """Give the settings their places.

    Args:
        config: from `open_settings`; changed.
        folder: of the run.
        train_file: what is trained on.
        start: name and weights of the model to go on from.
    """
    config.output_dir, config.resume = str(folder), "auto"
    config.data.train, config.data.val = [str(train_file)], []  # what is measured on takes no part in the training
    config.data.holdout = config.data.val_holdout = "all"
    config.data.keep_features = str(folder / "features") if config.data.views else None
    config.model.name, config.model.checkpoint = start
    return config


def evaluation(config: TrainConfig, folder: Path, held_out: Path, model: tuple[str, str | None]) -> EvalConfig:
    """What measures a model: boxes of the true masks, the masks that its users get.

    Args:
        config: of the training.
        folder: of the evaluation.
        held_out: what is measured on.
        model: name and weights.
    """
    settings = {
        "output_dir": str(folder),
        "device": config.device,
        "columns": [default_fusion(*model)],
        "plots": 0,
        "model": {"name": model[0], "checkpoint": model[1]},
        "data": {"sets": [str(held_out)], "workers": min(1, config.data.workers)},
    }
    return load_config(EvalConfig, settings)


def default_fusion(name: str, checkpoint: str | None) -> str:
    """The fusion that a model's weights recommend, or the one of all others."""
    return recommendations(name, checkpoint).get(RECOMMENDED_FUSION, "sum")


def recommendations(name: str, checkpoint: str | None) -> dict[str, str]:
    """What the file of a model says of itself."""
    if checkpoint is not None:
        return read_strings(checkpoint)
    return read_strings(EMBEDDED_HEAD) if name.endswith(".embedded") else {}
