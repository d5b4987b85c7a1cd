from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hqsam.models import Sam
from hqsam.registry import create_model
from hqsam.serve.service import Service, Settings
from tests.helpers import fill_parameters
from tests.unit.serve.serving import SIZES, draw, serving


@pytest.fixture(scope="session")
def model() -> Sam:
    torch.manual_seed(0)
    built = create_model("hq_test_tiny", device="cpu")
    fill_parameters(built)
    return built


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for seed, (name, size) in enumerate(SIZES.items()):
        draw(folder / name, size, seed)
    return folder


@pytest.fixture
def service(photos: Path, tmp_path: Path, model: Sam) -> Service:
    return Service(Settings(folder=photos, out=tmp_path / "out", model_name="hq_test_tiny", labels=("cat",)), model)


@pytest.fixture
def client(service: Service) -> Iterator[Any]:
    with serving(service) as client:
        yield client
