"""What the page gets to decode by itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from hqsam.models import Sam
from hqsam.serve import app, browser
from hqsam.serve.browser import BrowserDecoder, pickled_model, write_decoder
from hqsam.serve.files import FileFolder
from hqsam.serve.service import Service, Settings
from tests.unit.serve.serving import serving


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """As npm installs it."""
    folder = tmp_path / "npm" / "node_modules" / "onnxruntime-web" / "dist"
    folder.mkdir(parents=True)
    for name in (
        "ort.wasm.min.mjs",
        "ort-wasm-simd-threaded.wasm",
        "ort.min.js.map",
        "types.d.ts",
        ".hidden.mjs",
        "x.json",
    ):
        (folder / name).write_text(name)
    return tmp_path / "npm"


@pytest.fixture
def ready(photos: Path, tmp_path: Path, model: Sam, runtime: Path) -> Service:
    """A server that has a decoder."""
    service = Service(Settings(folder=photos, out=tmp_path / "out", model_name="m", runtime=runtime), model)
    service.browser.path.parent.mkdir(parents=True)
    service.browser.path.write_bytes(b"a graph")
    return service


def test_everything_is_there(ready: Service) -> None:
    with serving(ready) as client:
        state = client.get("/api/state").json()["browser_decoder"]
        assert state == {"available": True, "decoder": "/decoder.onnx", "runtime": "/runtime/", "reason": None}
        assert client.get("/decoder.onnx").content == b"a graph"
        for name, kind in (
            ("ort.wasm.min.mjs", "text/javascript; charset=utf-8"),
            ("ort-wasm-simd-threaded.wasm", "application/wasm"),
            ("ort.min.js.map", "application/json"),
        ):
            answer = client.get(f"/runtime/{name}")
            assert answer.text == name and answer.headers["content-type"] == kind
            assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
        for name in ("types.d.ts", "x.json", ".hidden.mjs", "../package.json", "%2e%2e/x.mjs", ""):
            assert client.get(f"/runtime/{name}").status_code == 404


def test_without_a_runtime_nothing_is_made(client: Any, service: Service) -> None:
    state = client.get("/api/state").json()["browser_decoder"]
    assert not state["available"] and "npm install --prefix DIR onnxruntime-web" in state["reason"]
    assert service.browser._thread is None


def test_without_onnx(ready: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.browser.path.unlink()
    found = importlib.util.find_spec
    monkeypatch.setattr(browser, "find_spec", lambda name: None if name == "onnx" else found(name))
    with serving(ready) as client:
        state = client.get("/api/state").json()["browser_decoder"]
        assert not state["available"] and "pip install 'hqsam[onnx]'" in state["reason"]
        answer = client.get("/decoder.onnx")
        assert answer.status_code == 404 and "hqsam[onnx]" in answer.json()["detail"]
    assert ready.browser._thread is None


def test_a_decoder_that_cannot_be_made(ready: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.browser.path.unlink()
    monkeypatch.setattr(BrowserDecoder, "_export_apart", lambda self: "the model is strange")
    with serving(ready) as client:
        assert client.get("/decoder.onnx").json()["detail"] == "the model is strange"
        assert client.get("/api/state").json()["browser_decoder"]["reason"] == "the model is strange"


def test_it_is_made_once_however_many_ask(ready: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    ready.browser.path.unlink()
    calls = []

    def make(self: BrowserDecoder) -> None:
        calls.append(1)
        self.path.write_bytes(b"new")

    monkeypatch.setattr(BrowserDecoder, "_export_apart", make)
    with serving(ready) as client:
        for _ in range(2):
            assert client.get("/decoder.onnx").content == b"new"
        assert client.get("/api/state").json()["browser_decoder"]["available"]
    assert calls == [1]


def test_the_body_of_the_other_process(model: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hqsam.export

    class Sender:
        sent: list[Any] = []  # noqa: RUF012

        def send(self, value: Any) -> None:
            self.sent.append(value)

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(browser.os, "nice", lambda _: 0)
    monkeypatch.setattr(hqsam.export, "export_decoder", lambda _, path, **options: calls.append(options))
    write_decoder(pickled_model(model), tmp_path / "decoder.onnx", "m", Sender())  # type: ignore[arg-type]
    assert calls == [{"fusion": "sum", "separate": True, "crop": True, "winograd": True, "name": "m"}]
    assert Sender.sent == [None]
    write_decoder(b"nonsense", tmp_path / "decoder.onnx", "m", Sender())  # type: ignore[arg-type]
    assert "UnpicklingError" in Sender.sent[1]


@pytest.mark.slow
def test_a_process_makes_it(photos: Path, tmp_path: Path, model: Sam) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    service = Service(Settings(folder=photos, out=tmp_path / "out", model_name="m"), model)
    with serving(service) as client:
        (tmp_path / "decoder.onnx").write_bytes(client.get("/decoder.onnx").content)
    from hqsam.export.files import describe_exported

    about = describe_exported(tmp_path / "decoder.onnx")
    assert about["weights"] == service.fingerprint and about["masks"] == "all"
    assert list(about["outputs"]) == ["low_res_masks_sam", "low_res_masks_hq", "iou_predictions"]


def test_the_page(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page"
    (page / "lib").mkdir(parents=True)
    (page / "index.html").write_text("<title>ü</title>", encoding="utf-8")
    (page / "lib" / "a.mjs").write_text("export {}")
    (page / "secret.py").write_text("")
    (page / "link.js").symlink_to(tmp_path / "outside.js")
    (tmp_path / "outside.js").write_text("")
    monkeypatch.setattr(app, "PAGE", page)
    with serving(service) as client:
        assert client.get("/").text == "<title>ü</title>"
        assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
        assert client.get("/").headers["cache-control"] == "no-cache"
        assert client.get("/page/lib/a.mjs").headers["content-type"] == "text/javascript; charset=utf-8"
        for name in ("secret.py", "link.js", "lib", "lib/", "../outside.js"):
            assert client.get(f"/page/{name}").status_code == 404


def test_files_that_come_and_go(tmp_path: Path) -> None:
    folder = FileFolder(tmp_path / "later")
    assert folder.read("a.js") is None
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "a.js").write_text("1")
    assert folder.read("a.js") == (b"1", "text/javascript; charset=utf-8")
    (tmp_path / "later" / "a.js").unlink()
    assert folder.read("a.js") is None
