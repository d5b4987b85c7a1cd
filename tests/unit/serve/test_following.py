"""A model that is replaced while the server runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hqsam.checkpoints import save_checkpoint
from hqsam.models import Sam
from hqsam.predictor import SamPredictor
from hqsam.registry import create_model
from hqsam.rle import decode_rle
from hqsam.serve.embeddings import Embeddings
from hqsam.serve.following import Follower, ModelFile
from hqsam.serve.service import Service, Settings
from tests.unit.serve.serving import ids, serving

QUESTION = {"points": [[20, 11, 1]], "fusion": "hq"}


def write(model: Sam, path: Path, number: int, *, head: float = 0.0, encoder: float = 0.0) -> None:
    """A file of the model with other numbers, as `hqsam round` leaves it."""
    changed = create_model("hq_test_tiny", device="cpu")
    changed.load_state_dict(model.state_dict())
    changed.head_state = "trained"
    with torch.no_grad():
        for parameter in changed.hq_parameters():
            parameter += head
        next(changed.image_encoder.parameters()).add_(encoder)
    save_checkpoint(changed, path, metadata={"round": str(number)})


@pytest.fixture
def file(tmp_path: Path) -> ModelFile:
    return ModelFile(tmp_path / "current.safetensors", lambda path: create_model("hq_test_tiny", path, device="cpu"))


@pytest.fixture
def following(photos: Path, tmp_path: Path, model: Sam, file: ModelFile) -> Service:
    return Service(Settings(folder=photos, out=tmp_path / "out", model_name="hq_test_tiny"), model, file)


def look(service: Service) -> None:
    assert service.follower is not None
    service.follower.look()


def test_a_new_model_answers_without_encoding_again(
    following: Service, model: Sam, file: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(following) as client:
        image = ids(client)[0]
        before = client.get("/api/state").json()["model"]
        old = client.post(f"/api/images/{image}/predict", json=QUESTION).json()
        features = client.get(f"/api/images/{image}/embedding?part=hq_features")
        for picture in following.pictures.values():
            following.embeddings.current(picture).future.result()
        monkeypatch.setattr(SamPredictor, "set_image", lambda *_: 1 / 0)  # no encoder runs from here on
        write(model, file.path, 3, head=0.05)
        look(following)
        after = client.get("/api/state").json()["model"]
        assert before["round"] is None and after["round"] == "3"
        assert after["fingerprint"] != before["fingerprint"]
        new = client.post(f"/api/images/{image}/predict", json=QUESTION).json()
        expected = SamPredictor(create_model("hq_test_tiny", file.path, device="cpu"))
        kept = following.embeddings.predictor(following.pictures[image])
        expected.load_features(kept.get_features())
        masks, _, _ = expected.predict([[20, 11]], [1], multimask_output=False, fusion="hq")
        assert (decode_rle(new["masks"][0]["rle"]) == masks[0]).all()
        assert new["masks"] != old["masks"]
        again = client.get(f"/api/images/{image}/embedding?part=hq_features")
        assert again.headers["X-Fingerprint"] == after["fingerprint"] and again.content != features.content
        fed = {**QUESTION, "previous": {"answer": old["answer"], "candidate": 0}}
        assert client.post(f"/api/images/{image}/predict", json=fed).status_code == 422, "it is of the old model"
        assert following.browser.path.stem == after["fingerprint"][:16]


def test_another_encoder_is_refused(
    following: Service, model: Sam, file: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(following) as client:
        before = client.get("/api/state").json()["model"]
        write(model, file.path, 1, encoder=0.5)
        look(following)
        assert client.get("/api/state").json()["model"] == before
    assert "its encoder is another one; start the server again" in caplog.text


def test_a_file_that_cannot_be_read_is_said_once(
    following: Service, model: Sam, file: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(following) as client:
        file.path.write_bytes(b"nonsense")
        look(following)
        look(following)
        assert caplog.text.count("the new model is not used") == 1
        write(model, file.path, 2)
        look(following)
        assert client.get("/api/state").json()["model"]["round"] == "2"


def test_the_same_file_is_read_once(model: Sam, file: ModelFile) -> None:
    assert file.newest() is None, "there need not be one"
    write(model, file.path, 1)
    found = file.newest()
    assert found is not None and found.round == "1" and file.newest() is None
    os.utime(file.path, ns=(1, 1))
    assert file.newest() is not None


def test_a_server_begins_with_the_newest(photos: Path, tmp_path: Path, model: Sam, file: ModelFile) -> None:
    write(model, file.path, 4)
    found = file.newest()
    assert found is not None
    service = Service(Settings(folder=photos, out=tmp_path / "out", model_name="hq_test_tiny"), found, file)
    with serving(service) as client:
        assert client.get("/api/state").json()["model"]["round"] == "4"


def test_a_server_that_ends_meanwhile(following: Service, model: Sam, file: ModelFile, caplog: Any) -> None:
    with serving(following):
        pass
    write(model, file.path, 1)
    look(following)
    assert caplog.text == "" and following.round is None


def test_the_thread_looks_and_ends(monkeypatch: pytest.MonkeyPatch, file: ModelFile, model: Sam) -> None:
    import threading

    monkeypatch.setattr("hqsam.serve.following._PAUSE", 0.01)
    used = threading.Event()
    follower = Follower(file, lambda _: used.set())
    write(model, file.path, 1)
    follower.start()
    assert used.wait(60)
    follower.close()
    assert not follower._thread.is_alive()


def test_embeddings_of_another_model(photos: Path, following: Service, model: Sam) -> None:
    assert isinstance(following.embeddings, Embeddings)
    same = create_model("hq_test_tiny", device="cpu")
    same.load_state_dict(model.state_dict())
    following.embeddings.use_model(same)
    assert following.embeddings.model is same
