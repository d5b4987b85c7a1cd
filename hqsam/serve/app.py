"""The web application: routes, errors as JSON, and the guard around both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from hqsam.errors import HqsamError, OutputError
from hqsam.serve.files import FileFolder
from hqsam.serve.guard import Guard
from hqsam.serve.routes import annotation_routes, model_routes, page_routes, picture_routes
from hqsam.serve.service import Service
from hqsam.serve.store import ConflictError, DamagedFileError

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"


def create_app(service: Service, *, host: str = "127.0.0.1", token: str | None = None) -> Any:
    """The application, for uvicorn or another ASGI server.

    Args:
        service: what is served; started and closed together with the application.
        host: what the server listens on: requests under other names are refused.
        token: what clients must know; None lets everybody in who can connect.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="hqsam serve",
        docs_url=None,  # they load programs from elsewhere
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,
        lifespan=lifespan,
    )
    for router in (
        picture_routes(service),
        annotation_routes(service),
        model_routes(service),
        page_routes(service, FileFolder(PAGE)),
    ):
        app.include_router(router)
    _handle_errors(app, service)
    return Guard(app, host=host, token=token)


def _handle_errors(app: FastAPI, service: Service) -> None:
    """Errors that a client can cause, as one sentence."""

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # where and why, without what was received: that may be of any size, and no JSON
        where = ".".join(str(part) for part in first["loc"])[:200]
        return JSONResponse({"detail": f"{where}: {first['msg']}"[:1000]}, 422)

    # Functions without `async` run in threads, as the routes do.

    @app.exception_handler(ConflictError)
    def conflict(request: Request, error: ConflictError) -> JSONResponse:
        picture = service.pictures[request.path_params["image"]]
        return JSONResponse({"detail": str(error), "current": service.annotations(picture, error.current)}, 409)

    @app.exception_handler(HqsamError)
    def refused(_: Request, error: HqsamError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 423 if isinstance(error, DamagedFileError) else 422)

    @app.exception_handler(OutputError)
    def full(_: Request, error: OutputError) -> JSONResponse:
        logger.error("%s", error)  # with the path, which clients need not know
        return JSONResponse({"detail": "not saved: the server cannot write its files; its log says more"}, 507)

    @app.exception_handler(Exception)
    def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "an error of the server; its log says more"}, 500)
