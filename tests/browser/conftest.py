"""A server with the embedded model, and a Chromium that looks at it; both only where they can be had."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hqsam.models import Sam
from hqsam.registry import create_model
from tests.helpers import ROOT

SAMPLES = ("astronaut.jpg", "camera.png", "coffee.jpg", "rocket.jpg")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RUNTIME = os.environ.get("HQSAM_ORT_WEB")
"""Folder into which onnxruntime-web was installed."""


class Served:
    """A running server.

    Attributes:
        url: of the page.
        out: folder of the annotations.
        service: what is behind it.
    """

    def __init__(self, folder: Path, out: Path, model: Sam, runtime: Path | None) -> None:
        import uvicorn

        from hqsam.serve.app import create_app
        from hqsam.serve.service import Service, Settings

        settings = Settings(
            folder=folder, out=out, model_name="hq_vit_tiny.embedded", labels=["cup", "rocket"], runtime=runtime
        )
        self.out, self.service = out, Service(settings, model)
        config = uvicorn.Config(create_app(self.service), host="127.0.0.1", port=0, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=30)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Start servers of the sample photographs; their embeddings are kept for the next one."""
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("pictures")
    for name in SAMPLES:
        shutil.copy(ROOT / "data" / "samples" / name, folder)
    embedded = create_model("hq_vit_tiny.embedded", device="cpu").eval()
    running: list[Served] = []

    def start(runtime: Path | None = None, model: Sam = embedded) -> Served:
        running.append(Served(folder, tmp_path_factory.mktemp("annotations"), model, runtime))
        return running[-1]

    yield start
    for served in running:
        served.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs a Chromium")
    with playwright.sync_playwright() as program:
        # a graphics card in software, which a page has to ask for by name: it never chooses one by itself
        webgpu = ["--enable-unsafe-webgpu", "--enable-unsafe-swiftshader"]
        browser = program.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *webgpu])
        yield browser
        browser.close()
