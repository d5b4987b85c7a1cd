"""Proposals, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqsam.automatic import SamAutomaticMaskGenerator
from hqsam.errors import DataError
from hqsam.images import read_image
from hqsam.models import Sam
from hqsam.rle import decode_rle, encode_rle
from hqsam.serve import proposals
from hqsam.serve.messages import MaskObject, RleMessage
from hqsam.serve.proposals import choose, read_boxes
from hqsam.serve.service import Service, Settings
from hqsam.serve.store import Annotations, Proposal
from hqsam.serve.tally import statistics
from hqsam.serve.worker import Urgency
from hqsam.types import Refine
from tests.unit.serve.serving import block, ids, item, put, serving

HW = (40, 60)


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's masks are never confident."""
    original = SamAutomaticMaskGenerator.preset

    def preset(model: Sam, name: Any, **options: Any) -> SamAutomaticMaskGenerator:
        assert name == "fast"
        lax = {"pred_iou_thresh": -100.0, "stability_score_thresh": 0.0, "points_per_side": 3}
        return original(model, name, **{**lax, **options})

    monkeypatch.setattr(SamAutomaticMaskGenerator, "preset", preset)


def found(inside: np.ndarray, score: float = 0.9) -> proposals._Found:
    return proposals._Found(encode_rle(inside), score, "")


def content(objects: Sequence[np.ndarray] = (), earlier: Sequence[np.ndarray] = ()) -> Annotations:
    return Annotations(
        image="a.png",
        width=60,
        height=40,
        objects=[MaskObject.model_validate(item(str(n), mask)) for n, mask in enumerate(objects)],
        proposals={f"p{n}": Proposal(rle=RleMessage(**encode_rle(mask))) for n, mask in enumerate(earlier)},
    )


def test_the_best_come_first_and_useless_ones_not_at_all() -> None:
    given = [found(block(HW, 0, 0, 9), 0.1), found(block(HW, 20, 20, 9), 0.7), found(np.zeros(HW, bool), 0.9)]
    given.append(found(block(HW, 0, 40, 9), float("nan")))
    assert [entry.score for entry in choose(given, content())] == [0.7, 0.1]
    assert choose([], content()) == []
    many = [found(block(HW, 0, 0, 9), n / 1000) for n in range(proposals.MAX_PROPOSALS + 5)]
    assert len(choose(many, content())) == proposals.MAX_PROPOSALS


@pytest.mark.parametrize(
    ("candidate", "kept"),
    [
        (block(HW, 0, 0, 20), False),  # the same
        (block(HW, 5, 5, 5), False),  # a part of it
        (np.ones(HW, bool), False),  # it is a part of it
        (block(HW, 0, 10, 20), True),  # half and half
        (block(HW, 0, 9, 20), False),
        (block(HW, 20, 30, 20), True),  # elsewhere
    ],
)
def test_objects_that_are_there_are_left_out(candidate: np.ndarray, kept: bool) -> None:
    assert bool(choose([found(candidate)], content(objects=[block(HW, 0, 0, 20)]))) == kept


def test_what_was_deleted_is_not_proposed_again() -> None:
    earlier = content(earlier=[block(HW, 0, 0, 20)])
    assert not choose([found(block(HW, 0, 0, 20))], earlier)
    assert not choose([found(block(HW, 1, 0, 20))], earlier)
    assert choose([found(block(HW, 5, 5, 10))], earlier)  # a part of it is something else


