"""Ablation settings: the files of the repository are legal, and mistakes are told before anything runs."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from hqsam.engine.ablations.config import AblationConfig, Variant, folder_name, plan_variants, select_variants
from hqsam.engine.ablations.running import identity
from hqsam.engine.config import load_config
from hqsam.errors import ConfigError
from tests.helpers import ROOT

CONFIGS = sorted((ROOT / "configs" / "ablations").rglob("*.yaml"))
EVAL = "\nevaluations: {v: ['data.sets=[v]']}"
BASE = """
output_dir: runs/x
train: {model: {name: hq_test_tiny}, data: {train: [photos]}}
"""


def plan(tmp_path: Path, text: str, *overrides: str) -> list[Variant]:
    path = tmp_path / "ablation.yaml"
    path.write_text(BASE + text)
    return plan_variants(load_config(AblationConfig, path, overrides))


@functools.cache
def planned(path: Path) -> tuple[AblationConfig, list[Variant]]:
    config = load_config(AblationConfig, path)
    return config, plan_variants(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration(path: Path) -> None:
    config, variants = planned(path)
    assert config.output_dir == f"runs/ablations/{path.stem}"
    assert len({str(identity(variant.train)) for variant in variants}) == len(variants)
    head = path.read_text("utf-8").split("\n\n", 1)[0].splitlines()
    assert any(f"hqsam ablate configs/ablations/{path.name}" in line for line in head)


def test_the_papers_comparison_is_complete() -> None:
    config, variants = planned(ROOT / "configs" / "ablations" / "hq_vit_tiny.yaml")
    heads = ["sam_token", "sam_decoder", "token", "final+mask", "early+mask", "early+final"]
    assert [v.train.model.head for v in variants] == [*heads, *["early+final+mask"] * 5]
    assert [v.train.data.max_images for v in variants[-3:]] == [100, 300, 1000]
    assert {v.train.data.keep_features for v in variants} == {config.train.data.keep_features}
    assert {v.train.loop.epochs for v in variants} == {1} and config.train.data.epoch_images == 2400


def test_a_variant_has_its_own_settings_and_folders(tmp_path: Path) -> None:
    text = (
        "variants: {A: [optim.lr=1e-4], 'B, more': [model.head=mask+final]}\nevaluations: {Val set: ['data.sets=[v]']}"
    )
    first, second = plan(tmp_path, text, "train.loop.max_steps=7")
    assert (first.train.optim.lr, second.train.optim.lr) == (1e-4, 1e-3)
    assert first.train.loop.max_steps == second.train.loop.max_steps == 7
    assert (second.train.output_dir, second.exported) == (
        "runs/x/b_more/train",
        Path("runs/x/b_more/train/model.safetensors"),
    )
    evaluation = second.evaluations["Val set"]
    assert evaluation.output_dir == "runs/x/b_more/val_set" and evaluation.model.name == "hq_test_tiny"
    assert evaluation.model.checkpoint == str(second.exported)
    assert [v.name for v in select_variants([first, second], ["B, more"])] == ["B, more"]
    with pytest.raises(ConfigError, match="no variant 'C'; there are 'A', 'B, more'"):
        select_variants([first, second], ["C"])
    assert folder_name("HQ token, nothing fused!") == "hq_token_nothing_fused"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: {a: []}", "evaluations is required but missing"),
        ("variants: {}" + EVAL, "variants is empty"),
        (
            "variants: {a: [optim.learning=1]}" + EVAL,
            "variant 'a': .*(.|\n)*optim.learning",
        ),
        (
            "variants: {a: [model.head=middle]}" + EVAL,
            "variant 'a': head must be features",
        ),
        ("variants: {a: [model.name=sam_test_tiny]}" + EVAL, "is plain SAM"),
        ("variants: {a: [model.trained=head]}" + EVAL, "variant .a.: model.trained=head: .head. is unknown"),
        ("variants: {a: [model.drop_path=0.1]}" + EVAL, "model.drop_path=0.1 is for a trained encoder"),
        ("variants: {a: [output_dir=y]}" + EVAL, "output_dir is decided by the ablation"),
        ("variants: {a: []}\nevaluations: {v: [model.checkpoint=x]}", "model.checkpoint is decided by the ablation"),
        ("variants: {a: []}\nevaluations: {v: ['data.sets=[v]', task=edges]}", "task must be masks, got edges"),
        ("variants: {a: []}\nevaluations: {v: []}", "evaluation 'v': (.|\n)*data.sets is required"),
        ("variants: {a b: [], A-B: []}" + EVAL, "would share the folder a_b"),
        ("variants: {a: [], '+': []}" + EVAL, "'\\+' has neither letters nor digits"),
    ],
)
def test_mistakes_are_told_before_anything_runs(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(tmp_path, text)


def test_the_base_has_no_folder_of_its_own(tmp_path: Path) -> None:
    text = "variants: {a: []}" + EVAL
    with pytest.raises(ConfigError, match=r"train.output_dir is decided by the ablation"):
        plan(tmp_path, text, "train.output_dir=elsewhere")
    with pytest.raises(ConfigError, match=r"unknown key variants_\b|unknown key variant"):
        plan(tmp_path, "variant: {a: []}\n" + text)
