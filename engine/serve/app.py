"""The ASGI app: the routes, the layers around them, and one form for all errors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response

from engine.errors import SteerError
from engine.serve import chat, completions, errors, operations, tokenize
from engine.serve.cross_origin import CrossOrigin
from engine.serve.errors import ApiError
from engine.serve.facts import Facts
from engine.serve.gate import Gate, GateCheck
from engine.serve.hosts import HostCheck
from engine.serve.keys import KeyCheck
from engine.serve.last_resort import LastResort
from engine.serve.metrics import Metrics
from engine.serve.observing import Observed
from engine.serve.service import Service
from engine.serve.settings import ServerSettings
from engine.serve.url_forms import UrlForms, no_such_url
from engine.serve.vllm_metrics import VllmNames

ROUTERS: tuple[APIRouter, ...] = (
    operations.router,
    chat.router,
    completions.router,
    tokenize.router,
)


def build_app(
    open_service: Callable[[Metrics], Service],
    settings: ServerSettings,
    facts: Facts,
    routers: Sequence[APIRouter] = ROUTERS,
) -> FastAPI:
    """The app of one server.

    Routes find in ``request.app.state``: ``service``, ``settings``, ``facts``, ``metrics``
    (:class:`Metrics`), ``gate`` (:class:`Gate`) and ``created`` (Unix seconds).

    Args:
        open_service: makes the service, which reports to these metrics, in the server's event
            loop, before the first request; the app closes its ``served`` after the last one.
        settings: names, limits and guards.
        facts: what is said of the pair.
        routers: the routes.
    """
    metrics, gate = Metrics(facts.version, facts.pair), Gate()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = open_service(metrics)
        metrics.follow(service.served.snapshot)
        if settings.metrics_compat:
            snapshot, name = service.served.snapshot, settings.names[0]
            metrics.registry.register(VllmNames(metrics, snapshot, name, facts.block_tokens))
        try:
            yield
        finally:
            await service.served.aclose()

    app = FastAPI(
        title="steer-engine",
        version=facts.version,
        docs_url=None,  # pages that load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=_layers(settings, metrics, gate),
    )
    state = app.state
    state.settings, state.facts, state.metrics, state.gate = settings, facts, metrics, gate
    state.created = int(time.time())
    for router in routers:
        app.include_router(router)
    _one_form_of_errors(app, routers)
    return app


def _layers(settings: ServerSettings, metrics: Metrics, gate: Gate) -> list[Middleware]:
    """The layers, the outermost first: an error of an inner one has the headers of those outside.

    Keys are checked after the URL has its form, so that no other form of it goes round them.
    """
    return [
        Middleware(Observed, metrics=metrics),
        Middleware(CrossOrigin, origins=settings.origins),
        Middleware(LastResort),
        Middleware(HostCheck, settings=settings),
        Middleware(UrlForms),
        Middleware(KeyCheck, keys=settings.keys),
        Middleware(GateCheck, gate=gate, seconds=settings.drain_timeout),
    ]


def _one_form_of_errors(app: FastAPI, routers: Sequence[APIRouter]) -> None:
    """Answers to what routes and FastAPI itself raise; ``LastResort`` answers to the rest."""
    known = {getattr(route, "path", "") for router in routers for route in router.routes}

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            return no_such_url(request.url.path, known).response()
        if isinstance(error, HTTPException) and error.status_code == 405:
            return _wrong_method(error).response()
        if isinstance(error, RequestValidationError):
            return errors.of_validation(error.errors()).response()
        return errors.of(error).response()

    for kind in (ApiError, SteerError, HTTPException, RequestValidationError, ValidationError):
        app.add_exception_handler(kind, answer)


def _wrong_method(error: HTTPException) -> ApiError:
    allowed = {name.strip() for name in (error.headers or {}).get("Allow", "").split(",")}
    if "GET" in allowed:
        allowed.add("HEAD")
    listed = ", ".join(sorted(allowed))
    message = f"this URL takes the methods {listed}"
    return ApiError(405, message, code="method_not_allowed", headers={"Allow": listed})
