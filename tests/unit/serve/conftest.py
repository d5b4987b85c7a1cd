from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hqsam.models import Sam
from hqsam.registry import create_model
from tests.helpers import fill_parameters

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from hqsam.serve.app import create_app
from hqsam.serve.service import Service, Settings

URL = "http://127.0.0.1:8000"
OWN = {"X-Hqsam-Request": "1"}
SIZES = {"a.png": (40, 60), "b.jpg": (30, 20), "deep/er/c.bmp": (16, 24)}
Serve = Callable[..., Any]


def draw(path: Path, size_hw: tuple[int, int], seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


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


@contextmanager
def serving(service: Service, **options: Any) -> Iterator[TestClient]:
    with TestClient(create_app(service, **options), base_url=URL, headers=OWN) as client:
        yield client


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with serving(service) as client:
        yield client


def ids(client: TestClient) -> list[str]:
    return [row["id"] for row in client.get("/api/images").json()["images"]]
