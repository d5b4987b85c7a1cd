"""What a page needs to decode by itself: onnxruntime-web, which the user brings, and the decoder as an ONNX file."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hqsam.models import Sam
from hqsam.serve.files import FileFolder

logger = logging.getLogger(__name__)

DECODER_LAYOUT = 2
"""Of the inputs and outputs of the decoder's file, as the page reads them. It is part of the folder's name, so that no
older file in a cache is taken for it."""

_PACKAGE = Path("node_modules", "onnxruntime-web", "dist")
_RUNTIME_KINDS = (".js", ".mjs", ".wasm", ".map")
_NO_RUNTIME = (
    "no onnxruntime-web: npm install --prefix DIR onnxruntime-web, and start the server with --runtime DIR (or put its "
    "files into runtime in the cache folder)"
)


class BrowserDecoder:
    """The files, of which the decoder is made when it is first needed.

    Tracing takes a minute of a processor and changes how torch works meanwhile, so it has a process of its own.

    Args:
        pickled: gives the model as `pickled_model` makes it.
        path: of the decoder; its name says which weights it is of.
        runtime: folder of the files of onnxruntime-web, or one where npm installed it.
        name: the model's name, for the file's metadata.
    """

    def __init__(self, pickled: Callable[[], bytes], path: Path, runtime: Path, name: str) -> None:
        self.pickled, self.path, self.name = pickled, path, name
        self.runtime = FileFolder(runtime / _PACKAGE if (runtime / _PACKAGE).is_dir() else runtime, _RUNTIME_KINDS)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: Any = None
        self._closed = False
        self._problem: str | None = None

    def state(self) -> dict[str, Any]:
        """What the page is told; begins to make the decoder where that alone is missing."""
        reason = self._missing()
        return {"available": reason is None, "decoder": "/decoder.onnx", "runtime": "/runtime/", "reason": reason}

    def start(self) -> None:
        """Make the decoder, in the background, if a page could use it."""
        if self.has_runtime() and not self.path.is_file() and self._cannot_export() is None:
            self._begin()

    def decoder(self) -> bytes | str:
        """The file, made now if it is not there; or why there is none."""
        if not self.path.is_file():
            problem = self._cannot_export()
            if problem is not None:
                return problem
            self._begin().join()
        return self.path.read_bytes() if self.path.is_file() else (self._problem or "the decoder could not be made")

    def close(self) -> None:
        """End an export that is under way."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.terminate()
            thread = self._thread
        if thread is not None:
            thread.join()

    def has_runtime(self) -> bool:
        """Whether both the program and its WebAssembly are there."""
        names = self.runtime.names()
        return any(name.endswith(".wasm") for name in names) and any(name.endswith((".mjs", ".js")) for name in names)

    def _missing(self) -> str | None:
        if not self.has_runtime():
            return _NO_RUNTIME
        if self.path.is_file():
            return None
        problem = self._cannot_export() or self._problem
        if problem is None:
            self._begin()
        return problem or "the decoder is being made"

    def _cannot_export(self) -> str | None:
        missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
        return f"no {' and no '.join(missing)}: pip install 'hqsam[onnx]'" if missing else None

    def _begin(self) -> threading.Thread:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._export, name="hqsam-export", daemon=True)
                self._thread.start()
            return self._thread

    def _export(self) -> None:
        try:
            self._problem = self._export_apart()
        except Exception as error:  # a thread has no caller
            self._problem = f"{type(error).__name__}: {error}"
        if self._problem is not None and not self._closed:
            logger.warning("the decoder for browsers could not be made: %s", self._problem)

    def _export_apart(self) -> str | None:
        model = self.pickled()
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=write_decoder, args=(model, self.path, self.name, sender), daemon=True)
        with self._lock:
            if self._closed:
                return "the server ends"
            process.start()
            self._process = process
        sender.close()
        try:
            problem: str | None = receiver.recv()
        except EOFError:
            problem = "the process that made it ended early"
        process.join()
        return problem


def pickled_model(model: Sam) -> bytes:
    """A model for another process, on the CPU.

    As bytes: tensors that processes share would move the model itself into shared memory, which may be small.
    """
    return pickle.dumps(copy.deepcopy(model).cpu())


def write_decoder(model: bytes, path: Path, name: str, sender: Connection) -> None:
    """Export the decoder; the body of the other process.

    Args:
        model: pickled.
        path: of the file.
        name: the model's name.
        sender: gets None, or what went wrong.
    """
    import torch

    from hqsam.export import export_decoder

    if hasattr(os, "nice"):
        os.nice(10)
    torch.set_num_threads(1)
    try:
        sam: Sam = pickle.loads(model)
        able = sam.has_hq and sam.head_state != "untrained"
        export_decoder(sam, path, fusion="sum" if able else "sam", separate=able, crop=able, winograd=True, name=name)
        sender.send(None)
    except Exception as error:
        sender.send(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
