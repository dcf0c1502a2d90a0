"""Small helpers of the ASGI layers around the routes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.serve.errors import ApiError

# Open to anybody: they say nothing of the models, and probes have no keys.
PROBES = frozenset({"/health", "/ready", "/version"})


class Layer(ABC):
    """A layer around an app: its ``_handle`` sees each HTTP request before the app does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the app's own start and end, which pass through."""
        handle = self._handle if scope["type"] == "http" else self._app
        await handle(scope, receive, send)

    @abstractmethod
    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None: ...


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
