"""The addresses of the server. Functions without `async` run in threads: they wait for files and locks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, HTTPException, Query, Request, Response

from hqsam import __version__
from hqsam.serve.files import MEDIA_TYPES, FileFolder
from hqsam.serve.messages import PredictRequest, PrefetchRequest, Problem, SaveRequest
from hqsam.serve.pictures import Picture
from hqsam.serve.prompting import answer
from hqsam.serve.service import Service
from hqsam.serve.worker import Urgency

_T = TypeVar("_T")
_PROBLEMS: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (403, 404, 422, 423)}
Part = Literal["image_embeddings", "hq_features"]


def picture_routes(service: Service) -> APIRouter:
    """Which pictures there are, and the pictures themselves."""
    router = APIRouter(prefix="/api", responses=_PROBLEMS)

    @router.get("/state")
    def state() -> dict[str, Any]:
        return {
            "version": __version__,
            "model": service.model_state(),
            "labels": list(service.settings.labels),
            "browser_decoder": service.browser.state(),
            "counts": service.counts(),
        }

    @router.get("/statistics")
    def statistics() -> dict[str, Any]:
        return service.statistics()

    @router.get("/images")
    def images(offset: int = Query(0, ge=0), limit: int = Query(200, ge=1, le=1000)) -> dict[str, Any]:
        chosen = list(service.pictures.values())[offset : offset + limit]
        return {"total": len(service.pictures), "images": [service.summary(picture) for picture in chosen]}

    @router.get("/images/{image}/file", response_class=Response)
    def file(image: str, request: Request) -> Response:
        picture = _picture(service, image)
        return _unless_known(request, picture, picture.file)

    @router.get("/images/{image}/thumbnail", response_class=Response)
    def thumbnail(image: str, request: Request) -> Response:
        picture = _picture(service, image)
        return _unless_known(request, picture, lambda: (picture.thumbnail(), "image/jpeg"))

    return router


def _unless_known(request: Request, picture: Picture, make: Callable[[], tuple[bytes, str]]) -> Response:
    """Content and media type that `make` gives, or 304 where the browser has it of the file as it is now."""
    headers = {"etag": picture.tag(), "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    content, media_type = make()
    return Response(content, media_type=media_type, headers=headers)


def annotation_routes(service: Service) -> APIRouter:
    """Objects of an image."""
    router = APIRouter(prefix="/api", responses=_PROBLEMS)

    @router.get("/images/{image}/annotations")
    def load(image: str) -> dict[str, Any]:
        return service.annotations(_picture(service, image))

    @router.put("/images/{image}/annotations", responses={409: {"description": "not the newest revision"}})
    def save(image: str, request: SaveRequest) -> dict[str, int]:
        picture = _picture(service, image)
        return {"revision": service.store.save(picture, request.revision, request.state, request.objects)}

    return router


def model_routes(service: Service) -> APIRouter:
    """What needs the model; it is waited for without holding a thread."""
    router = APIRouter(prefix="/api", responses=_PROBLEMS)

    @router.post("/images/{image}/predict")
    async def predict(image: str, request: PredictRequest) -> dict[str, Any]:
        picture = _picture(service, image)
        await _result(service.embeddings.current(picture).future)
        job = service.worker.submit(
            lambda: answer(service.embeddings.predictor(picture), picture, request, service.answers), Urgency.PROMPT
        )
        return await _result(job.future)

    @router.get("/images/{image}/embedding", response_class=Response)
    async def embedding(image: str, part: Part = "image_embeddings") -> Response:
        picture = _picture(service, image)
        await _result(service.embeddings.current(picture).future)
        job = service.worker.submit(lambda: service.embedding(picture, part), Urgency.CURRENT)
        content, headers = await _result(job.future)
        return Response(content, media_type="application/octet-stream", headers=headers)

    @router.post("/images/{image}/proposals")
    async def propose(image: str) -> dict[str, int]:
        revision, added = await _result(service.proposer.request(_picture(service, image)).future)
        return {"revision": revision, "added": added}

    @router.post("/prefetch")
    async def prefetch(request: PrefetchRequest) -> dict[str, Any]:
        known = [service.pictures[name] for name in dict.fromkeys(request.ids) if name in service.pictures]
        service.embeddings.hint(known)
        return {}

    return router


def page_routes(service: Service, page: FileFolder) -> APIRouter:
    """The page, and what its own decoder needs."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def index() -> Response:
        return _file(page, "index.html")

    @router.get("/page/{name:path}")
    def page_file(name: str) -> Response:
        return _file(page, name)

    @router.get("/runtime/{name:path}")
    def runtime_file(name: str) -> Response:
        return _file(service.browser.runtime, name)

    @router.get("/decoder.onnx")
    def decoder() -> Response:
        browser = service.browser
        found = browser.decoder()
        if isinstance(found, str):
            raise HTTPException(404, found)
        return Response(found, media_type=MEDIA_TYPES[".onnx"], headers={"X-Fingerprint": browser.path.stem})

    return router


def _picture(service: Service, image: str) -> Picture:
    picture = service.pictures.get(image)
    if picture is None:
        raise HTTPException(404, "no image has this id")
    return picture


def _file(folder: FileFolder, name: str) -> Response:
    found = folder.read(name)
    if found is None:
        raise HTTPException(404, "no such file")
    return Response(found[0], media_type=found[1])


async def _result(future: Future[_T]) -> _T:
    """Shielded: several requests may wait for one job, and one of them may go away."""
    return await asyncio.shield(asyncio.wrap_future(future))
