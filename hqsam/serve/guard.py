"""What every request must bring and every answer carries: who may ask, from which page, how much."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import HTTPException

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 64 * 2**20
OWN_HEADER = "x-hqsam-request"
COOKIE = "hqsam_token_"
"""Begin of the cookie's name. Cookies do not know ports: two servers of one machine need two names."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_HEADERS = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",  # with the one above: threads in the browser's decoder
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
        "img-src 'self' blob: data:; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """ASGI middleware around the whole application.

    A page of another site can make a browser send requests here, but it cannot set a header of its own without asking
    first, which is never granted, nor read an answer; and under a name of its own that leads to this address it is
    refused by the Host header.

    Args:
        app: the application.
        host: what the server listens on.
        token: what a client must know; None lets everybody in who can connect.
    """

    def __init__(self, app: App, *, host: str = "127.0.0.1", token: str | None = None) -> None:
        self.app, self.token = app, token
        self.cookie = COOKIE + hashlib.sha256((token or "").encode()).hexdigest()[:12]
        self.hosts = None if host in _EVERY_ADDRESS else LOOPBACK | {host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on; headers are added to either answer."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        send = _with_headers(scope, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _respond(send, *refusal)
        elif (cookie := self._sign_in(scope)) is not None:
            await _respond(send, 303, "", cookie)
        elif not self._is_known(headers):
            await _respond(send, 401, "a token is needed: open /?token=..., or send Authorization: Bearer ...")
        else:
            await self.app(scope, _limited(receive), send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            return 403, f"this server is not {host[:100]!r}"
        if scope["method"] not in _SAFE_METHODS:
            if headers.get(OWN_HEADER) != "1":
                return 403, f"requests that change something need the header {OWN_HEADER}: 1"
            origin = headers.get("origin")
            if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
                return 403, "requests from other pages are refused"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return 400, "Content-Length is no number"
        if len(length) > 15 or int(length) > MAX_BODY:
            return 413, _too_large()
        return None

    def _sign_in(self, scope: Scope) -> bytes | None:
        """The cookie for a page that was opened with the right token in its address."""
        if self.token is None or scope["path"] != "/" or scope["method"] != "GET":
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if len(given) != 1 or not _equal(given[0], self.token):
            return None
        return f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/".encode("latin-1")

    def _is_known(self, headers: dict[str, str]) -> bool:
        if self.token is None:
            return True
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return _equal(bearer.strip(), self.token)
        # Not by `http.cookies`, which gives up at the first cookie of another server that is not as it should be.
        cookies = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == self.cookie and _equal(value, self.token) for name, _, value in cookies)


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _host_name(host: str) -> str:
    """Of a Host header, without the port: behind a tunnel that is another one."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _limited(receive: Receive) -> Receive:
    """Requests without a length are counted as they come."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MAX_BODY:
            raise HTTPException(413, _too_large())
        return message

    return counted


def _too_large() -> str:
    return f"a request may have {MAX_BODY >> 20} MiB"


def _with_headers(scope: Scope, send: Send) -> Send:
    added = dict(_HEADERS)
    is_page = scope["path"] == "/" or scope["path"].startswith(("/page/", "/runtime/"))
    # the page's own files are asked for again each time, and may be kept if they are unchanged
    added["cache-control"] = "no-cache" if is_page else "no-store"

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message.get("headers", [])}
            more = [(n.encode(), v.encode()) for n, v in added.items() if n.encode() not in given]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return wrapped


async def _respond(send: Send, status: int, detail: str, cookie: bytes | None = None) -> None:
    body = json.dumps({"detail": detail}).encode() if detail else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if cookie is not None:
        headers += [(b"location", b"/"), (b"set-cookie", cookie)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
