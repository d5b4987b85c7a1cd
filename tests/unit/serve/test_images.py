"""Which pictures are served, under which ids and names, and as what."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.models import Sam
from hqsam.serve import pictures
from hqsam.serve.pictures import find_pictures
from hqsam.serve.service import Service, Settings
from tests.unit.serve.serving import SIZES, draw, ids, serving

ODD_NAMES = ["-rf.png", "a b.png", 'it\'s "x".png', "ünï¢ødé 猫.png", "line\nbreak.png", "%2e%2e%2f.png"]


def decoded(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image.convert("RGB"))


def test_list(client: Any) -> None:
    found = client.get("/api/images").json()
    assert found["total"] == 3
    for row, (name, (height, width)) in zip(found["images"], SIZES.items(), strict=True):
        assert row["id"] == hashlib.sha1(name.encode()).hexdigest()[:16]
        assert (row["name"], row["height"], row["width"]) == (name, height, width)
        assert (row["state"], row["objects"], row["proposals"], row["problem"]) == ("todo", 0, 0, None)
    part = client.get("/api/images", params={"offset": 1, "limit": 1}).json()
    assert part["total"] == 3 and [row["name"] for row in part["images"]] == ["b.jpg"]
    assert client.get("/api/images", params={"offset": 10**30}).json()["images"] == []
    assert client.get("/api/images", params={"limit": 0}).status_code == 422


def test_state(client: Any, model: Sam) -> None:
    state = client.get("/api/state").json()
    assert state["model"]["fusions"] == ["sam", "hq", "sum"] and state["model"]["default_fusion"] == "sum"
    assert state["model"]["image_size"] == model.image_size and state["labels"] == ["cat"]
    assert state["counts"] == {"images": 3, "todo": 3, "started": 0, "done": 0}
    assert not state["browser_decoder"]["available"] and "onnxruntime-web" in state["browser_decoder"]["reason"]


def test_files_of_browsers_go_out_as_they_are_and_others_as_png(client: Any, photos: Path) -> None:
    png, jpeg, bmp = (client.get(f"/api/images/{name}/file") for name in ids(client))
    assert png.headers["content-type"] == "image/png" and png.content == (photos / "a.png").read_bytes()
    assert jpeg.headers["content-type"] == "image/jpeg" and jpeg.content == (photos / "b.jpg").read_bytes()
    assert bmp.headers["content-type"] == "image/png"
    assert (decoded(bmp.content) == read_image(photos / "deep/er/c.bmp")).all()


def test_thumbnails(client: Any, photos: Path) -> None:
    draw(photos / "big.png", (600, 300))
    for name in ids(client):
        answer = client.get(f"/api/images/{name}/thumbnail")
        assert answer.headers["content-type"] == "image/jpeg" and max(decoded(answer.content).shape) <= 256
    big = next(picture for picture in find_pictures(photos) if picture.relative == "big.png")
    assert decoded(big.thumbnail()).shape == (256, 128, 3)


@pytest.mark.parametrize("what", ["file", "thumbnail"])
def test_a_browser_asks_again_and_gets_only_what_changed(client: Any, photos: Path, what: str) -> None:
    address = f"/api/images/{ids(client)[0]}/{what}"
    first = client.get(address)
    assert first.headers["cache-control"] == "private, no-cache"
    known = {"if-none-match": first.headers["etag"]}
    again = client.get(address, headers=known)
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    pixels = read_image(photos / "a.png")
    Image.fromarray(255 - pixels).save(photos / "a.png", compress_level=1)
    changed = client.get(address, headers=known)
    assert changed.status_code == 200 and changed.content != first.content
    (photos / "a.png").unlink()
    assert client.get(address, headers=known).status_code not in (200, 304)


def test_a_picture_put_in_the_place_of_another_has_another_tag(client: Any, photos: Path, tmp_path: Path) -> None:
    """Unpacked archives and tools that keep times give different files one size and one time."""
    folders = [tmp_path / name for name in ("first", "second")]
    for seed, folder in enumerate(folders):
        os.utime(draw(folder / "a.bmp", (8, 8), seed), (0, 0))
    first, second = (find_pictures(folder)[0] for folder in folders)  # of two servers, one after the other on one port
    assert first.id == second.id and first.tag() != second.tag()
    address, path = f"/api/images/{ids(client)[2]}/file", photos / "deep/er/c.bmp"
    known, before = {"if-none-match": client.get(address).headers["etag"]}, path.stat()
    height, width = SIZES["deep/er/c.bmp"]
    os.utime(draw(path, (width, height)), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert client.get(address, headers=known).status_code == 422


def test_pictures_of_telephones_go_out_as_they_are(photos: Path) -> None:
    first, second = (Image.new("RGB", (30, 20), color) for color in ("red", "blue"))
    first.save(photos / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    found = {picture.relative: picture for picture in find_pictures(photos)}
    assert found["phone.jpg"].file() == ((photos / "phone.jpg").read_bytes(), "image/jpeg")
    assert (found["phone.jpg"].read()[..., 0] > 200).all()


def test_turned_pictures_are_upright(photos: Path, model: Sam, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    for name in ("turned.png", "turned.jpg"):
        Image.fromarray(pixels).save(photos / name, exif=exif)
    found = {picture.relative: picture for picture in find_pictures(photos)}
    assert (found["turned.png"].height, found["turned.png"].width) == (30, 20)
    content, kind = found["turned.png"].file()  # not every browser turns PNG files
    assert kind == "image/png" and (decoded(content) == read_image(photos / "turned.png")).all()
    assert found["turned.jpg"].file() == ((photos / "turned.jpg").read_bytes(), "image/jpeg")


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not allow")
def test_odd_names(tmp_path: Path, model: Sam) -> None:
    folder = tmp_path / "photos"
    for name in ODD_NAMES:
        draw(folder / name, (8, 8))
    draw(folder / "-x y" / "ö.png", (8, 8))
    with serving(Service(Settings(folder=folder, out=tmp_path / "out", model_name="m"), model)) as client:
        rows = client.get("/api/images").json()["images"]
        assert {row["name"] for row in rows} == {*ODD_NAMES, "-x y/ö.png"}
        for row in rows:
            assert client.get(f"/api/images/{row['id']}/file").content == (folder / row["name"]).read_bytes()
            saved = client.put(
                f"/api/images/{row['id']}/annotations", json={"revision": 0, "state": "done", "objects": []}
            )
            assert saved.json() == {"revision": 1}
            assert client.get(f"/api/images/{row['id']}/annotations").json()["state"] == "done"


def test_what_is_left_out(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "secret.png", (8, 8))
    (photos / "link.png").symlink_to(tmp_path / "secret.png")
    (photos / "folder").symlink_to(tmp_path, target_is_directory=True)
    (photos / "nothing.png").symlink_to(photos / "missing.png")
    (photos / "inside.png").symlink_to(photos / "a.png")
    (photos / "text.png").write_text("not a picture")
    (photos / "empty.jpg").write_bytes(b"")
    draw(photos / ".hidden.png", (8, 8))
    draw(photos / ".folder" / "x.png", (8, 8))
    draw(photos / "results" / "x.png", (8, 8))
    (photos / "notes.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        found = [picture.relative for picture in find_pictures(photos, photos / "results")]
    assert found == ["a.png", "b.jpg", "deep/er/c.bmp", "inside.png"]
    for name in ("link.png", "nothing.png", "text.png", "empty.jpg"):
        assert repr(name) in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such names")
def test_a_name_that_is_no_text_is_left_out(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.link(os.fsencode(photos / "a.png"), os.fsencode(photos) + b"/\xff.png")
    assert len(find_pictures(photos)) == 3
    assert "not UTF-8" in caplog.text


def test_a_picture_of_too_many_pixels_is_left_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40 * 60 - 1)
    assert [picture.relative for picture in find_pictures(photos)] == ["b.jpg", "deep/er/c.bmp"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, above which it raises
    with pytest.raises(DataError, match="no pictures"):
        find_pictures(photos)


def save_with_exif_at_the_end(path: Path, orientation: int) -> None:
    """A turned PNG whose orientation is told behind the pixels, where Pillow does not write it."""
    exif = Image.Exif()
    exif[274] = orientation
    content = exif.tobytes().removeprefix(b"Exif\x00\x00")
    chunk = b"eXIf" + content
    whole, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
    path.write_bytes(whole + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end)


@pytest.mark.parametrize("limit", [40 * 60, 40 * 60 - 1])
def test_no_png_is_decoded_to_be_listed_or_left_out(photos: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    if limit < 40 * 60:
        save_with_exif_at_the_end(photos / "a.png", 6)
    monkeypatch.setattr(pictures, "MAX_PIXELS", limit)
    monkeypatch.setattr(PngImageFile, "load", lambda _: pytest.fail("decoded"))
    assert len(find_pictures(photos)) == (3 if limit == 40 * 60 else 2)


def test_an_orientation_behind_the_pixels(photos: Path) -> None:
    save_with_exif_at_the_end(photos / "a.png", 6)
    picture = next(picture for picture in find_pictures(photos) if picture.relative == "a.png")
    assert (picture.height, picture.width) == picture.read().shape[:2] == (60, 40)
    assert (decoded(picture.file()[0]) == picture.read()).all()


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_pictures(tmp_path / "none")
    with pytest.raises(DataError, match="no pictures"):
        find_pictures(tmp_path)


def test_a_picture_that_became_a_link_is_not_served(client: Any, photos: Path, tmp_path: Path) -> None:
    secret = draw(tmp_path / "secret.png", (40, 60), seed=9)
    name = ids(client)[0]
    (photos / "a.png").unlink()
    (photos / "a.png").symlink_to(secret)
    for what in ("file", "thumbnail"):
        answer = client.get(f"/api/images/{name}/{what}")
        assert answer.status_code == 422 and "not in the folder any more" in answer.json()["detail"]


@pytest.mark.parametrize("change", ["gone", "damaged", "other size", "no image"])
def test_pictures_that_changed(client: Any, photos: Path, change: str) -> None:
    name, path = ids(client)[0], photos / "a.png"
    if change == "gone":
        path.unlink()
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:200])
    elif change == "other size":
        draw(path, (41, 60))
    else:
        path.write_text("<script>")
    client.get("/api/state")
    for call in (
        client.get(f"/api/images/{name}/thumbnail"),
        client.get(f"/api/images/{name}/file") if change != "damaged" else client.get(f"/api/images/{name}/thumbnail"),
    ):
        assert call.status_code == 422
        assert str(photos) not in call.text and "a.png" in call.text


def test_unknown_ids(client: Any) -> None:
    for name in ("0" * 16, "a.png", "..", "%2e%2e%2fa.png", "x" * 5000):
        for what in ("file", "thumbnail", "annotations", "embedding"):
            assert client.get(f"/api/images/{name}/{what}").status_code == 404
        assert client.post(f"/api/images/{name}/proposals").status_code == 404
    for path in (
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page//etc/passwd",
        "/runtime/x.wasm",
        "/page/",
        "/nothing",
    ):
        assert client.get(path).status_code == 404
