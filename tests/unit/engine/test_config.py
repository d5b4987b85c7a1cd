"""Configuration files: what is read, and that every mistake is named with its place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from hqsam.engine.config import (
    MISSING,
    config_to_yaml,
    describe_settings,
    flatten_config,
    load_config,
    setting,
)
from hqsam.errors import ConfigError


@dataclass(kw_only=True)
class Optim:
    lr: float = setting(1e-3, "learning rate", above=0)
    betas: tuple[float, float] = (0.9, 0.999)
    amp: Literal["off", "bf16"] = "off"
    steps: int | None = setting(None, at_least=1)


@dataclass(kw_only=True)
class Example:
    output_dir: str = setting(MISSING, "run folder")
    device: str = "auto"
    resume: str | None = "auto"
    names: list[str] = setting([])
    weights: dict[str, float] = setting({})
    flip: bool = True
    optim: Optim = field(default_factory=Optim)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    return path


def problems(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(Example, path, overrides)
    return str(caught.value)


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "output_dir: runs/a\noptim: {lr: 1e-2, amp: off}\nweights: {a: 1}\nnames: [x]\n")
    config = load_config(Example, path, ["optim.lr=5e-4", "optim.steps=7", "weights.b=2", "names=[y,z]"])
    assert config.optim == Optim(lr=5e-4, steps=7, amp="off")
    assert config.weights == {"a": 1.0, "b": 2.0}
    assert config.names == ["y", "z"]


def test_text_overrides_keep_their_characters() -> None:
    config = load_config(Example, None, ["output_dir=1e3", "device=off", "resume=null", "optim.amp=off"])
    assert (config.output_dir, config.device, config.resume, config.optim.amp) == ("1e3", "off", None, "off")


def test_sections_can_be_overridden_as_a_whole() -> None:
    config = load_config(Example, None, ["output_dir=a", "optim={lr: 0.5, steps: 2}"])
    assert config.optim == Optim(lr=0.5, steps=2)


def test_all_problems_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "optm: {lr: 1}\noptim: {lr: fast, amp: fp8, steps: 0}\nflip: 3.5\ndevice: yes\n")
    text = problems(path, "optim.rl=1", "nonsense", "names=[")
    assert "example.yaml: unknown key optm.lr; did you mean optim.lr?" in text
    assert "example.yaml: optim.lr: Value 'fast'" in text
    assert "optim.amp" in text and "['off', 'bf16']" in text
    assert "optim.steps must be at least 1, got 0" in text
    assert "flip" in text
    assert "device must be text, got True; write it in quotes" in text
    assert "override: unknown key optim.rl; did you mean optim.lr?" in text
    assert "'nonsense': expected key=value" in text
    assert "override names: '[' is not valid YAML" in text
    assert "output_dir is required but missing (run folder)" in text
    assert text.startswith("9 problem(s)") or text.startswith("10 problem(s)")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim=3", "optim is a section, got 3; set its keys: lr, betas, amp, steps"),
        ("optim.lr=0", "optim.lr must be greater than 0, got 0.0"),
        ("optim.lr=nan", "optim.lr must be greater than 0, got nan"),
        ("optim.steps=2.5", "optim.steps"),
        ("flip=null", "flip"),
        ("qqq=1", "unknown key qqq; legal at the top: "),
        ("lr=1", "did you mean optim.lr?"),
        ("device.x=1", "unknown key device.x"),
        ("output_dir=${nowhere}", "output_dir"),
    ],
)
def test_one_problem(override: str, expected: str) -> None:
    assert expected in problems(None, "output_dir=a", override)


def test_unreadable_files(tmp_path: Path) -> None:
    write(tmp_path, "output_dir: a\n")
    assert "did you mean" in problems(tmp_path / "exmple.yaml")
    assert "is not valid YAML" in problems(write(tmp_path, "a: [1,\n"))
    assert "must hold sections" in problems(write(tmp_path, "- 1\n"))
    assert "cannot read" in problems(tmp_path)


def test_written_config_reads_back(tmp_path: Path) -> None:
    config = load_config(Example, None, ["output_dir=a", "weights.x=3", "optim.lr=0.25", "device=${output_dir}b"])
    assert config.device == "ab"
    assert load_config(Example, write(tmp_path, config_to_yaml(config))) == config
    assert flatten_config(config)["optim.lr"] == 0.25


def test_settings_are_listed() -> None:
    rows = {key: (default, text) for key, default, text in describe_settings(Example)}
    assert rows["output_dir"] == ("required", "run folder")
    assert rows["optim.lr"] == ("0.001", "learning rate")
    assert rows["names"][0] == "[]"
