"""``python -m benchmarks.page --runtime DIR``: from a prompt in the annotation page to its mask.

The same prompts are answered in turns by the server, by the decoder in the browser (WebAssembly), and by onnxruntime on
the decoder's file alone, for the same part of the picture and with as many threads as the browser takes: a busy machine
slows all three.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hqsam.geometry import ResizeLongestSide
from hqsam.images import read_image
from hqsam.models.decoding import Shown
from hqsam.models.encoders import STRIDE

MODEL = "hq_vit_tiny.embedded"
PICTURE = Path(__file__).parents[1] / "data" / "samples" / "coffee.jpg"
WARM_UP = 3

ASK = """async (point) => {
  const { image } = hqsam.annotator.document;
  const prompt = { points: [point], box: null, previous: null, fusion: 'sum', multimask: true };
  const answer = await hqsam.predictor.predict(image, prompt);
  const begin = performance.now();
  answer.masks.forEach((candidate) => candidate.mask);  // what is still to be decoded
  return [answer.source, answer.ms + performance.now() - begin];
}"""


def command(
    runtime: Annotated[Path, typer.Option(metavar="DIR", help="Where onnxruntime-web was installed.")],
    prompts: Annotated[int, typer.Option(min=1)] = 20,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keeps the exported decoder for the next run.")
    ] = None,
    chromium: Annotated[str | None, typer.Option(help="Program; the first one that is found.")] = None,
) -> None:
    """Median milliseconds from a prompt to its three masks, after encoding."""
    from playwright.sync_api import sync_playwright

    program = chromium or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        url, server = _serve(Path(folder), runtime, cache)
        print("exporting the decoder", flush=True)
        with urllib.request.urlopen(f"{url}decoder.onnx") as response:
            decoder = response.read()
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tabs = {name: _tab(browser, f"{url}?decoder={name}") for name in ("server", "wasm")}
        threads = min(4, tabs["wasm"].evaluate("navigator.hardwareConcurrency"))
        native = _Native(decoder, threads)
        times: dict[str, list[float]] = {"server": [], "wasm": [], "native": []}
        for turn in range(WARM_UP + prompts):
            point = [200 + 4 * turn, 100, 1]
            taken = {name: _ask(tab, point, "browser" if name == "wasm" else "server") for name, tab in tabs.items()}
            taken["native"] = native.milliseconds(point)
            for name, value in taken.items():
                times[name] += [value] if turn >= WARM_UP else []
        browser.close()
        server.should_exit = True
    _print(times, threads)


def _serve(folder: Path, runtime: Path, cache: Path | None) -> tuple[str, Any]:
    import uvicorn

    from hqsam.cli.options import load_model
    from hqsam.serve.app import create_app
    from hqsam.serve.service import Service, Settings

    (folder / "pictures").mkdir()
    shutil.copy(PICTURE, folder / "pictures")
    settings = Settings(folder=folder / "pictures", out=folder / "out", model_name=MODEL, runtime=runtime, cache=cache)
    app = create_app(Service(settings, load_model(MODEL, None, "cpu").eval()))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/", server


def _tab(browser: Any, url: str) -> Any:
    tab = browser.new_page()
    tab.goto(url)
    while not tab.evaluate("Boolean(window.hqsam?.annotator.document)"):
        tab.wait_for_timeout(50)
    return tab


def _ask(tab: Any, point: list[int], source: str) -> float:
    answered, milliseconds = tab.evaluate(ASK, point)
    if answered != source:
        raise RuntimeError(f"the {answered} answered in place of the {source}")
    return float(milliseconds)


class _Native:
    """The decoder's file in onnxruntime, with numbers of an image's size: their values take no part in the time."""

    def __init__(self, decoder: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(decoder, options, providers=["CPUExecutionProvider"])
        generator = np.random.default_rng(0)
        shapes = {item.name: item.shape for item in self.session.get_inputs()}
        grid = shapes["image_embeddings"][2:]
        rows, columns = _shown_cells(grid)
        shapes["hq_features"] = [1, 32, 4 * rows, 4 * columns]  # as much as the page gives it
        self.of_image = {
            name: generator.standard_normal(shapes[name], dtype=np.float32)
            for name in ("image_embeddings", "hq_features")
        }
        self.mask = np.zeros((1, 1, *(4 * side for side in grid)), dtype=np.float32)

    def milliseconds(self, point: list[int]) -> float:
        feeds = {
            **self.of_image,
            "point_coords": np.array([[point[:2], [0, 0]]], dtype=np.float32),
            "point_labels": np.array([[1, -1]], dtype=np.float32),
            "mask_input": self.mask,
            "has_mask_input": np.zeros(1, dtype=np.float32),
        }
        begin = time.perf_counter()
        self.session.run(None, feeds)
        return (time.perf_counter() - begin) * 1000


def _shown_cells(grid: list[int]) -> tuple[int, int]:
    height, width = read_image(PICTURE).shape[:2]
    side = STRIDE * grid[0]
    return Shown.of_input(ResizeLongestSide.get_preprocess_shape(height, width, side), (grid[0], grid[1])).cells


def _print(times: dict[str, list[float]], threads: int) -> None:
    names = {
        "server": "prompt to masks through the server",
        "wasm": f"prompt to masks in the browser, WebAssembly, {threads} threads",
        "native": f"decoder alone in onnxruntime, {threads} threads",
    }
    base = statistics.median(times["native"])
    for key, values in times.items():
        median = statistics.median(values)
        print(f"{names[key]}: median {median:.0f} ms, best {min(values):.0f} ms, {median / base:.1f} times onnxruntime")


if __name__ == "__main__":
    typer.run(command)
