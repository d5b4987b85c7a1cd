"""A server in a process of its own, which may be killed and started again."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_LOOK = 0.05
"""Seconds between two looks at whether something happened."""


class Refused(Exception):
    """The server refused a request."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"status {status}: {body}")
        self.status, self.body = status, body


def hqsam_command(name: str) -> list[str]:
    """`hqsam NAME`, run by this Python."""
    return [sys.executable, "-c", "import sys; from hqsam.cli import main; sys.exit(main())", name]


class ServerProcess:
    """`hqsam serve`.

    Args:
        photos: the pictures.
        annotations: what it keeps.
        options: further ones.

    Attributes:
        kills: how often it was killed.
    """

    def __init__(self, photos: Path, annotations: Path, options: Sequence[str] = ()) -> None:
        self.port = _free_port()
        self.kills = 0
        call = [*hqsam_command("serve"), str(photos), "--out", str(annotations), "--port", str(self.port)]
        self._call = [*call, *options]
        self._process = self._start()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Ask again and again.

        Raises:
            RuntimeError: the server ended meanwhile.
        """
        while not is_so():
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self._process.returncode}")
            time.sleep(_LOOK)

    def get(self, path: str) -> Any:
        """The JSON answer to a GET."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: Any = None, *, kill: bool = False) -> Any:
        """The JSON answer to a request.

        Args:
            method: of HTTP.
            path: on this server.
            body: JSON.
            kill: kill the server as soon as the request is sent; whether it was done is then unknown.

        Raises:
            Refused: an answer that is not 200.
            ConnectionError: the server is gone.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            content = None if body is None else json.dumps(body)
            headers = {"X-Hqsam-Request": "1", "Content-Type": "application/json"}
            connection.request(method, path, content, headers)
            if kill:
                self.kill()
                raise ConnectionAbortedError("the server was killed")
            response = connection.getresponse()
            answer = json.loads(response.read())
        except http.client.HTTPException as error:
            raise ConnectionAbortedError(str(error)) from error
        finally:
            connection.close()
        if response.status != 200:
            raise Refused(response.status, answer)
        return answer

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
            self.kills += 1

    def restart(self) -> None:
        """Start it again."""
        self._process = self._start()

    def end(self) -> None:
        """Ask it to end, and wait until it did."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(self._call, stdout=subprocess.DEVNULL)
        self.wait_until(self._answers)
        return self._process

    def _answers(self) -> bool:
        try:
            self.get("/api/state")
        except ConnectionError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