@pytest.mark.usefixtures("generous")
def test_proposals_are_those_of_the_generator(client: Any, service: Service, model: Sam, photos: Path) -> None:
    image = ids(client)[0]
    answer = client.post(f"/api/images/{image}/proposals", json={}).json()
    objects = client.get(f"/api/images/{image}/annotations").json()["objects"]
    assert answer == {"revision": 1, "added": len(objects)} and objects
    features = service.embeddings.predictor(service.pictures[image]).get_features()
    generator = SamAutomaticMaskGenerator.preset(model, "fast", output_mode="coco_rle")
    records = generator.generate(read_image(photos / "a.png"), features=features)
    expected = sorted((r for r in records if r["area"] > 0), key=lambda r: -r["predicted_iou"])
    assert [entry["rle"]["counts"] for entry in objects] == [r["segmentation"]["counts"] for r in expected]
    for entry, record in zip(objects, expected, strict=True):
        assert (entry["status"], entry["source"], entry["label"]) == ("proposed", "proposal", "")
        assert entry["score"] == pytest.approx(record["predicted_iou"])
    row = client.get("/api/images").json()["images"][0]
    assert (row["state"], row["objects"], row["proposals"]) == ("todo", 0, len(objects))
    assert client.post(f"/api/images/{image}/proposals").json() == {"revision": 1, "added": 0}


