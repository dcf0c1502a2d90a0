"""Refuses requests whose Host header is not ours: pages of other sites that a name leads here.

A page can have its own name point to 127.0.0.1 once it is loaded (DNS rebinding); the browser then
takes this server for the page's own and lets it read everything. Its requests still carry the
page's name. A bare address is no name and cannot be rebound, so it is always ours.
"""

from __future__ import annotations

from ipaddress import ip_address

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.serve.asgi import Layer, header, refuse
from engine.serve.errors import ApiError
from engine.serve.settings import ServerSettings

# 403 and not 421: clients may repeat a 421 on a new connection, and OpenAI's have a class for 403.
_MISDIRECTED = ApiError(
    403,
    "this server does not answer to the name in the Host header; call it by its address or by "
    "localhost, or start it with --allowed-host NAME",
    "permission_error",
    code="host_not_allowed",
)


class HostCheck(Layer):
    """Lets only requests in whose Host header names this server.

    Where pages cannot reach anything anyway, because the address is public and keys are asked for,
    it checks only if names were given.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        super().__init__(app)
        self._names = {"localhost", settings.host.lower(), *map(str.lower, settings.hosts)}
        exposed = bool(settings.keys) and not is_loopback(settings.host)
        self._open = "*" in settings.hosts or (exposed and not settings.hosts)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._open and not self._is_ours(header(scope, b"host")):
            await refuse(_MISDIRECTED, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_ours(self, value: str | None) -> bool:
        if value is None:  # HTTP/1.0: no browser
            return True
        name = _without_port(value).lower().removesuffix(".")
        if name in self._names or name.endswith(".localhost") or _is_address(name):
            return True
        return any(name.endswith(each) for each in self._names if each.startswith("."))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a bound host."""
    return host.lower() == "localhost" or (_is_address(host) and ip_address(host).is_loopback)


def _without_port(value: str) -> str:
    if value.startswith("["):  # IPv6
        return value[1:].partition("]")[0]
    return value.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
