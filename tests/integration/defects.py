"""Data sets with one defect each, and the name of the file that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.integration.training_runs import draw_data


def truncated_image(folder: Path) -> str:
    pixels = Image.open(folder / "images" / "03.png")
    (folder / "images" / "03.png").unlink()
    pixels.save(folder / "images" / "03.jpg", quality=95)
    content = (folder / "images" / "03.jpg").read_bytes()
    (folder / "images" / "03.jpg").write_bytes(content[: len(content) * 9 // 10])
    return "03.jpg"


def no_image(folder: Path) -> str:
    (folder / "images" / "03.png").write_bytes(b"not an image")
    return "03.png"


def truncated_mask(folder: Path) -> str:
    content = (folder / "masks" / "03.png").read_bytes()
    (folder / "masks" / "03.png").write_bytes(content[: len(content) // 2])
    return "03.png"


def other_size(folder: Path) -> str:
    Image.new("L", (40, 30), 255).save(folder / "masks" / "03.png")
    return "03.png"


def turned_by_exif(folder: Path) -> str:
    image = Image.open(folder / "images" / "03.png").convert("RGB").resize((100, 60))
    exif = Image.Exif()
    exif[274] = 6
    image.save(folder / "images" / "03.png", exif=exif)
    Image.new("L", (100, 60), 255).save(folder / "masks" / "03.png")
    return "03.png"


def coloured_mask(folder: Path) -> str:
    mask = np.asarray(Image.open(folder / "masks" / "03.png"))
    Image.fromarray(np.stack([mask, mask * 0, mask * 0], axis=-1)).save(folder / "masks" / "03.png")
    return "03.png"


def mask_in_alpha(folder: Path) -> str:
    mask = np.asarray(Image.open(folder / "masks" / "03.png"))
    Image.fromarray(np.stack([mask * 0, mask * 0, mask * 0, mask], axis=-1)).save(folder / "masks" / "03.png")
    return "03.png"


def float_mask(folder: Path) -> str:
    mask = np.asarray(Image.open(folder / "masks" / "03.png"), dtype=np.float32)
    Image.fromarray(mask).save(folder / "masks" / "03.tif")
    (folder / "masks" / "03.png").unlink()
    return "03.tif"


def empty_mask(folder: Path) -> str:
    size = Image.open(folder / "masks" / "03.png").size
    Image.new("L", size).save(folder / "masks" / "03.png")
    return "03.png"


def class_numbers(folder: Path) -> str:
    mask = np.asarray(Image.open(folder / "masks" / "03.png"))
    Image.fromarray((mask > 0).astype(np.uint8) * 3).save(folder / "masks" / "03.png")
    return "03.png"


def image_alone(folder: Path) -> str:
    (folder / "masks" / "03.png").unlink()
    return "03.png"


def mask_alone(folder: Path) -> str:
    (folder / "images" / "03.png").unlink()
    return "03.png"


def twins(folder: Path) -> str:
    Image.open(folder / "images" / "03.png").save(folder / "images" / "03.jpg")
    return "03.jpg"


DEFECTS: dict[str, tuple[Callable[[Path], str], str]] = {
    "truncated image": (truncated_image, "image_unreadable"),
    "no image": (no_image, "image_unreadable"),
    "truncated mask": (truncated_mask, "mask_unreadable"),
    "other size": (other_size, "size_mismatch"),
    "turned by exif": (turned_by_exif, "size_mismatch"),
    "coloured mask": (coloured_mask, "mask_coloured"),
    "mask in alpha": (mask_in_alpha, "mask_in_alpha"),
    "float mask": (float_mask, "mask_unusable"),
    "empty mask": (empty_mask, "empty_object"),
    "class numbers": (class_numbers, "empty_object"),
    "image alone": (image_alone, "image_without_mask"),
    "mask alone": (mask_alone, "mask_without_image"),
    "twins": (twins, "same_stem"),
}
"""Name -> what makes the defect and returns the file's name, and the kind under which it is found."""


def defective_data(folder: Path, name: str) -> str:
    """Draw a data set of five images, the fourth with a defect; returns the name of its file."""
    draw_data(folder, count=5)
    return DEFECTS[name][0](folder)