@pytest.fixture
def squares(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals that are known beforehand."""
    given = [found(block(HW, top, left, 15), 0.9 - left / 100) for top in (0, 20) for left in (0, 20, 40)]
    monkeypatch.setattr(service.proposer, "_search", lambda *_: given)


@pytest.mark.usefixtures("squares")
def test_somebody_saves_while_proposals_are_made(
    client: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, search = ids(client)[0], service.proposer._search
    mine = MaskObject.model_validate(item("mine", block(HW, 0, 0, 15)))

    def search_and_save(*arguments: Any) -> Any:
        service.store.save(service.pictures[image], 0, "started", [mine])
        return search(*arguments)

    monkeypatch.setattr(service.proposer, "_search", search_and_save)
    assert client.post(f"/api/images/{image}/proposals").json() == {"revision": 2, "added": 5}
    objects = client.get(f"/api/images/{image}/annotations").json()["objects"]
    assert len(objects) == 6 and objects[0]["id"] == "mine"


@pytest.mark.usefixtures("squares")
def test_what_became_of_them(client: Any) -> None:
    image = ids(client)[0]
    nothing = {"proposed": 0, "accepted": 0, "edited": 0, "deleted": 0, "mean_iou": None}
    empty = {"masks": 0, "masks_per_image": None, "seconds_per_mask": None, "proposals": nothing}
    assert client.get("/api/statistics").json() == empty
    assert client.post(f"/api/images/{image}/proposals").json()["added"] == 6
    kept, edited, _, *rest = client.get(f"/api/images/{image}/annotations").json()["objects"]  # the third is deleted
    smaller = decode_rle(edited["rle"])
    smaller[np.nonzero(smaller)[0].max()] = False  # one row of fifteen
    changed = {**edited, "status": "accepted", "rle": encode_rle(smaller), "source": "brush", "seconds": 4}
    mine = item("mine", block(HW, 0, 0, 5), seconds=2)
    assert put(client, image, 1, [{**kept, "status": "accepted"}, changed, *rest, mine]).status_code == 200
    assert client.get("/api/statistics").json() == {
        "masks": 3,
        "masks_per_image": 3,
        "seconds_per_mask": 3,
        "proposals": {
            "proposed": 6,
            "accepted": 1,
            "edited": 1,
            "deleted": 1,
            "mean_iou": pytest.approx((1 + 14 / 15) / 2, abs=1e-4),
        },
    }
    longest = [item(name, block(HW, 0, 0, 5), seconds=1e308) for name in "ab"]  # together they would be infinite
    assert put(client, image, 2, longest).status_code == 422
    # pages cannot make proposals: those are the server's
    put(client, image, 2, [item("strange", block(HW, 0, 0, 5), status="proposed")])
    assert client.get("/api/statistics").json()["proposals"]["deleted"] == 6


def test_means_over_images() -> None:
    from hqsam.serve.tally import tally

    done = content().model_copy(update={"state": "done"})
    rows = [tally(content([block(HW, 0, 0, 5)] * 3)), tally(done), tally(content())]
    assert statistics(rows)["masks_per_image"] == 1.5


@pytest.mark.usefixtures("generous")
@pytest.mark.parametrize("automatic", [True, False])
def test_proposals_ahead(photos: Path, tmp_path: Path, model: Sam, automatic: bool) -> None:
    service = Service(Settings(folder=photos, out=tmp_path / "out", model_name="m", proposals=automatic), model)
    first, second, third = service.pictures.values()
    service.store.save(second, 0, "started", [])  # somebody has begun with it
    service.worker.start()
    for picture in (first, second, third):
        service.embeddings.request(picture, Urgency.HINT).future.result()
    for _ in range(2):
        service.worker.submit(lambda: None, Urgency.IDLE).future.result()
    service.worker.close()
    for picture in (first, second, third):
        assert bool(service.store.load(picture).objects) == (automatic and picture is not second)


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    results = [
        {"image_id": "a.png", "category_id": 1, "bbox": [2, 3, 20, 15], "score": 0.9},
        {"image_id": "a.png", "category_id": 2, "bbox": [30, 20, 25, 15], "score": 0.8},
        {"image_id": "deep/er/c.bmp", "category_id": 1, "bbox": [1, 1, 10, 10], "score": 0.8},
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(results))
    return path


def test_boxes(photos: Path, tmp_path: Path, model: Sam, boxes: Path) -> None:
    settings = Settings(folder=photos, out=tmp_path / "out", model_name="m", labels=("cat", "dog"), boxes=boxes)
    with serving(Service(settings, model)) as client:
        image, without, _ = ids(client)
        assert client.post(f"/api/images/{without}/proposals").json() == {"revision": 0, "added": 0}
        added = client.post(f"/api/images/{image}/proposals").json()["added"]
        objects = client.get(f"/api/images/{image}/annotations").json()["objects"]
        assert len(objects) == added > 0 and {entry["source"] for entry in objects} == {"file"}
    other = Service(settings, model)
    predictor = other.embeddings.predictor(other.pictures[image])
    masks, scores, _ = predictor.predict(box=[[2, 3, 22, 18], [30, 20, 55, 35]], multimask_output=False)
    rows = zip(scores[:, 0].tolist(), masks[:, 0], ("cat", "dog"), strict=True)
    expected = {score: (mask, name) for score, mask, name in rows}
    for entry in objects:
        mask, name = expected[entry["score"]]
        assert (decode_rle(entry["rle"]) == mask).all() and entry["label"] == name


@pytest.mark.parametrize(
    ("recommended", "refine"),
    [("again", "again"), ("again+zoom", "again"), ("zoom", "none"), ("again+again+zoom", "again+again")],
)
def test_boxes_are_asked_again_where_the_weights_recommend_it(
    service: Service, model: Sam, boxes: Path, monkeypatch: pytest.MonkeyPatch, recommended: Refine, refine: Refine
) -> None:
    picture = next(iter(service.pictures.values()))
    given = read_boxes(boxes, service.pictures, ())[picture.id]
    predictor = service.embeddings.predictor(picture)
    expected, _, _ = predictor.predict(box=given.boxes, multimask_output=False, refine=refine)
    monkeypatch.setattr(model, "default_refine", recommended)
    rles = [entry.rle for entry in service.proposer._segmented(predictor, given)]
    assert rles == [encode_rle(mask[0]) for mask in expected]


def test_boxes_without_labels(service: Service, boxes: Path) -> None:
    read = read_boxes(boxes, service.pictures, ())
    assert [len(entry.boxes) for entry in read.values()] == [2, 0, 1]


def test_defects_of_boxes(service: Service, boxes: Path) -> None:
    with pytest.raises(DataError, match="categories that the set does not have"):
        read_boxes(boxes, service.pictures, ("cat",))
    boxes.write_text(boxes.read_text().replace("a.png", "z.png"))
    with pytest.raises(DataError, match=r"not in the set: z\.png"):
        read_boxes(boxes, service.pictures, ())
    boxes.write_text("{")
    with pytest.raises(DataError, match="boxes cannot be read"):
        read_boxes(boxes, service.pictures, ())
