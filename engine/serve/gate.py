"""Whether a server takes new requests: not while it stops."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.serve.asgi import PROBES, Layer, refuse
from engine.serve.errors import unavailable

_OPEN = PROBES | {"/metrics"}


@dataclass
class Gate:
    """The state that the server, its probes and its guard share.

    draining: it stops: running requests end, new ones are refused.
    """

    draining: bool = False


class GateCheck(Layer):
    """Refuses requests while the gate is draining, with 503 and the time to come back after.

    seconds: until another server has its place, at most.
    """

    def __init__(self, app: ASGIApp, gate: Gate, seconds: float) -> None:
        super().__init__(app)
        self._gate = gate
        self._seconds = seconds

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._gate.draining and scope["path"] not in _OPEN:
            error = unavailable("this server is stopping and takes no new requests", self._seconds)
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)
