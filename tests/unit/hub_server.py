"""A stand-in for a model hub on loopback: serves files the way huggingface-hub's client asks for them."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server has and how it misbehaves.

    Attributes:
        files: "owner/name/file" -> content.
        url: where it listens.
        cut_after: bytes after which the next answer breaks off; None never.
        damage: answer with this instead of the content, at the same length.
        requests: (method, path, Range header) of everything that was asked.
    """

    files: dict[str, bytes]
    url: str = ""
    cut_after: int | None = None
    damage: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)

    @property
    def downloads(self) -> list[str | None]:
        """The Range headers of all requests for a file's content; the client asks for other things too."""
        return [ranges for method, path, ranges in self.requests if method == "GET" and "/resolve/" in path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        ranges = self.headers.get("Range")
        self.hub.requests.append((self.command, self.path, ranges))
        content = self.hub.files.get(self.path.strip("/").replace("/resolve/main/", "/"))
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", ranges)[1]) if ranges else 0  # type: ignore[index]
        self.send_response(206 if ranges else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if with_body:
            self._send(bytes(len(content)) if self.hub.damage else content, start)

    def _send(self, content: bytes, start: int) -> None:
        cut, self.hub.cut_after = self.hub.cut_after, None
        self.wfile.write(content[start:] if cut is None else content[start : start + cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """A running hub."""
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
