"""The outermost layer: an id, a log line and a count for each request."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.asgi import PROBES, Layer, header
from engine.serve.logs import log
from engine.serve.metrics import Metrics

_SANE_ID = re.compile(r"[!-~]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
_QUIET = PROBES | {"/metrics"}  # polled: their lines are at the level debug


@dataclass
class _Exchange:
    """One request and its answer, as far as they have come."""

    id: str
    began: float = field(default_factory=time.monotonic)
    status: int = 0  # 0: no answer has begun
    complete: bool = False
    left: bool = False  # the client went before the answer's end
    streams: bool = False


class Observed(Layer):
    """Gives each request its id, logs and counts it.

    The id is the client's ``X-Request-Id`` if that is 1 to 128 printable characters, else a fresh
    one. Routes find it in ``request.state.request_id``; they may leave ``tokens`` (a number) and
    ``aborted`` (a cause) there for the log line.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        super().__init__(app)
        self._metrics = metrics

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = header(scope, b"x-request-id") or ""
        exchange = _Exchange(given if _SANE_ID.fullmatch(given) else f"req-{uuid4().hex}")
        scope.setdefault("state", {})["request_id"] = exchange.id

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not exchange.complete:
                exchange.left = True
            return message

        async def watched_send(message: Message) -> None:
            self._note(exchange, message)
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except ClientDisconnect:
            exchange.left = True
        finally:
            self._ended(exchange, scope)

    def _note(self, exchange: _Exchange, message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = exchange.id
            exchange.streams = headers.get("content-type", "").startswith("text/event-stream")
            if exchange.streams:
                self._metrics.streams.inc()
        elif message["type"] == "http.response.body":
            exchange.complete = not message.get("more_body", False)

    def _ended(self, exchange: _Exchange, scope: Scope) -> None:
        if exchange.streams:
            self._metrics.streams.dec()
        route = getattr(scope.get("route"), "path_format", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.answered(route, method, exchange.status)
        state = scope["state"]
        aborted = state.get("aborted") or ("client" if exchange.left else None)
        if aborted is None and not exchange.complete:
            aborted = "error"
        fields = {
            "id": exchange.id,
            "method": method,
            "route": route,
            "status": exchange.status or None,
            "seconds": round(time.monotonic() - exchange.began, 6),
            "tokens": state.get("tokens"),
            "aborted": aborted,
            "traceparent": _traceparent(scope),
        }
        level = logging.DEBUG if route in _QUIET else logging.INFO
        log.log(level, "request", extra={"fields": fields})


def _traceparent(scope: Scope) -> str | None:
    """The trace that a request belongs to (W3C Trace Context), if it says one in its form."""
    value = header(scope, b"traceparent")
    return value if value and re.fullmatch(r"[0-9a-f]{2}(-[0-9a-f]{2,32}){3}", value) else None
