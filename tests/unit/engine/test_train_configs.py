"""Every training configuration of the repository is legal and names what exists."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from hqsam.data import TrainDataOptions
from hqsam.engine.config import load_config
from hqsam.engine.train_config import DataConfig, OptimConfig, TrainConfig
from hqsam.engine.train_data import data_options
from hqsam.engine.training import trained_parts
from hqsam.errors import ConfigError
from hqsam.models import ScoreHead
from hqsam.registry import build_model, model_spec
from tests.helpers import ROOT

CONFIGS = sorted((ROOT / "configs" / "train").rglob("*.yaml"))


def load(path: Path) -> TrainConfig:
    """Configurations for files that a user has to have leave the checkpoint open."""
    try:
        return load_config(TrainConfig, path)
    except ConfigError as error:
        assert str(error).count("\n") == 1 and "model.checkpoint is required" in str(error)
        return load_config(TrainConfig, path, ["model.checkpoint=file.pth"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration(path: Path) -> None:
    config = load(path)
    data_options(config.data)
    with torch.device("meta"):
        model = build_model(model_spec(config.model.name))
    parts = trained_parts(config, has_hq=model.has_hq)
    if "score" in parts:  # the training program makes one
        model.set_score_head(ScoreHead())
    model.set_trained(parts)
    config.clicks.plan()
    assert config.output_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_starts_with_its_command(path: Path) -> None:
    head = path.read_text("utf-8").split("\n\n", 1)[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert any(f"train.py configs/train/{path.name}" in line for line in head)


def test_published_recipe_is_the_default() -> None:
    config = load(ROOT / "configs" / "train" / "hq_vit_l.yaml")
    assert config.optim == OptimConfig()
    assert (config.optim.lr, config.optim.drop_epoch, config.optim.drop_factor, config.optim.clip) == (
        1e-3,
        10,
        0.1,
        None,
    )
    assert (config.loop.epochs, config.loop.batch_size, config.loop.amp, config.seed) == (12, 4, "off", 42)
    assert data_options(config.data) == data_options(DataConfig(train=[]))


def test_data_defaults_are_those_of_the_data_layer() -> None:
    assert data_options(DataConfig(train=[])) == TrainDataOptions()


def test_every_data_option_can_be_configured() -> None:
    config = DataConfig(train=[])
    sections = {key for part in (config.augment, config.prompts, config.points) for key in vars(part)}
    assert {field.name for field in dataclasses.fields(TrainDataOptions)} == sections | {
        "views",
        "use_alpha",
        "click_draws",
        "path_draws",
    }
