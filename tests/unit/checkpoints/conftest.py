from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from hqsam.checkpoints import loader, official_state_dict
from hqsam.checkpoints.formats import open_checkpoint, recognise
from hqsam.checkpoints.reading import TensorFile
from hqsam.models import Sam
from hqsam.registry import build_model, model_spec
from tests.helpers import fill_parameters

Build = Callable[..., Sam]


@pytest.fixture(scope="session")
def build() -> Build:
    """A model by name whose weights depend on the seed and on nothing else; None leaves them random."""

    def build(name: str, seed: int | None = 0) -> Sam:
        model = build_model(model_spec(name))
        return model if seed is None else fill_parameters(model, seed)

    return build


@pytest.fixture(scope="session")
def layouts(build: Build) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """For every layout of the small specs: the model that it fits, and the tensors of a file under official names."""
    found = {}
    for kind, sam, hq in (("vit", "sam", "hq_sam"), ("tiny", "mobile_sam", "light_hq_sam")):
        name = f"hq_test_{kind}"
        official = {key: tensor.clone() for key, tensor in official_state_dict(build(name, 1)).items()}
        head = official_state_dict(build(name, 1), "hq")
        decoder = {key: tensor for key, tensor in official.items() if key.startswith("mask_decoder.")}
        found |= {
            hq: (name, official),
            sam: (f"sam_test_{kind}", {key: t for key, t in official.items() if key not in head}),
            f"hq_decoder/{kind}": (name, {key.removeprefix("mask_decoder."): t for key, t in decoder.items()}),
            f"hq_head/{kind}": (name, {key: official[key] for key in head}),
        }
    return found


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Tensor]], TensorFile]:
    """Let `load_checkpoint` take what this returns as a path, without a file."""
    monkeypatch.setattr(
        loader, "open_checkpoint", lambda f: recognise(f) if isinstance(f, TensorFile) else open_checkpoint(f)
    )
    return lambda tensors: TensorFile(Path("some_file.pth"), dict(tensors), {}, 1)


@pytest.fixture
def bits() -> Callable[[Sam], dict[str, Tensor]]:
    """A copy of all tensors of a model."""
    return lambda model: {key: tensor.clone() for key, tensor in official_state_dict(model).items()}


@pytest.fixture
def assert_same() -> Callable[[dict[str, Tensor], dict[str, Tensor]], None]:
    def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        assert list(a) == list(b)
        for key in a:
            assert a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]), key

    return assert_same


@pytest.fixture
def attack() -> SimpleNamespace:
    """An object that creates a file when it is unpickled."""

    class Attack:
        def __init__(self, target: Path) -> None:
            self.target = target

        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (self.target,)

    return SimpleNamespace(make=Attack)
