"""Generated scenes as files: an `index.json` pack to validate or evaluate on."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np

from hqsam.data.seeding import derive_seed
from hqsam.data.synthetic.scene import generate_scene
from hqsam.errors import OutputError

_INSIDE = 128
"""Share of a pixel's colour, of 255, above which it belongs to an object; at most one has so much."""


def write_scenes(folder: Path, count: int, size: int, *, seed: int = 0, kinds: Collection[str] | None = None) -> Path:
    """Write scenes that no training run shows: their seeds are of a stream of their own.

    Args:
        folder: where `index.json`, `images/` and `labels/` go; what is there is replaced.
        count: number of scenes.
        size: side of the squares in pixels.
        seed: other scenes for another seed.
        kinds: kinds of objects, as for `generate_scene`.

    Returns:
        The index, complete when it appears: it is written last.

    Raises:
        OutputError: a file cannot be written.
        ValueError: there is no such kind.
    """
    from PIL import Image

    entries = []
    try:
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = generate_scene(derive_seed(seed, "held out scene", number), size, kinds=kinds)
            labels = np.zeros(scene.image.shape[:2], dtype=np.uint8)
            for label, mask in enumerate(scene.masks, start=1):
                labels[mask > _INSIDE] = label
            objects = [
                {"label": label, "name": name}
                for label, name in enumerate(scene.names, start=1)
                if (labels == label).any()
            ]
            files = f"images/{number:05d}.png", f"labels/{number:05d}.png"
            Image.fromarray(scene.image).save(folder / files[0])
            Image.fromarray(labels).save(folder / files[1])
            entries.append(
                {"image": files[0], "mask": files[1], "kind": "index", "source": "scenes", "objects": objects}
            )
        (folder / "index.json").write_text(json.dumps(entries), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write generated scenes to {folder}: {error.strerror or error}") from error
    return folder / "index.json"
