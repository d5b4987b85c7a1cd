"""Prompts, embeddings, and the one thread that has the model."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hqsam.features import PredictorFeatures, weights_fingerprint
from hqsam.images import read_image
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.rle import decode_rle
from hqsam.serve.embeddings import Embeddings
from hqsam.serve.messages import PreviousMask
from hqsam.serve.pictures import find_pictures
from hqsam.serve.prompting import Answers
from hqsam.serve.service import Service, Settings
from hqsam.serve.worker import ClosedError, Urgency, Worker
from hqsam.types import Refine
from tests.unit.serve.serving import ids, serving

POINTS = [[20.5, 11, 1], [50, 30, 0]]


def rounded(predictor: SamPredictor) -> PredictorFeatures:
    found = predictor.get_features()
    return PredictorFeatures(
        found.image_embedding.half().float().contiguous(),
        found.early_feature.half().float().contiguous(),
        found.original_size,
        found.input_size,
        found.model_fingerprint,
        found.image_hash,
    )


@pytest.fixture
def predictor(photos: Path, model: Sam) -> SamPredictor:
    """The library's own, whose features are rounded as the server's are."""
    first, second = SamPredictor(model), SamPredictor(model)
    first.set_image(read_image(photos / "a.png"))
    second.load_features(rounded(first))
    return second


def ask(client: Any, image: str, **body: Any) -> Any:
    return client.post(f"/api/images/{image}/predict", json=body)


@pytest.mark.parametrize("fusion", ["sam", "hq", "sum", None])
@pytest.mark.parametrize("multimask", [False, True])
def test_answers_are_those_of_the_predictor(
    client: Any, predictor: SamPredictor, fusion: str | None, multimask: bool
) -> None:
    image = ids(client)[0]
    options: dict[str, Any] = {"multimask_output": multimask, "fusion": fusion}
    options |= {"candidates": "all" if multimask else "best", "padding_logits": False, "heed_clicks": True}
    points, labels = [point[:2] for point in POINTS], [point[2] for point in POINTS]
    masks, scores, logits = predictor.predict(points, labels, box=[3, 4, 50, 30], **options)
    found = ask(client, image, points=POINTS, box=[3, 4, 50, 30], fusion=fusion, multimask=multimask).json()
    assert len(found["masks"]) == len(masks) == (3 if multimask and fusion != "hq" else 1)
    for entry, mask, score in zip(found["masks"], masks, scores, strict=True):
        assert (decode_rle(entry["rle"]) == mask).all() and entry["score"] == pytest.approx(float(score))
    last = len(masks) - 1
    again = ask(
        client, image, box=[3, 4, 50, 30], fusion=fusion, previous={"answer": found["answer"], "candidate": last}
    )
    expected, _, _ = predictor.predict(
        box=[3, 4, 50, 30], mask_input=logits[last][None], multimask_output=False, fusion=fusion
    )
    assert (decode_rle(again.json()["masks"][0]["rle"]) == expected[0]).all()


@pytest.mark.parametrize("fusion", ["hq", "sum"])
def test_clicks_are_heeded(client: Any, predictor: SamPredictor, fusion: str) -> None:
    """With random weights the masks disagree widely: some of many clicks need it."""
    changed = 0
    for x in range(3, 60, 8):
        points = [[x, 12, 0], [40, x * 0.6, 1]]
        prompt: dict[str, Any] = {"point_coords": [p[:2] for p in points], "point_labels": [0, 1]}
        prompt |= {"multimask_output": False, "fusion": fusion, "padding_logits": False}
        plain, heeded = (predictor.predict(**prompt, heed_clicks=heed)[0][0] for heed in (False, True))
        answer = ask(client, ids(client)[0], points=points, fusion=fusion).json()["masks"][0]
        assert (decode_rle(answer["rle"]) == heeded).all()
        changed += (plain != heeded).any()
    assert changed


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "no prompt given"),
        ({"points": [], "box": None}, "no prompt given"),
        ({"box": [9, 9, 1, 1]}, "inverted"),
        ({"box": [100, 100, 120, 120]}, "outside"),
        ({"box": [1, 2, 3]}, "box"),
        ({"points": [[1, 2]]}, "points"),
        ({"points": [[1, 2, 5]]}, "points"),
        ({"points": [[1e300, 2, 1]]}, "points"),
        ({"points": [[1, 2, 1]] * 1001}, "points"),
        ({"points": POINTS, "fusion": "both"}, "fusion"),
        ({"points": POINTS, "previous": {"answer": "x", "candidate": 0}}, "previous answer is not known"),
        ({"points": POINTS, "previous": {"answer": "x", "candidate": -1}}, "previous.candidate"),
    ],
)
def test_bad_prompts(client: Any, body: dict[str, Any], message: str) -> None:
    answer = ask(client, ids(client)[0], **body)
    assert answer.status_code == 422 and message in answer.json()["detail"]


def test_previous_answers_belong_to_their_image(client: Any) -> None:
    first, second, _ = ids(client)
    answer = ask(client, first, points=POINTS).json()["answer"]
    previous = {"answer": answer, "candidate": 0}
    assert ask(client, first, previous=previous).status_code == 200
    assert ask(client, second, previous=previous).status_code == 422
    assert "has 1 masks" in ask(client, first, previous={"answer": answer, "candidate": 2}).json()["detail"]


def test_old_answers_are_forgotten(photos: Path) -> None:
    picture = find_pictures(photos)[0]
    answers = Answers(capacity=2 * 64)  # bytes: two answers
    names = [answers.keep(picture, np.full((1, 4, 4), number, np.float32)) for number in range(2)]
    assert answers.logits(picture, PreviousMask(answer=names[0], candidate=0)).shape == (1, 4, 4)
    answers.keep(picture, np.zeros((1, 4, 4), np.float32))  # the second one is used the least
    assert answers.logits(picture, PreviousMask(answer=names[0], candidate=0))[0, 0, 0] == 0
    with pytest.raises(ValueError, match="not known"):
        answers.logits(picture, PreviousMask(answer=names[1], candidate=0))


def test_plain_sam_and_untrained_heads_have_one_fusion(photos: Path, tmp_path: Path, model: Sam) -> None:
    plain = create_model("sam_test_tiny", device="cpu")
    untrained = create_model("hq_test_tiny", device="cpu")
    untrained.head_state = "untrained"
    for number, other in enumerate((plain, untrained)):
        service = Service(Settings(folder=photos, out=tmp_path / f"out{number}", model_name="m"), other)
        with serving(service) as client:
            image, state = ids(client)[0], client.get("/api/state").json()["model"]
            assert state["fusions"] == ["sam"] and state["default_fusion"] == "sam"
            assert ask(client, image, points=POINTS, fusion="sam", multimask=True).status_code == 200
            assert ask(client, image, points=POINTS, fusion="hq").status_code == 422
            if other is plain:
                assert ask(client, image, points=POINTS).status_code == 200
                part = client.get(f"/api/images/{image}/embedding", params={"part": "hq_features"})
                assert part.status_code == 422 and "plain SAM" in part.json()["detail"]


@pytest.mark.parametrize("refine", ["again", "again+again", "zoom", "again+zoom"])
def test_a_recommended_refinement_is_left_out(
    client: Any, predictor: SamPredictor, model: Sam, refine: Refine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clicks feed answers back anyway, and the browser's decoder knows no refinement."""
    expected, _, _ = predictor.predict(box=[3, 4, 50, 30], multimask_output=False)
    monkeypatch.setattr(model, "default_refine", refine)
    answer = ask(client, ids(client)[0], box=[3, 4, 50, 30])
    assert answer.status_code == 200
    assert (decode_rle(answer.json()["masks"][0]["rle"]) == expected[0]).all()


