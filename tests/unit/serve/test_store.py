"""Annotation files: nobody overwrites what they have not seen, and nothing damaged is overwritten at all."""

from __future__ import annotations

import json
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqsam.models import Sam
from hqsam.serve.messages import MaskObject
from hqsam.serve.pictures import find_pictures
from hqsam.serve.service import Service
from hqsam.serve.store import AnnotationStore, ConflictError, DamagedFileError
from tests.unit.serve.serving import ids, item, mask, put, serving

WORKERS, EACH = 4, 12


def test_what_is_saved_comes_back(client: Any, service: Service) -> None:
    image, inside = ids(client)[0], mask((40, 60))
    empty = {"revision": 0, "width": 60, "height": 40, "state": "todo", "objects": []}
    assert client.get(f"/api/images/{image}/annotations").json() == empty
    prompts = {"points": [[1.5, 2, 1], [3, 4, 0]], "box": [0, 0, 9.5, 9]}
    given = item("one", inside, label='a <b> & "ü"', score=0.5, prompts=prompts, seconds=2.5)
    assert put(client, image, 0, [given]).json() == {"revision": 1}
    found = client.get(f"/api/images/{image}/annotations").json()
    assert found["revision"] == 1 and found["state"] == "started"
    (entry,) = found["objects"]
    ys, xs = np.nonzero(inside)
    assert entry.pop("area") == inside.sum()
    assert entry.pop("bbox") == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
    assert entry == given
    content = json.loads((service.settings.out / f"{image}.json").read_text())
    assert content["image"] == "a.png" and content["revision"] == 1 and len(content["objects"]) == 1
    # what was read can be written, with what the server added
    assert put(client, image, 1, client.get(f"/api/images/{image}/annotations").json()["objects"]).status_code == 200
    assert put(client, image, 2, [], "done").json() == {"revision": 3}
    row = client.get("/api/images").json()["images"][0]
    assert (row["state"], row["objects"]) == ("done", 0)


def test_who_did_not_see_the_newest_revision_changes_nothing(client: Any) -> None:
    image, inside = ids(client)[0], mask((40, 60))
    assert put(client, image, 0, [item("one", inside)]).status_code == 200
    for revision in (0, 2):
        answer = put(client, image, revision, [])
        assert answer.status_code == 409
        assert answer.json()["current"] == client.get(f"/api/images/{image}/annotations").json()
        assert answer.json()["current"]["objects"][0]["id"] == "one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rle": {"size": [60, 40], "counts": "x"}}, "has size"),
        ({"rle": {"size": [40, 60], "counts": "1"}}, "run lengths add up to 1"),
        ({"rle": {"size": [40, 60], "counts": "ü\u0000"}}, "run lengths must be"),
        ({"rle": {"size": [40, 60], "counts": "o" * 30}}, "run lengths must be"),
        ({"rle": {"size": [10**30, 60], "counts": ""}}, "size"),
        ({"rle": {"size": [40], "counts": ""}}, "size"),
        ({"rle": None}, "rle"),
        ({"id": ""}, "id"),
        ({"id": "x" * 101}, "id"),
        ({"label": "x" * 201}, "label"),
        ({"label": "two\nlines"}, "label"),
        ({"label": None}, "label"),
        ({"status": "maybe"}, "status"),
        ({"source": "guess"}, "source"),
        ({"seconds": -1}, "seconds"),
        ({"prompts": {"points": [[1, 2, 3]]}}, "prompts"),
        ({"prompts": {"points": [], "box": [1, 2, 3]}}, "prompts"),
    ],
)
def test_malformed_objects(client: Any, change: dict[str, Any], message: str) -> None:
    image = ids(client)[0]
    answer = put(client, image, 0, [{**item("one", mask((40, 60))), **change}])
    assert answer.status_code == 422 and message in answer.json()["detail"]
    assert client.get(f"/api/images/{image}/annotations").json()["revision"] == 0


