"""annotations.json: every accepted object, as other parts of the package read it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from hqsam.cli import main
from hqsam.data import open_dataset
from hqsam.images import read_image
from hqsam.models import Sam
from hqsam.rle import decode_rle
from hqsam.serve.coco import write_coco
from hqsam.serve.service import Service, Settings, open_store
from tests.helpers import ROOT
from tests.unit.serve.serving import block, ids, item, mask, put, serving


@pytest.fixture
def annotated(service: Service) -> Path:
    """Three pictures: two objects and a proposal, one object, done without objects."""
    with serving(service) as client:
        first, second, third = ids(client)
        objects = [
            item("one", block((40, 60), 3, 5, 20)),
            item("two", block((40, 60), 25, 30, 12), label="a dog"),
            item("open", mask((40, 60), 2), status="proposed"),
            item("erased", np.zeros((40, 60), bool)),
        ]
        assert put(client, first, 0, objects).status_code == 200
        assert put(client, second, 0, [item("three", block((30, 20), 2, 2, 15), label="")]).status_code == 200
        assert put(client, third, 0, [], "done").status_code == 200
    return service.settings.out / "annotations.json"  # written when the server ends, at the latest


def test_content(annotated: Path) -> None:
    content = json.loads(annotated.read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "../photos/a.png",
        "../photos/b.jpg",
        "../photos/deep/er/c.bmp",
    ]
    assert [entry["name"] for entry in content["categories"]] == ["cat", "a dog", "object"]
    coco = COCO(str(annotated))
    assert len(coco.anns) == 3
    for entry, inside in zip(
        coco.anns.values(),
        (block((40, 60), 3, 5, 20), block((40, 60), 25, 30, 12), block((30, 20), 2, 2, 15)),
        strict=True,
    ):
        assert (coco.annToMask(entry) == inside).all() and entry["area"] == inside.sum()
    assert [entry["category_id"] for entry in coco.anns.values()] == [1, 2, 3]


def test_the_package_reads_it_as_it_is(annotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = open_dataset(annotated)
    assert [len(record.objects) for record in records] == [2, 1]
    for record, size in zip(records, ((40, 60), (30, 20)), strict=True):
        assert read_image(record.image).shape[:2] == size
    assert (records[0].objects[0].mask.decode((40, 60), records[0].image) == 255 * block((40, 60), 3, 5, 20)).all()
    assert main(["check-data", str(annotated), "--workers", "0"]) == 0, capsys.readouterr().out


def test_training_reads_it_as_it_is(annotated: Path, tmp_path: Path) -> None:
    settings = [f"data.train=[{annotated}]", f"output_dir={tmp_path / 'run'}", "loop.max_steps=1", "data.val=[]"]
    assert main(["train", str(ROOT / "configs/train/smoke.yaml"), *settings]) == 0


def test_rebuilding(annotated: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    before = annotated.read_text()
    annotated.unlink()
    command = ["serve", str(service.settings.folder), "--out", str(annotated.parent), "--labels", "cat", "--rebuild"]
    assert main(command) == 0
    assert annotated.read_text() == before
    assert "3 objects in 3 images" in capsys.readouterr().out


def test_damaged_files_and_those_of_missing_pictures_are_named(
    annotated: Path, service: Service, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = (f"{name}.json" for name in service.pictures)
    (annotated.parent / first).write_text("{")
    (service.settings.folder / "b.jpg").unlink()
    command = ["serve", str(service.settings.folder), "--out", str(annotated.parent), "--rebuild"]
    with caplog.at_level(logging.WARNING):
        assert main(command) == 1
    shown = capsys.readouterr().err
    assert first in shown and second in shown and first in caplog.text
    assert json.loads(annotated.read_text())["annotations"] == []


def test_nothing_accepted(service: Service) -> None:
    service.settings.out.mkdir()
    written = write_coco(service.store)
    assert (written.images, written.objects) == (0, 0)
    assert json.loads(written.path.read_text())["annotations"] == []


def test_it_follows_changes_while_the_server_runs(service: Service) -> None:
    service.settings.out.mkdir()
    path, pictures = service.settings.out / "annotations.json", list(service.pictures.values())
    from hqsam.serve.messages import MaskObject

    service.coco.start()
    for picture in pictures:
        new = MaskObject.model_validate(item("x", block((picture.height, picture.width), 0, 0, 9)))
        service.store.save(picture, 0, "done", [new])
    service.coco.close()
    assert len(json.loads(path.read_text())["annotations"]) == 3


def test_pictures_inside_and_beside(photos: Path, model: Sam) -> None:
    """Annotations below the pictures: their names still lead there."""
    settings = Settings(folder=photos, out=photos / "notes", model_name="m")
    with serving(Service(settings, model)) as client:
        put(client, ids(client)[0], 0, [item("one", block((40, 60), 3, 5, 20))])
    (record,) = open_dataset(photos / "notes" / "annotations.json")
    assert record.image.resolve() == (photos / "a.png").resolve()
    assert len(open_store(settings).pictures) == 3


def test_masks_survive_the_whole_way(annotated: Path, service: Service) -> None:
    content = json.loads(annotated.read_text())
    found = [decode_rle(entry["segmentation"]) for entry in content["annotations"]]
    assert (found[1] == block((40, 60), 25, 30, 12)).all()
    assert isinstance(content["annotations"][0]["score"], float)


def test_results_in_the_folder_of_pictures(photos: Path, model: Sam) -> None:
    with pytest.raises(ValueError, match="annotations need one of their own"):
        Service(Settings(folder=photos, out=photos, model_name="m"), model)


def test_labels(photos: Path, tmp_path: Path) -> None:
    for label in ("", "x" * 201, "a\nb"):
        with pytest.raises(ValueError, match="a label is plain text"):
            open_store(Settings(folder=photos, out=tmp_path / "out", model_name="m", labels=[label]))


def test_two_servers_write_what_both_know(service: Service, model: Sam, caplog: Any) -> None:
    other = Service(service.settings, model)
    with serving(service) as first, serving(other) as second:
        a, b, _ = ids(first)
        put(first, a, 0, [item("one", block((40, 60), 3, 5, 20))])
        put(second, b, 0, [item("two", block((30, 20), 3, 5, 10))])
    content = json.loads((service.settings.out / "annotations.json").read_text())
    assert len(content["annotations"]) == 2
