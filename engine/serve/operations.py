"""The routes beside the answers: health, models, numbers, and the end of a request by its id."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.config import ROLES
from engine.serve.body import read_json
from engine.serve.documented import ERRORS, NUMBERS, body_of
from engine.serve.errors import ApiError, unavailable, unknown_model
from engine.serve.fields import AbortRequest
from engine.serve.service import Service

_ALIVE_SECONDS = 5.0
_RETRY_SECONDS = 5.0
# Of an answer's id; the client's own request_id follows.
_ID_STARTS = ("", "chatcmpl-", "cmpl-")

router = APIRouter(responses=ERRORS)


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether the engine lives: its thread turns or is idle. Load does not make it fail."""
    if not _service(request).served.alive(within=_ALIVE_SECONDS):
        raise ApiError(
            503, f"the engine's thread has not turned for {_ALIVE_SECONDS:g} s", "server_error"
        )
    return _json({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether new requests are taken: not while the server stops."""
    if request.app.state.gate.draining:
        raise unavailable("this server is stopping", _RETRY_SECONDS)
    await health(request)
    return _json({"status": "ready"})


@router.get("/version")
async def version(request: Request) -> Response:
    """The version of steer-engine."""
    return _json({"version": request.app.state.facts.version})


@router.get("/metrics", responses=NUMBERS, response_class=Response)
async def metrics(request: Request) -> Response:
    """All numbers, for Prometheus."""
    text, kind = request.app.state.metrics.exposed(request.headers.get("accept"))
    return Response(text, headers={"Content-Type": kind})


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The names that a request's ``model`` may be."""
    names = _names(request)
    return _json({"object": "list", "data": [_model(request, name) for name in names]})


@router.get("/v1/models/{model_id:path}", name="model")
async def model(request: Request) -> Response:
    """One of them."""
    name = request.path_params["model_id"]
    if name not in _names(request):
        raise unknown_model(_names(request))
    return _json(_model(request, name))


@router.get("/steer/arena")
async def arena(request: Request) -> Response:
    """The engine's counts as JSON: requests, rows, and who owns the memory."""
    return _json(dict(_service(request).served.snapshot()))


@router.post("/abort_request", openapi_extra=body_of(AbortRequest))
async def abort_request(request: Request) -> Response:
    """End a request early: ``{"rid": "..."}``, the ``request_id`` it was sent with, or its
    answer's ``id``.

    An id that is not open, or no longer, is no error: 0 answers are aborted.
    """
    body = await read_json(request)
    asked = body if isinstance(body, dict) else {}
    given = asked.get("rid", asked.get("request_id"))
    if not isinstance(given, str) or not given:
        raise ApiError(400, 'rid must be the id of a request, as in {"rid": "mine"}', param="rid")
    is_open = _service(request).open
    answers = [each for start in _ID_STARTS for each in is_open.get(start + given, ())]
    for answer in answers:
        answer.abort()
    return _json({"aborted": len(answers)})


def _names(request: Request) -> tuple[str, ...]:
    return (*request.app.state.settings.names, *ROLES)


def _model(request: Request, name: str) -> dict[str, Any]:
    state = request.app.state
    routed = name not in ROLES
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "steer-engine",
        "max_model_len": state.facts.max_context,
        "steer": {
            "pair": state.facts.pair,
            "fingerprint": state.facts.fingerprint,
            "roles": list(ROLES) if routed else [name],
            "policy": state.settings.policy if routed else name,
        },
    }
