"""Images with masks to train on, generated, so that a benchmark needs no file."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from hqsam.data.synthetic import generate_scene


def write_pictures(folder: Path, count: int, size: int) -> Path:
    """Write `images/*.jpg` and `masks/*.png` of generated scenes, one object each; the same ones in every run.

    Args:
        folder: where.
        count: how many.
        size: side in pixels.
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for seed in range(count):
        scene = generate_scene(seed, size)
        largest = max(scene.masks, key=lambda mask: int(mask.sum(dtype="int64")))
        Image.fromarray(scene.image).save(folder / "images" / f"{seed:03d}.jpg", quality=95)
        Image.fromarray(largest).save(folder / "masks" / f"{seed:03d}.png")
    return folder
