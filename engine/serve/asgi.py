"""Small helpers of the ASGI layers around the routes."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from engine.serve.errors import ApiError

# Open to anybody: they say nothing of the models, and probes have no keys.
PROBES = frozenset({"/health", "/ready", "/version"})


def header(scope: Scope, name: bytes) -> str | None:
    """The value of a request's header by its name in lower case; None without one."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


async def refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with an error instead of going on."""
    await error.response()(scope, receive, send)
