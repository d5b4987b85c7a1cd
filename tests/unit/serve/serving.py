"""What the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from hqsam.rle import encode_rle
from hqsam.serve.app import create_app
from hqsam.serve.service import Service

URL = "http://127.0.0.1:8000"
OWN = {"X-Hqsam-Request": "1"}
SIZES = {"a.png": (40, 60), "b.jpg": (30, 20), "deep/er/c.bmp": (16, 24)}


def draw(path: Path, size_hw: tuple[int, int], seed: int = 0) -> Path:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@contextmanager
def serving(service: Service, **options: Any) -> Iterator[TestClient]:
    """A client of a server that runs."""
    with TestClient(create_app(service, **options), base_url=URL, headers=OWN) as client:
        yield client


def ids(client: Any) -> list[str]:
    return [row["id"] for row in client.get("/api/images").json()["images"]]


def mask(size_hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).random(size_hw) < 0.5
    found[0, 0] = True
    return found


def block(size_hw: tuple[int, int], top: int, left: int, side: int) -> np.ndarray:
    found = np.zeros(size_hw, bool)
    found[top : top + side, left : left + side] = True
    return found


def item(name: str, inside: np.ndarray, **changes: Any) -> dict[str, Any]:
    """An object as a page sends it."""
    rle = encode_rle(inside)
    return {"id": name, "label": "cat", "rle": rle, "status": "accepted", "source": "clicks", **changes}


def put(client: Any, image: str, revision: int, objects: list[dict[str, Any]], state: str = "started") -> Any:
    body = {"revision": revision, "state": state, "objects": objects}
    return client.put(f"/api/images/{image}/annotations", json=body)