def test_malformed_bodies(client: Any) -> None:
    image = ids(client)[0]
    address, headers = f"/api/images/{image}/annotations", {"content-type": "application/json"}
    good = json.dumps(item("one", mask((40, 60))))
    for body in (
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"revision": NaN, "state": "todo", "objects": []}',
        '{"revision": -1, "state": "todo", "objects": []}',
        f'{{"revision": {"9" * 5000}, "state": "todo", "objects": []}}',
        '{"revision": 0, "state": "later", "objects": []}',
        '{"revision": 0, "state": "todo", "objects": {}}',
        f'{{"revision": 0, "state": "todo", "objects": [{good}, {good}]}}',
        '{"revision": 0, "state": "todo", "objects": [' + good.replace('"cat"', '"\\ud800"') + "]}",
        '{"revision": 0, "state": "todo", "objects": [' + good.replace('"accepted"', '"accepted", "score": NaN') + "]}",
        '{"revision": 0, "state": "todo", "objects": ['
        + good.replace('"accepted"', '"accepted", "score": 1e999')
        + "]}",
    ):
        answer = client.put(address, content=body, headers=headers)
        assert answer.status_code in (400, 422), body[:80]
        assert isinstance(answer.json()["detail"], str) and len(answer.text) < 2000
    assert client.put(address, content=b"\xff\xfe{", headers=headers).status_code in (400, 422)


def test_an_empty_mask_can_be_saved(client: Any) -> None:
    image = ids(client)[0]
    assert put(client, image, 0, [item("one", np.zeros((40, 60), bool))]).status_code == 200
    (entry,) = client.get(f"/api/images/{image}/annotations").json()["objects"]
    assert entry["area"] == 0 and entry["bbox"] == [0, 0, 0, 0]


DAMAGES: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "newer": lambda text: text.replace('"format_version": "1"', '"format_version": "2"'),
    "another image's": lambda text: text.replace("a.png", "b.jpg"),
    "mask": lambda text: text.replace('"counts": "', '"counts": "1'),
    "twice": lambda text: json.dumps({**json.loads(text), "objects": json.loads(text)["objects"] * 2}),
    "nested": lambda text: "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_reported_and_stay(client: Any, service: Service, damage: str) -> None:
    image, inside = ids(client)[0], mask((40, 60))
    put(client, image, 0, [item("one", inside)])
    path = service.settings.out / f"{image}.json"
    broken = DAMAGES[damage](path.read_text())
    path.write_text(broken)
    for answer in (
        client.get(f"/api/images/{image}/annotations"),
        put(client, image, 0, []),
        put(client, image, 1, []),
    ):
        assert answer.status_code == 423 and path.name in answer.json()["detail"]
        assert str(service.settings.out) not in answer.text
    assert path.read_text() == broken
    row = client.get("/api/images").json()["images"][0]
    assert row["state"] == "started" and path.name in row["problem"]
    assert client.get("/api/statistics").status_code == 200
    path.unlink()
    assert put(client, image, 0, []).status_code == 200


def test_bytes_that_are_no_text(client: Any, service: Service) -> None:
    image = ids(client)[0]
    service.settings.out.mkdir(exist_ok=True)
    (service.settings.out / f"{image}.json").write_bytes(b"\xff\xff")
    assert client.get(f"/api/images/{image}/annotations").status_code == 423


