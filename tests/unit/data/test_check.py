"""Parts of the data check: how masks are stored, hints, and finding photographs again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hqsam.data import ImageRecord, ObjectRecord, open_dataset
from hqsam.data.check import inspect_record, photo_hash, photo_hashes, same_photos
from hqsam.data.check.cache import VerdictCache
from hqsam.data.check.mask_files import describe_mask_file
from hqsam.images import read_image

DISC = np.hypot(*(np.mgrid[:60, :80] - np.array([30, 40])[:, None, None])) < 20


def found(folder: Path, mask: np.ndarray, label: int | None = None, size: tuple[int, int] | None = None) -> set[str]:
    """Kinds of findings about a noisy image with a mask."""
    pixels = np.random.default_rng(0).integers(0, 256, (*(size or mask.shape), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    record = ImageRecord(
        key="a/b",
        set_name="a",
        source="a",
        image=folder / "image.png",
        objects=(ObjectRecord(mask=folder / "mask.png", label=label),),
    )
    return {finding.kind for finding in inspect_record(record).findings}


def test_ways_of_storing_a_mask(tmp_path: Path) -> None:
    grey = DISC.astype(np.uint8)
    stored = {
        "1 bit": Image.fromarray(grey * 255).convert("1"),
        "0/1": Image.fromarray(grey),
        "0/255": Image.fromarray(grey * 255),
        "soft": Image.fromarray(grey * 255).resize((200, 150)),
        "grey values": Image.fromarray(grey * 7),
        "palette": Image.fromarray(grey, "P"),
        "16 bit": Image.fromarray(grey.astype(np.uint16) * 65535),
        "equal colour channels": Image.fromarray(grey * 255).convert("RGB"),
        "colour": Image.fromarray(grey[..., None] * np.uint8([255, 0, 0])),
        "alpha channel": Image.fromarray(grey[..., None] * np.uint8([0, 0, 0, 255])),
    }
    stored["palette"].putpalette([0, 0, 0, 200, 0, 0])
    for kind, image in stored.items():
        image.save(tmp_path / "mask.png")
        description = describe_mask_file(tmp_path / "mask.png")
        assert description is not None
        assert description == (kind, (image.height, image.width))
    (tmp_path / "mask.png").write_bytes(b"no")
    assert describe_mask_file(tmp_path / "mask.png") is None


def test_warnings_and_hints(tmp_path: Path) -> None:
    mask = DISC * np.uint8(255)
    assert found(tmp_path, mask) == set()
    assert found(tmp_path, DISC.astype(np.uint8)) == {"zero_one"}
    assert found(tmp_path, 255 - mask) == {"looks_inverted"}
    assert found(tmp_path, np.full((60, 80), 255, np.uint8)) == {"fills_image"}
    small = np.zeros((60, 80), np.uint8)
    small[5:8, 5:8] = 255
    assert found(tmp_path, small) == {"tiny_object"}
    soft = np.asarray(Image.fromarray(mask).resize((160, 120)))
    assert found(tmp_path, soft) == set()
    assert found(tmp_path, soft, label=-1) == {"soft_as_binary"}
    dots = np.zeros((60, 80), np.uint8)
    dots[::4, ::4] = 255
    assert found(tmp_path, dots) == {"many_parts"}
    assert found(tmp_path, np.where(dots, 0, 255).astype(np.uint8)[1:-1, 1:-1]) == {"many_holes", "looks_inverted"}
    assert found(tmp_path, np.full((40, 20), 255, np.uint8)) == {"fills_image", "small_image"}
    band = np.zeros((40, 400), np.uint8)
    band[10:20, 50:90] = 255
    assert found(tmp_path, band) == {"long_image"}


@pytest.mark.parametrize("change", ["resized", "recompressed", "mirrored", "darker"])
def test_a_photograph_is_found_again(change: str, samples: Path, tmp_path: Path) -> None:
    paths = sorted(samples.glob("*.jpg")) + sorted(samples.glob("*.png"))
    photos = [read_image(path) for path in paths]
    assert len(photos) >= 4
    changed = []
    for photo in photos:
        image = Image.fromarray(photo)
        if change == "resized":
            image = image.resize((301, 277))
        elif change == "mirrored":
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        elif change == "darker":
            image = image.point(lambda value: round(value * 0.7))
        image.save(tmp_path / "copy.jpg", quality=40 if change == "recompressed" else 90)
        changed.append(photo_hashes(read_image(tmp_path / "copy.jpg")))
    pairs = list(same_photos([photo_hashes(photo) for photo in photos], changed))
    assert [(pair.first, pair.second, pair.mirrored) for pair in pairs] == [
        (k, k, change == "mirrored") for k in range(len(photos))
    ]


def test_pairs_against_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    base = [int(value) for value in rng.integers(0, 2**63, 40)]
    near = [value ^ (1 << int(rng.integers(63))) ^ (1 << int(rng.integers(63))) for value in base]
    hashes = [(value, value ^ (2**64 - 1)) for value in base + near]
    hashes[7:7] = [None]
    expected = []
    for i, one in enumerate(hashes):
        for j in range(i + 1, len(hashes)):
            if one is not None and (other := hashes[j]) is not None:
                distances = [bin(one[0] ^ value).count("1") for value in other]
                if min(distances) <= 4:
                    expected.append((i, j, min(distances), distances[1] < distances[0]))
    assert len(expected) >= 40
    monkeypatch.setattr(photo_hash, "_BLOCK", 7 * 80)
    assert sorted(same_photos(hashes, limit=4)) == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)  # NumPy 1 has none
    assert sorted(same_photos(hashes, limit=4)) == expected
    whole = sorted(same_photos(hashes, hashes, limit=4))
    assert {(i, j) for i, j, *_ in whole if i < j} == {(i, j) for i, j, *_ in expected}


def test_pictures_without_contrast_match_nothing() -> None:
    assert photo_hashes(np.full((50, 60, 3), 90, np.uint8)) is None
    assert list(same_photos([None, None])) == []


def test_packs_of_real_photographs(shared_data: Path) -> None:
    """75 rows name photographs of BSDS; of one of them the two pictures are not the same."""
    rows = (shared_data / "bsds_in_train512.txt").read_text().splitlines()
    rows = [row.split() for row in rows if not row.startswith("#")]
    rows = [row for row in rows if row[0] != "ecssd_0630.jpg"]
    ours = [photo_hashes(read_image(shared_data / "train512" / "images" / name)) for name, _ in rows]
    theirs = [photo_hashes(read_image(shared_data / "bsds500" / "images" / name)) for _, name in rows]
    assert [(pair.first, pair.second) for pair in same_photos(ours, theirs)] == [(k, k) for k in range(len(rows))]


def coco(folder: Path, width: int, corner: int) -> list[ImageRecord]:
    """Two polygons on one image of 60 x 40 pixels; the file says how wide the image is."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / "a.png")
    polygons = [[[2, 2, corner, 2, corner, corner]], [[5, 5, 5.2, 5, 5.2, 5.2]]]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": width}],
        "annotations": [{"id": k + 7, "image_id": 1, "segmentation": polygon} for k, polygon in enumerate(polygons)],
    }
    (folder / "objects.json").write_text(json.dumps(content))
    return open_dataset(folder / "objects.json")


