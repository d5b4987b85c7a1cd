"""Folders that were annotated, without a server: drawn shapes, and files as the server writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")

from hqsam.checkpoints import save_checkpoint
from hqsam.registry import create_model
from hqsam.rle import encode_rle
from hqsam.serve.messages import MaskObject
from hqsam.serve.pictures import find_pictures
from hqsam.serve.store import AnnotationStore
from tests.helpers import fill_parameters

TINY = (
    "model.name=hq_test_tiny",
    "device=cpu",
    "data.workers=0",
    "data.views=1",
    "data.points.points_per_mask=200",
    "loop.max_steps=2",
    "loop.batch_size=1",
    "loop.accumulate=1",
    "loop.panels=0",
)


def draw_folder(folder: Path, count: int) -> Path:
    """Pictures of a rectangle each."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        pixels[true_mask(number)] += 150
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def true_mask(number: int) -> np.ndarray:
    inside = np.zeros((48, 64), bool)
    inside[8 + number % 7 : 34, 10 + number % 11 : 50] = True
    return inside


def open_store(photos: Path, annotations: Path) -> AnnotationStore:
    return AnnotationStore(annotations, {picture.id: picture for picture in find_pictures(photos)})


def annotate(store: AnnotationStore, numbers: Sequence[int], **changes: Any) -> None:
    """Accept the true mask of some pictures, in addition to what is there."""
    by_name = {picture.relative: picture for picture in store.pictures.values()}
    for number in numbers:
        picture = by_name[f"{number:02d}.png"]
        there = store.load(picture)
        content = {"id": f"o{len(there.objects)}", "label": "", "rle": encode_rle(true_mask(number)), **changes}
        item = MaskObject.model_validate({"status": "accepted", "source": "clicks", "seconds": 2.0, **content})
        store.save(picture, there.revision, "started", [*there.objects, item])


def weights(path: Path) -> Path:
    """A small model whose head passes for a trained one."""
    torch.manual_seed(0)
    model = create_model("hq_test_tiny", device="cpu")
    fill_parameters(model)
    model.head_state = "trained"
    save_checkpoint(model, path)
    return path