def test_a_recommended_upsampling_is_left_out(
    client: Any, predictor: SamPredictor, model: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The browser's decoder has no picture, and server and browser answer alike."""
    expected, _, _ = predictor.predict(box=[3, 4, 50, 30], multimask_output=False, upsampling="bilinear")
    monkeypatch.setattr(model, "default_upsampling", "guided")
    answer = ask(client, ids(client)[0], box=[3, 4, 50, 30])
    assert answer.status_code == 200
    assert (decode_rle(answer.json()["masks"][0]["rle"]) == expected[0]).all()


@pytest.mark.parametrize("fusion", ["hq", "sum"])
def test_a_click_that_corrects_an_answer_is_heeded(client: Any, fusion: str) -> None:
    image, box = ids(client)[0], [3, 4, 50, 30]
    first = ask(client, image, box=box, fusion=fusion).json()
    before = decode_rle(first["masks"][0]["rle"])
    for x, y in ((10, 10), (25, 12), (40, 20), (15, 25)):
        point = [x + 0.5, y + 0.5, int(not before[y, x])]
        previous = {"answer": first["answer"], "candidate": 0}
        second = ask(client, image, box=box, points=[point], fusion=fusion, previous=previous).json()
        assert decode_rle(second["masks"][0]["rle"])[y, x] != before[y, x]


@pytest.mark.parametrize("part", ["image_embeddings", "hq_features"])
def test_embeddings(client: Any, predictor: SamPredictor, model: Sam, part: str) -> None:
    image = ids(client)[0]
    answer = client.get(f"/api/images/{image}/embedding", params={"part": part})
    shape = tuple(map(int, answer.headers["x-shape"].split(",")))
    found = np.frombuffer(answer.content, "<f2").reshape(shape)
    expected = predictor.get_image_embedding() if part == "image_embeddings" else predictor.hq_features()
    assert np.array_equal(found, expected.half().numpy())
    assert tuple(map(int, answer.headers["x-input-size"].split(","))) == predictor.input_size
    assert answer.headers["x-fingerprint"] == weights_fingerprint(model)
    assert client.get(f"/api/images/{image}/embedding", params={"part": "other"}).status_code == 422


@pytest.fixture
def counted(model: Sam, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = model.image_encoder.forward

    def forward(x: torch.Tensor) -> Any:
        calls.append(1)
        return original(x)

    monkeypatch.setattr(model.image_encoder, "forward", forward)
    return calls


def test_an_image_is_encoded_once(service: Service, model: Sam, counted: list[int]) -> None:
    with serving(service) as client:
        images = ids(client)
        for _ in range(2):
            for image in images:
                ask(client, image, points=[[1, 1, 1]])
                client.get(f"/api/images/{image}/embedding")
        assert len(counted) == 3
        assert all(row["encoded"] for row in client.get("/api/images").json()["images"])
    with serving(Service(service.settings, model)) as client:  # a new server finds them on disk
        before = [ask(client, image, points=[[1, 1, 1]]).json()["masks"] for image in images]
        assert len(counted) == 3
    shutil.rmtree(service.settings.cache_folder)
    with serving(Service(service.settings, model)) as client:
        assert [ask(client, image, points=[[1, 1, 1]]).json()["masks"] for image in images] == before
        assert len(counted) == 6


def test_the_disk_that_features_may_take(photos: Path, model: Sam, tmp_path: Path) -> None:
    """No room at all: the file used last stays, and every picture is answered."""
    settings = Settings(folder=photos, out=tmp_path / "out", model_name="m", cache_gb=0)
    with serving(Service(settings, model)) as client:
        assert all(ask(client, image, points=[[1, 1, 1]]).status_code == 200 for image in ids(client))
    assert len(list(settings.cache_folder.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("what", ["damaged", "another image", "another model", "another version"])
def test_kept_features_that_do_not_belong_are_made_again(
    service: Service, model: Sam, counted: list[int], photos: Path, what: str
) -> None:
    first, second = list(service.pictures.values())[:2]
    path = service.embeddings.path(first)
    if what == "damaged":
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 100)
    else:
        source = photos / ("b.jpg" if what == "another image" else "a.png")
        maker = SamPredictor(create_model("hq_test_tiny", device="cpu") if what == "another model" else model)
        maker.set_image(read_image(source))
        maker.get_features().save(path)
        if what == "another version":
            from safetensors.torch import load_file, save_file

            save_file(load_file(path), path, {"format": "hqsam_features", "format_version": "0"})
    counted.clear()
    with serving(service) as client:
        assert ask(client, first.id, points=[[1, 1, 1]]).status_code == 200
        client.get(f"/api/images/{second.id}/embedding")
    assert len(counted) >= 1
    kept = PredictorFeatures.load(path)
    kept.require(model, first.read())
    assert kept.image_embedding.dtype == torch.float16


def test_memory_is_bounded(photos: Path, tmp_path: Path, model: Sam) -> None:
    pictures = {picture.id: picture for picture in find_pictures(photos)}
    embeddings = Embeddings(model, pictures, tmp_path, Worker(), capacity=2)
    for picture in pictures.values():
        embeddings.predictor(picture)
    first, second, third = pictures
    assert list(embeddings._predictors) == [second, third]
    embeddings.predictor(pictures[second])
    embeddings.predictor(pictures[first])
    assert list(embeddings._predictors) == [second, first]


def test_a_picture_replaced_by_one_of_the_same_size_is_encoded_again(
    service: Service, counted: list[int], photos: Path
) -> None:
    first = next(iter(service.pictures.values()))
    # pictures encoded ahead, by a hint or after the one that is looked at, would be counted, too
    service.embeddings._prepare = lambda _: None  # type: ignore[method-assign]
    with serving(service) as client:
        before = ask(client, first.id, points=[[1, 1, 1]]).json()["masks"]
        counted.clear()
        assert ask(client, first.id, points=[[1, 1, 1]]).json()["masks"] == before and not counted
        Image.fromarray(255 - read_image(photos / first.relative)).save(photos / first.relative)
        assert ask(client, first.id, points=[[1, 1, 1]]).status_code == 200
    assert counted


def test_a_full_disk_does_not_keep_from_answering(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    service.settings.cache_folder.mkdir(parents=True)
    (service.settings.cache_folder / "features").write_text("in the way")
    with serving(service) as client:
        assert ask(client, ids(client)[0], points=[[1, 1, 1]]).status_code == 200
    assert "cannot write" in caplog.text


def test_what_comes_next_is_encoded_ahead(service: Service) -> None:
    first, *others = service.pictures.values()
    ahead: list[str] = []
    service.embeddings.encoded = lambda picture: ahead.append(picture.relative)
    job = service.embeddings.current(first)
    service.worker.start()
    job.future.result()
    service.worker.submit(lambda: None, Urgency.IDLE).future.result()  # after everything else
    service.worker.close()
    assert ahead == [picture.relative for picture in others]  # nobody waited for these


def test_hints(service: Service) -> None:
    first, second, third = service.pictures.values()
    order: list[str] = []
    service.embeddings.encoded = lambda picture: order.append(picture.relative)
    service.embeddings.hint([first, second])
    service.embeddings.hint([third])  # the page changed its mind
    waiting = service.embeddings.request(second, Urgency.CURRENT)
    service.worker.start()
    waiting.future.result()
    service.worker.submit(lambda: None, Urgency.IDLE).future.result()
    service.worker.close()
    assert order == [third.relative]
    assert not service.embeddings.is_encoded(first) and service.embeddings.is_encoded(second)


def test_prefetch(client: Any) -> None:
    images = ids(client)
    assert client.post("/api/prefetch", json={"ids": [images[2], "unknown", images[2]]}).json() == {}
    assert client.post("/api/prefetch", json={"ids": ["x"] * 201}).status_code == 422
    assert client.post("/api/prefetch", json={"ids": "x"}).status_code == 422


def test_the_most_urgent_goes_first() -> None:
    worker, order = Worker(), []
    for number, urgency in enumerate([Urgency.HINT, Urgency.PROMPT, Urgency.CURRENT, Urgency.PROMPT]):
        worker.submit(lambda number=number: order.append(number), urgency)
    late = worker.submit(lambda: order.append(9), Urgency.IDLE)
    worker.hurry(late, Urgency.PROMPT)
    last = worker.submit(lambda: order.append(10), Urgency.IDLE)
    worker.start()
    last.future.result()
    worker.close()
    assert order == [1, 3, 9, 2, 0, 10]


def test_errors_go_to_who_waits_and_a_closed_worker_does_nothing() -> None:
    worker = Worker()
    broken = worker.submit(lambda: 1 / 0, Urgency.PROMPT)
    worker.start()
    with pytest.raises(ZeroDivisionError):
        broken.future.result()
    worker.close()
    assert worker.submit(lambda: 1, Urgency.PROMPT).future.cancelled()


def test_a_job_that_was_moved_forward_and_then_called_off_does_not_end_the_thread() -> None:
    worker = Worker()
    job = worker.submit(lambda: 1, Urgency.IDLE)
    worker.hurry(job, Urgency.HINT)  # it is in the queue twice now
    job.future.cancel()
    worker.start()
    assert worker.submit(lambda: 2, Urgency.IDLE).future.result(timeout=60) == 2
    worker.close()


def test_within_a_job_only_what_is_more_urgent_than_all_that_has_begun() -> None:
    worker, order = Worker(), []

    def current() -> None:
        worker.submit(lambda: order.append("proposals"), Urgency.PROPOSALS)
        worker.submit(lambda: order.append("prompt"), Urgency.PROMPT)
        worker.run_more_urgent()  # as the hooks of the image that is encoded ahead do, within this one
        order.append("current")

    def ahead() -> None:
        worker.submit(current, Urgency.CURRENT)
        worker.run_more_urgent()
        order.append("ahead")

    job = worker.submit(ahead, Urgency.HINT)
    worker.start()
    job.future.result()
    worker.close()
    assert order == ["prompt", "current", "proposals", "ahead"]


def test_a_long_job_is_given_up_when_the_server_ends() -> None:
    worker, closed, begun = Worker(), threading.Event(), threading.Event()

    def long() -> None:
        begun.set()
        assert closed.wait(60)
        worker.run_more_urgent()

    job = worker.submit(long, Urgency.HINT)
    worker.submit(lambda: None, Urgency.IDLE).future.add_done_callback(lambda _: closed.set())  # called off
    worker.start()
    assert begun.wait(60)
    worker.close()
    assert isinstance(job.future.exception(), ClosedError)


def test_a_click_does_not_wait_for_an_image_that_is_encoded_ahead(service: Service, model: Sam) -> None:
    first, second, _ = service.pictures.values()
    embeddings, order = service.embeddings, []
    embeddings.predictor(first)
    click: list[Any] = []

    def during(*_: Any) -> None:
        if not click:  # somebody clicks while the first layers of the second image are at work
            click.append(service.worker.submit(lambda: order.append(threading.get_ident()), Urgency.PROMPT))

    hook = model.image_encoder.register_forward_pre_hook(during)
    job = embeddings.request(second, Urgency.HINT)
    job.future.add_done_callback(lambda _: order.append("encoded"))
    service.worker.start()
    predictor = job.future.result()
    hook.remove()
    service.worker.close()
    assert len(order) == 2 and order[1] == "encoded"  # one after the other, on one thread
    alone = SamPredictor(model)
    alone.set_image(second.read())
    assert torch.equal(predictor.get_image_embedding(), alone.get_image_embedding().half().float())
    assert not any(module._forward_pre_hooks for module in model.image_encoder.modules())
