"""CORS: which pages of other origins a browser lets call this server.

Starlette's own middleware answers preflights with 200 and refuses in plain text.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.serve.asgi import Layer, header

_METHODS = "GET, HEAD, POST, OPTIONS"
_EXPOSED = "X-Request-Id, Retry-After"
_DAY = "86400"


class CrossOrigin(Layer):
    """Adds the headers of CORS to every answer, errors and streams too, and answers OPTIONS.

    origins: as in the settings. A page of another origin gets answers without such headers, which
        its browser then hides from it.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(app)
        self._origins = frozenset(origins)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = header(scope, b"origin")
        if scope["method"] == "OPTIONS":  # a browser sends no key with it
            await self._preflight(scope, origin)(scope, receive, send)
            return

        async def send_allowed(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._allow(MutableHeaders(scope=message), origin)
            await send(message)

        await self._app(scope, receive, send_allowed if self._origins else send)

    def _allow(self, headers: MutableHeaders, origin: str | None) -> None:
        headers.add_vary_header("Origin")
        if origin is None or not self._knows(origin):
            return
        headers["Access-Control-Allow-Origin"] = "*" if "*" in self._origins else origin
        headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _knows(self, origin: str) -> bool:
        return "*" in self._origins or origin in self._origins

    def _preflight(self, scope: Scope, origin: str | None) -> Response:
        response = Response(status_code=204, headers={"Allow": _METHODS})
        if origin is None or not self._knows(origin):
            return response
        headers = response.headers
        self._allow(headers, origin)
        headers["Access-Control-Allow-Methods"] = _METHODS
        asked = header(scope, b"access-control-request-headers")
        headers["Access-Control-Allow-Headers"] = asked or "Authorization, Content-Type"
        headers["Access-Control-Max-Age"] = _DAY
        if header(scope, b"access-control-request-private-network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return response