def test_annotation_files_are_checked_like_masks(tmp_path: Path) -> None:
    (right,) = coco(tmp_path, 60, 30)
    kinds = [(one.kind, one.object) for one in inspect_record(right).findings]
    assert ("empty_object", 1) in kinds and not [kind for kind, number in kinds if number == 0]
    (wrong,) = coco(tmp_path, 61, 30)
    findings = [one for one in inspect_record(wrong).findings if one.kind == "size_mismatch"]
    assert len(findings) == 2 and "annotation 7 of" in findings[0].text and "objects.json" in findings[0].file


def test_a_verdict_on_annotations_holds_until_they_change(tmp_path: Path) -> None:
    (record,) = coco(tmp_path, 60, 30)
    cache = VerdictCache(tmp_path / "kept")
    cache.put(record, inspect_record(record), use_alpha=False)
    cache.save()
    (again,) = coco(tmp_path, 60, 30)  # other objects in memory, and a file of another time
    os.utime(tmp_path / "a.png", ns=(1, 1))
    cache = VerdictCache(tmp_path / "kept")
    assert cache.get(again, use_alpha=False) is None  # the image was touched
    cache.put(again, inspect_record(again), use_alpha=False)
    assert cache.get(again, use_alpha=False) is not None
    (other,) = coco(tmp_path, 60, 31)
    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert cache.get(other, use_alpha=False) is None
