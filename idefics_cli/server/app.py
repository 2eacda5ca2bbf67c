"""The app: its routes, with the guards around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from idefics_cli.core.text import or_list
from idefics_cli.server.errors import ApiError, api_error
from idefics_cli.server.exchange import Exchanges, exchange_of
from idefics_cli.server.guards import OPEN_PATH, Guards
from idefics_cli.server.metrics import CONTENT_TYPE
from idefics_cli.server.replies import to_json
from idefics_cli.server.service import Service
from idefics_cli.server.texts import TextEndpoint

ENDPOINTS = "/v1/chat/completions, /v1/completions, /v1/models, /health and /metrics"


def make_app(service: Service, *, tell: Callable[[str], None]) -> ASGIApp:
    """Return the app of *service*; *tell* gets a line for each request."""
    pages = _Pages(service)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", TextEndpoint(service, is_chat=True), methods=["POST"]),
            Route("/v1/completions", TextEndpoint(service, is_chat=False), methods=["POST"]),
            Route("/v1/models", pages.models),
            Route("/v1/models/{name:path}", pages.model),
            Route(OPEN_PATH, pages.health),
            Route("/metrics", pages.metrics),
        ],
        exception_handlers={
            HTTPException: _answer_http_error,
            ApiError: _answer_error,
            Exception: _answer_error,
        },
    )
    # A redirect would hold the `Host` header of the request.
    app.router.redirect_slashes = False
    guarded = Guards(app, service.options.access)
    logs_ids = service.options.logs_ids
    return Exchanges(guarded, metrics=service.metrics, tell=tell, logs_ids=logs_ids)


class _Pages:
    """The endpoints that only tell."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        """Return the list of models, which has one."""
        exchange_of(request.scope).endpoint = "models"
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Return one model."""
        exchange_of(request.scope).endpoint = "models"
        names = self._service.options.names
        if request.path_params["name"] not in names:
            raise ApiError(
                404, f"there is only the model `{names[0]}`", code="model_not_found", param="model"
            )
        return _json(self._model())

    async def health(self, request: Request) -> Response:
        """Return whether requests are answered; it needs no key, and names no model."""
        exchange_of(request.scope).endpoint = "health"
        if self._service.is_draining:
            return _json({"status": "draining"}, 503)
        state = self._service.engine.state
        if state == "failed":
            return _json({"status": "failed"}, 503)
        return _json({"status": "ok", "model": state})

    async def metrics(self, request: Request) -> Response:
        """Return the numbers of the server."""
        exchange_of(request.scope).endpoint = "metrics"
        return Response(self._service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _model(self) -> dict[str, object]:
        options, engine = self._service.options, self._service.engine
        spec, sampling = options.spec, options.sampling
        return {
            "id": options.names[0],
            "object": "model",
            "created": 0,
            "owned_by": "idefics",
            # The name of a folder would tell where it lies.
            "root": options.names[0] if Path(spec.repo).is_absolute() else spec.repo,
            "max_model_len": engine.context_tokens,
            "revision": engine.revision,
            "chats": spec.chats,
            "defaults": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_new_tokens,
            },
        }


def _json(
    value: object, status: int = 200, headers: Mapping[str, str] = MappingProxyType({})
) -> Response:
    return Response(to_json(value), status, headers=headers, media_type="application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    exchange = exchange_of(request.scope)
    answer = api_error(error, exchange.identity)
    exchange.note_fault(answer)
    return _json(answer.body(), answer.status, answer.headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Answer an error of the routes: there is nothing, or it has another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        headers = error.headers or {}
        allowed = or_list(sorted(set(headers.get("Allow", "GET").split(", ")) - {"HEAD"}))
        answer = ApiError(
            405,
            f"this address takes {allowed}, not {request.method[:20]}",
            code="method_not_allowed",
            headers=headers,
        )
    else:
        answer = ApiError(404, f"there is nothing here; see {ENDPOINTS}", code="unknown_url")
    return await _answer_error(request, answer)
