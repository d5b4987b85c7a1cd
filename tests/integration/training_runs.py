"""Small training runs: drawn photographs in folders, a test model, a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

from hqsam.engine.config import load_config
from hqsam.engine.train_config import TrainConfig

NUM_IMAGES = 10


def draw_data(folder: Path, count: int = NUM_IMAGES, seed: int = 0) -> Path:
    """`images/` and `masks/` with one shape on a noisy ground each; sizes differ."""
    rng = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for k in range(count):
        width, height = int(rng.integers(90, 150)), int(rng.integers(90, 150))
        mask = Image.new("L", (width, height))
        x, y = (int(v) for v in rng.integers(10, 30, 2))
        shape = ImageDraw.Draw(mask)
        (shape.ellipse if k % 2 else shape.rectangle)((x, y, x + 50, y + 45), fill=255)
        inside = np.asarray(mask)[..., None] > 0
        pixels = np.where(inside, rng.integers(0, 256, 3), rng.integers(0, 256, 3)) + rng.normal(
            0, 12, (height, width, 3)
        )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{k:02d}.png")
        mask.save(folder / "masks" / f"{k:02d}.png")
    return folder


def make_config(data: Path, output: Path, *overrides: str) -> TrainConfig:
    """A run of the small model on drawn data, nothing written but the state at the end."""
    base = [
        f"output_dir={output}",
        f"data.train=[{data}]",
        "device=cpu",
        "model.name=hq_test_tiny",
        "model.random_weights=true",
        "data.workers=0",
        "loop.batch_size=2",
        "loop.max_steps=10",
        "loop.log_every=1",
        "loop.save_every=100",
        "loop.panels=0",
    ]
    return load_config(TrainConfig, None, [*base, *overrides])


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters and buffers by name."""
    pairs = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in pairs}


def content(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """Strings and bytes of the tensors in a `.safetensors` file; the order of its header is by chance."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in sorted(file.keys())}
