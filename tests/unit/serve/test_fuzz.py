"""Whatever a client sends, the server itself does not break: requests made up from its own description."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("schemathesis")
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from hqsam.automatic import SamAutomaticMaskGenerator
from hqsam.models import Sam
from hqsam.serve.service import Service, Settings
from tests.unit.serve.serving import OWN, SIZES, block, draw, ids, item, put, serving

EXAMPLES = int(os.environ.get("HQSAM_FUZZ_EXAMPLES", "25"))
EXPECTED = {200, 400, 404, 405, 409, 413, 415, 422}
OPERATIONS = [
    ("GET", "/api/state"),
    ("GET", "/api/statistics"),
    ("GET", "/api/images"),
    ("GET", "/api/images/{image}/file"),
    ("GET", "/api/images/{image}/thumbnail"),
    ("GET", "/api/images/{image}/annotations"),
    ("PUT", "/api/images/{image}/annotations"),
    ("POST", "/api/images/{image}/predict"),
    ("GET", "/api/images/{image}/embedding"),
    ("POST", "/api/images/{image}/proposals"),
    ("POST", "/api/prefetch"),
]
CAN_BE_WRONG = {
    "/api/images",
    "/api/images/{image}/annotations",
    "/api/images/{image}/predict",
    "/api/images/{image}/embedding",
    "/api/prefetch",
}
"""Requests that can break what the description says, not only follow it."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, model: Sam) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("fuzz")
    for seed, (name, size) in enumerate(SIZES.items()):
        draw(folder / "photos" / name, size, seed)
    settings = Settings(folder=folder / "photos", out=folder / "out", model_name="m")
    original = SamAutomaticMaskGenerator.preset
    with pytest.MonkeyPatch.context() as patch:
        few = lambda model, name, **options: original(model, name, points_per_side=2, **options)  # noqa: E731
        patch.setattr(SamAutomaticMaskGenerator, "preset", few)
        yield from _clients(settings, model)


def _clients(settings: Settings, model: Sam) -> Iterator[Any]:
    with serving(Service(settings, model)) as found:
        put(found, ids(found)[0], 0, [item("one", block((40, 60), 3, 5, 20))])
        yield found


@pytest.fixture(scope="module")
def described(client: Any) -> Any:
    return schemathesis.openapi.from_dict(client.get("/api/openapi.json").json())


def send(client: Any, case: Any) -> Any:
    given = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
    body = {"json": given["json"]} if "json" in given else {"content": given.get("data")}
    if not isinstance(body.get("content", b""), str | bytes):
        body = {"data": body["content"]}
    headers = {name: value for name, value in dict(given["headers"]).items() if value is not None}
    arguments = {"params": given["params"], "headers": {**headers, **OWN}}
    return client.request(given["method"], given["url"], **arguments, **body)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_server(client: Any, described: Any, method: str, path: str) -> None:
    operation, images = described[path][method], [*ids(client), None]

    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if path in CAN_BE_WRONG:
        cases = st.one_of(cases, operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))

    @given(case=cases, image=st.sampled_from(images))
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def check(case: Any, image: str | None) -> None:
        if image is not None and "image" in (case.path_parameters or {}):
            case.path_parameters = {**case.path_parameters, "image": image}
        answer = send(client, case)
        assert answer.status_code in EXPECTED, (answer.status_code, answer.text[:500])
        if answer.status_code >= 400:
            assert isinstance(answer.json()["detail"], str | list)

    check()


def test_every_operation_is_tried(described: Any) -> None:
    found = {(operation.ok().method.upper(), operation.ok().path) for operation in described.get_all_operations()}
    assert found == set(OPERATIONS)