def test_a_disk_that_cannot_be_written_keeps_the_old_file(
    client: Any, service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = ids(client)[0]
    assert put(client, image, 0, [item("one", mask((40, 60)))]).status_code == 200

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        answer = put(client, image, 1, [], "done")
    assert answer.status_code == 507 and str(service.settings.out) not in answer.text
    assert "No space left" in caplog.text
    assert client.get(f"/api/images/{image}/annotations").json()["revision"] == 1
    assert put(client, image, 1, [], "done").json() == {"revision": 2}


def test_a_folder_that_cannot_be_written(client: Any, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any) -> int:
        raise PermissionError(13, "Permission denied")

    image = ids(client)[0]
    with monkeypatch.context() as patch:
        patch.setattr("hqsam.serve.locks.os.open", read_only)
        answer = put(client, image, 0, [], "done")
    assert answer.status_code == 507 and str(service.settings.out) not in answer.text


def add_one(store: AnnotationStore, name: str) -> None:
    """As a page does: read, add, save; after a conflict begin again from what is there."""
    (picture,) = store.pictures.values()
    new = MaskObject.model_validate(item(name, mask((picture.height, picture.width))))
    current = store.load(picture)
    while True:
        try:
            store.save(picture, current.revision, "started", [*current.objects, new])
            return
        except ConflictError as error:
            current = error.current


def add_many(folder: Path, out: Path, worker: int) -> None:
    picture = find_pictures(folder)[0]
    store = AnnotationStore(out, {picture.id: picture})
    for number in range(EACH):
        add_one(store, f"{worker}-{number}")


def check_all_there(photos: Path, out: Path) -> None:
    picture = find_pictures(photos)[0]
    content = AnnotationStore(out, {picture.id: picture}).load(picture)
    assert content.revision == WORKERS * EACH
    assert {entry.id for entry in content.objects} == {f"{w}-{n}" for w in range(WORKERS) for n in range(EACH)}


def test_threads_lose_nothing(photos: Path, tmp_path: Path) -> None:
    picture = find_pictures(photos)[0]
    store = AnnotationStore(tmp_path / "out", {picture.id: picture})
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda worker: [add_one(store, f"{worker}-{n}") for n in range(EACH)], range(WORKERS)))
    check_all_there(photos, tmp_path / "out")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="starting takes long without fork")
def test_processes_lose_nothing(photos: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_many, args=(photos, tmp_path / "out", w)) for w in range(WORKERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check_all_there(photos, tmp_path / "out")


def test_a_reader_never_sees_half_a_file(photos: Path, tmp_path: Path) -> None:
    picture = find_pictures(photos)[0]
    writer, reader = (AnnotationStore(tmp_path / "out", {picture.id: picture}) for _ in range(2))
    done = False

    def read() -> list[int]:
        seen = []
        while not done:
            seen.append(reader.load(picture).revision)
        return seen

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(read)
        try:
            for number in range(30):
                add_one(writer, str(number))
        finally:
            done = True
        seen = future.result()
    assert seen == sorted(seen) and seen[-1] <= 30


def test_what_is_remembered_is_changed_under_a_lock(photos: Path, tmp_path: Path) -> None:
    """Else a writer forgets what a reader is about to move to the end."""
    picture = find_pictures(photos)[0]
    store = AnnotationStore(tmp_path / "out", {picture.id: picture})

    class Watched(OrderedDict[str, Any]):
        def pop(self, *arguments: Any) -> Any:
            assert store._lock.locked()
            return super().pop(*arguments)

    store._known = Watched()
    add_one(store, "first")
    add_one(store, "second")
    assert store.load(picture).revision == 2


def test_two_servers_on_one_folder(service: Service, model: Sam) -> None:
    other = Service(service.settings, model)
    with serving(service) as first, serving(other) as second:
        image, inside = ids(first)[0], mask((40, 60))
        assert put(first, image, 0, [item("one", inside)]).status_code == 200
        assert put(second, image, 0, [item("two", inside)]).status_code == 409
        assert second.get("/api/images").json()["images"][0]["objects"] == 1
        both = [item("one", inside), item("two", inside)]
        assert put(second, image, 1, both).json() == {"revision": 2}
        assert len(first.get(f"/api/images/{image}/annotations").json()["objects"]) == 2


def test_the_error_for_a_damaged_file_says_which(photos: Path, tmp_path: Path) -> None:
    picture = find_pictures(photos)[0]
    store = AnnotationStore(tmp_path, {picture.id: picture})
    store.path(picture).write_text("{}")
    with pytest.raises(DamagedFileError, match=rf"{picture.id}\.json cannot be used and was left as it is \(image: "):
        store.load(picture)
