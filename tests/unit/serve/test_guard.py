"""Who is let in: names, pages, tokens, sizes; and what every answer carries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hqsam.serve import guard
from hqsam.serve.service import Service
from tests.unit.serve.serving import OWN, ids, serving

TOKEN = "a-Token_1.~"


@pytest.fixture
def locked_client(service: Service) -> Iterator[Any]:
    with serving(service, host="0.0.0.0", token=TOKEN) as client:
        yield client


def test_every_answer_carries_the_headers(client: Any) -> None:
    image = ids(client)[0]
    refused = client.get("/api/state", headers={"host": "evil.example"})
    for answer in (client.get("/api/state"), client.get(f"/api/images/{image}/file"), client.get("/no"), refused):
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:;" in policy
        assert "unsafe-inline" not in policy and "access-control-allow-origin" not in answer.headers
        is_picture = answer.request.url.path.endswith("/file")
        assert answer.headers["cache-control"] == ("private, no-cache" if is_picture else "no-store")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example"]
)
def test_other_names_are_refused(client: Any, host: str) -> None:
    assert client.get("/api/state", headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:9999", "[::1]:8000"])
def test_own_names(client: Any, host: str) -> None:
    assert client.get("/api/state", headers={"host": host}).status_code == 200


def test_the_name_that_the_server_was_given(service: Service) -> None:
    with serving(service, host="192.168.1.5", token=TOKEN) as client:
        known = {"authorization": f"Bearer {TOKEN}"}
        assert client.get("/api/state", headers={"host": "192.168.1.5:8000", **known}).status_code == 200
        assert client.get("/api/state", headers={"host": "192.168.1.6:8000", **known}).status_code == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_what_changes_something_needs_the_header(client: Any, method: str) -> None:
    address = f"/api/images/{ids(client)[0]}/annotations"
    del client.headers["X-Hqsam-Request"]
    assert client.request(method, address).status_code == 403
    assert client.request(method, address, headers={"X-Hqsam-Request": "0"}).status_code == 403
    assert client.request(method, address, headers=OWN).status_code in (405, 422)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1.evil.example"]
)
def test_other_pages_change_nothing(client: Any, origin: str) -> None:
    address, body = f"/api/images/{ids(client)[0]}/annotations", {"revision": 0, "state": "done", "objects": []}
    assert client.put(address, json=body, headers={"origin": origin}).status_code == 403
    assert client.put(address, json=body, headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


def test_a_token_is_needed(locked_client: Any) -> None:
    for path in ("/", "/api/state", "/page/index.html", "/decoder.onnx", "/api/openapi.json", "/nothing"):
        assert locked_client.get(path).status_code == 401, path
    for wrong in (f"Bearer {TOKEN}x", "Bearer ", "Bearer", TOKEN, f"Basic {TOKEN}", "Bearer ü"):
        assert locked_client.get("/api/state", headers={"authorization": wrong.encode()}).status_code == 401, wrong
    assert locked_client.get("/api/state", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    name = guard.Guard(None, token=TOKEN).cookie  # type: ignore[arg-type]
    for wrong in (f"{name}=x", f"{name}=", f"hqsam_token={TOKEN}", "x=y;;;", '"'):
        assert locked_client.get("/api/state", headers={"cookie": wrong}).status_code == 401, wrong
    for others in (f'other={{"a": "b c"}}; {name}={TOKEN}', f"x[]=é; {name}=old; {name}={TOKEN}"):
        # of other servers on this machine: cookies do not know ports
        assert locked_client.get("/api/state", headers={"cookie": others.encode()}).status_code == 200, others
    for query in ("token=x", f"token={TOKEN}&token={TOKEN}", "token=", "%ff"):
        assert locked_client.get(f"/?{query}").status_code == 401, query
    assert locked_client.get(f"/api/state?token={TOKEN}").status_code == 401


def test_a_page_that_is_opened_with_the_token_keeps_it(locked_client: Any) -> None:
    answer = locked_client.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert not cookie.startswith(guard.Guard(None, token="another server's").cookie)  # type: ignore[arg-type]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert locked_client.get("/api/state").status_code == 200  # the client keeps cookies
    assert locked_client.post("/api/prefetch", json={"ids": []}).status_code == 200


def test_nobody_learns_without_the_token_that_a_picture_is_unchanged(locked_client: Any, service: Service) -> None:
    address = f"/api/images/{next(iter(service.pictures))}/file"
    bearer = {"authorization": f"Bearer {TOKEN}"}
    known = {"if-none-match": locked_client.get(address, headers=bearer).headers["etag"]}
    assert locked_client.get(address, headers=known).status_code == 401
    assert locked_client.get(address, headers=known | bearer).status_code == 304


def test_a_token_does_not_replace_the_other_checks(locked_client: Any) -> None:
    known = {"authorization": f"Bearer {TOKEN}"}
    assert locked_client.post("/api/prefetch", json={"ids": []}, headers=known).status_code == 200
    assert (
        locked_client.post("/api/prefetch", json={"ids": []}, headers={**known, "origin": "http://x"}).status_code
        == 403
    )
    del locked_client.headers["X-Hqsam-Request"]
    assert locked_client.post("/api/prefetch", json={"ids": []}, headers=known).status_code == 403


def test_large_requests(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    assert client.post("/api/prefetch", content=b" " * 1001).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 100

    headers = {"content-type": "application/json"}
    assert client.post("/api/prefetch", content=chunks(), headers=headers).status_code == 413
    for length in ("-1", "x", "1" * 5000):
        assert client.post("/api/prefetch", content=b"", headers={"content-length": length}).status_code in (400, 413)


def test_errors_of_the_server_say_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    from hqsam.serve.app import create_app

    def broken() -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(service, "counts", broken)
    with TestClient(create_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.get("/api/state")
    assert answer.status_code == 500 and "secret" not in answer.text
    assert "content-security-policy" in answer.headers
