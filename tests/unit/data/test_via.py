"""NDD20 in its layout, generated."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqsam.data import load_object_masks, open_dataset
from hqsam.data.via import read_via
from hqsam.errors import DataError
from hqsam.images import write_image


def region(*corners: tuple[float, float], shape: str = "polyline", **attributes: str) -> dict[str, Any]:
    xs, ys = ([corner[axis] for corner in corners] for axis in (0, 1))
    drawn = {"name": shape, "all_points_x": xs, "all_points_y": ys}
    return {"shape_attributes": drawn, "region_attributes": attributes}


def content() -> dict[str, Any]:
    square = region((5, 5), (15, 5), (15, 15), (5, 15), species="WBD", id="7")
    triangle = region((0, 0), (29, 0), (0, 19), shape="polygon", species="BND")
    speck = region((3, 3), (9, 9), species="BND")
    regions = {"9.jpg": [square, speck], "10.jpg": [triangle, square], "11.jpg": []}
    return {
        f"{name}{k}": {"filename": name, "size": k, "regions": found, "file_attributes": {}}
        for k, (name, found) in enumerate(regions.items())
    }


def made(root: Path, labels: Any = None) -> Path:
    for name in ("9.jpg", "10.jpg", "11.jpg"):
        write_image(root / f"NDD20/ABOVE/{name}", np.zeros((20, 30, 3), dtype=np.uint8))
    (root / "NDD20/ABOVE_LABELS.json").write_text(json.dumps(content() if labels is None else labels))
    return root / "NDD20/ABOVE_LABELS.json"


def test_ndd20(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path)
    with caplog.at_level(logging.WARNING):
        records = open_dataset("ndd20_above", root=tmp_path)
    assert "1 of 4 annotations have no area and are left out" in caplog.text
    assert [(r.key, [obj.name for obj in r.objects]) for r in records] == [
        ("ndd20_above/10.jpg", ["BND", "WBD"]),
        ("ndd20_above/9.jpg", ["WBD"]),
    ]
    (triangle, square), (alone,) = (load_object_masks(r.objects, (20, 30), r.image) for r in records)
    assert np.array_equal(np.argwhere(square)[[0, -1]], [[5, 5], [14, 14]]) and np.array_equal(square, alone)
    assert triangle[1, 1] == 255 and triangle[18, 28] == 0 and 250 < np.count_nonzero(triangle) < 330
    with pytest.raises(DataError, match=r"below water.*BELOW and .*BELOW_LABELS\.json.*Newcastle"):
        open_dataset("ndd20", root=tmp_path)


def test_other_exports_of_the_annotator(tmp_path: Path) -> None:
    """Version 1 numbers the regions, a project wraps the entries; attributes may be missing."""
    file = made(tmp_path)
    expected = [r.key for r in read_via(file, file.parent / "ABOVE", "set")]
    entries = content()
    for entry in entries.values():
        entry["regions"] = {str(k): {"shape_attributes": r["shape_attributes"]} for k, r in enumerate(entry["regions"])}
    made(tmp_path, {"_via_settings": {}, "_via_img_metadata": entries})
    records = read_via(file, file.parent / "ABOVE", "set")
    assert [r.key for r in records] == expected and records[0].objects[0].name == ""


def changed(**changes: Any) -> dict[str, Any]:
    """One image with one region; keys of the entry, or "shape" for those of its shape."""
    entry = {"filename": "9.jpg", "regions": [region((0, 0), (9, 0), (9, 9))], **changes}
    entry["regions"][0]["shape_attributes"].update(entry.pop("shape", {}))
    return {"9.jpg1": entry}


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([], "is no file of the VGG Image Annotator"),
        ({"a": {"regions": []}}, "lacks 'filename'"),
        ({**changed(), **{"b": changed()["9.jpg1"]}}, r"about 9\.jpg more than once"),
        (changed(filename="8.jpg"), r"1 images that are not in .*8\.jpg"),
        (changed(shape={"name": "ellipse"}), r"9\.jpg, region 0 is a ellipse; outlines are polygon or polyline"),
        (changed(shape={"all_points_y": [1]}), r"region 0 has 3 x and 1 y"),
        (changed(shape={"all_points_x": [0, float("inf"), 3]}), r"region 0: a corner of a polygon is not finite"),
        (changed(shape={"all_points_x": [0], "all_points_y": [0]}), "has no outline"),
        (changed(shape={"all_points_x": None}), "is no file of the VGG Image Annotator"),
    ],
)
def test_defects(tmp_path: Path, labels: Any, text: str) -> None:
    file = made(tmp_path, labels)
    with pytest.raises(DataError, match=text):
        read_via(file, file.parent / "ABOVE", "set")
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_via(file, file.parent / "ABOVE", "set")
