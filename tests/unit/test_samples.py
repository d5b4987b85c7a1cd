"""The photographs that the repository carries: small, licensed, and consistent with their masks and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.boxes import mask_to_box
from hqsam.images import read_image
from tests.helpers import ROOT

FOLDER = ROOT / "data" / "samples"
INDEX = json.loads((FOLDER / "index.json").read_text("utf-8"))
PROMPTS = json.loads((FOLDER / "prompts.json").read_text("utf-8"))


def test_every_picture_is_listed_everywhere() -> None:
    pictures = {path.name for path in FOLDER.iterdir() if path.suffix in (".jpg", ".png")}
    licences = (FOLDER / "LICENSES.md").read_text("utf-8")
    assert pictures == {entry["image"] for entry in INDEX} == set(PROMPTS)
    for name in pictures:
        assert f"| `{name}`" in licences
        assert (FOLDER / name).stat().st_size <= 200_000


@pytest.mark.parametrize("entry", INDEX, ids=lambda entry: entry["image"])
def test_masks_fit_their_pictures(entry: dict) -> None:
    mask = np.array(Image.open(FOLDER / entry["mask"]))
    assert set(np.unique(mask)) == {0, 255}
    assert mask.shape == read_image(FOLDER / entry["image"]).shape[:2] == (entry["h"], entry["w"])
    (described,) = entry["objects"]
    assert described["area"] == int((mask > 0).sum())
    box = mask_to_box(mask)
    assert box is not None
    assert described["bbox_xyxy"] == [*box[:2].tolist(), *(box[2:] + 1).tolist()]
    (prompt,) = [prompt for prompt in PROMPTS[entry["image"]] if prompt["name"] == described["name"]]
    assert prompt["box"] == box.tolist()
    for x, y, label in prompt["points"]:
        assert mask[y, x] == (255 if label else 0)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_lie_inside(name: str) -> None:
    height, width = read_image(FOLDER / Path(name)).shape[:2]
    for prompt in PROMPTS[name]:
        x0, y0, x1, y1 = prompt["box"]
        assert 0 <= x0 < x1 < width and 0 <= y0 < y1 < height
        assert all(0 <= x < width and 0 <= y < height and label in (0, 1) for x, y, label in prompt["points"])
