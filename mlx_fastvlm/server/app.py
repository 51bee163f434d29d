"""The server's addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from .. import __version__
from .asking import Asking, Dialect
from .dialect import chat, completions, decisions, models, responses
from .dialect.errors import RequestError, internal, no_such_page, wrong_method
from .guard import OPEN_FOLDER, Guard
from .log import Recorder
from .openapi import description
from .responses import error_response, json_response
from .static import pages

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from .service import Service

    Endpoint = Callable[[Request], Awaitable[Response]]

ANSWERING = {
    "/v1/chat/completions": Dialect(
        chat.read, chat.Writer, chat.BODY, "chat.completion", "Conversations with images and videos"
    ),
    "/v1/completions": Dialect(
        completions.read, completions.Writer, completions.BODY, "text_completion", "For old clients: a prompt"
    ),
    "/v1/responses": Dialect(
        responses.read, responses.Writer, responses.BODY, "response", "OpenAI's newer interface, without a memory"
    ),
    "/v1/decisions": Dialect(
        decisions.read, decisions.Writer, decisions.BODY, "decision", "Which of given answers, and how likely each is"
    ),
}


def make_app(service: Service) -> ASGIApp:
    """The whole server as an ASGI application; connections and signals are the caller's."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    asked = {"/health": _health, "/ready": _ready, "/metrics": _metrics, "/v1/models": _models}
    asked |= {"/v1/models/{id:path}": _model, "/openapi.json": _openapi}
    routes = [Route(path, _noted(path, endpoint(service)), methods=["GET"]) for path, endpoint in asked.items()]
    routes += [Route(path, _noted(_page_name(path), page), methods=["GET"]) for path, page in pages().items()]
    routes += [Route(path, Asking(path, dialect, service), methods=["POST"]) for path, dialect in ANSWERING.items()]
    handlers: dict[Any, Any] = {HTTPException: _no_route, RequestError: _refused, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    app.router.redirect_slashes = False
    return Recorder(Guard(app, service.settings), service.metrics.count)


def _page_name(path: str) -> str:
    """The page's files have one name in log and metrics."""
    return OPEN_FOLDER if path.startswith(OPEN_FOLDER) else path


def _noted(path: str, endpoint: Endpoint) -> Endpoint:
    """An endpoint under its own name in log and metrics."""

    async def noted(request: Request) -> Response:
        request.state.record.endpoint = path
        return await endpoint(request)

    return noted


def _health(_: Service) -> Endpoint:
    """Whether the process lives and its loop turns."""

    async def health(_: Request) -> Response:
        return json_response({"status": "ok"})

    return health


def _ready(service: Service) -> Endpoint:
    """Whether requests are answered now; 503 with the reason where not."""

    async def ready(_: Request) -> Response:
        service.check()
        return json_response({"status": "ready", "busy_s": round(service.worker.busy_for, 3)})

    return ready


def _metrics(service: Service) -> Endpoint:
    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), headers={"content-type": service.metrics.content_type})

    return metrics


def _models(service: Service) -> Endpoint:
    async def all_models(_: Request) -> Response:
        return json_response(models.listed(service.served))

    return all_models


def _model(service: Service) -> Endpoint:
    async def one_model(request: Request) -> Response:
        return json_response(models.one(request.path_params["id"], service.served))

    return one_model


def _openapi(service: Service) -> Endpoint:
    async def openapi(_: Request) -> Response:
        return json_response(description(ANSWERING, service.served, __version__))

    return openapi


async def _no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        response = error_response(wrong_method(request.method, allowed))
        response.headers["Allow"] = allowed
        return response
    return error_response(no_such_page(request.url.path))


async def _refused(_: Request, error: RequestError) -> Response:
    return error_response(error)


async def _failed(_: Request, __: Exception) -> Response:
    return error_response(internal())
