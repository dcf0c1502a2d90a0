"""Runs the app on a socket until a signal ends it: running answers first, then the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.errors import SteerError
from engine.serve.errors import ApiError
from engine.serve.logs import announce, log
from engine.serve.settings import ServerSettings

_HEADER_BYTES = 64 << 10  # of a request's first line and headers together
# Longer than clients keep a connection, so that none is closed while they write on it.
_KEEP_ALIVE_SECONDS = 75
# For the last bytes of answers that were ended; then their connections are closed.
_CLOSING_SECONDS = 5
_INTERRUPTED = 130


class JsonErrors(H11Protocol):
    """HTTP/1.1 with OpenAI's form also for what is no HTTP, or has too long headers."""

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be read, and close the connection."""
        hint = f"{msg.rstrip('.')}; the headers may have {_HEADER_BYTES} bytes in all"
        body = ApiError(400, hint).body()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server with an end of our own.

    A first SIGTERM or SIGINT refuses new requests, lets running ones end within the drain timeout,
    and stops; a second one ends the process at once.

    leave: ends the process with an exit status.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: ServerSettings,
        started: Callable[[], None] = lambda: None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(_config(app))
        self._state = app.state
        self._seconds = settings.drain_timeout
        self._started, self._leave = started, leave
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the app and listen."""
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal. uvicorn would raise it again at the end, for another exit status."""
        if self._state.gate.draining:
            announce("stopped at once")
            self._leave(_INTERRUPTED)
        self._state.gate.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        if self._state.gate.draining and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        served = self._state.service.served
        waits = {"open": served.snapshot()["open"], "seconds": self._seconds}
        log.info("stopping: running answers may end", extra={"fields": waits})
        try:
            clean = await served.drain(self._seconds)
            log.info("stopped" if clean else "stopped; some answers were ended early")
        finally:
            self.should_exit = True


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=JsonErrors,  # the other parsers take headers of any length
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address; it does not listen yet. Port 0 takes a free one.

    Raises:
        SteerError: if the port is taken, or the address is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SteerError(f"--host {host} is not a name or address of this machine") from None
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise _cannot_listen(host, port, error) from None
    return opened


def _cannot_listen(host: str, port: int, error: OSError) -> SteerError:
    if isinstance(error, PermissionError):
        hint = "ports below 1024 need privileges: pass another --port"
    else:
        hint = "stop the program that has it, or pass another --port"
    reason = (error.strerror or str(error)).lower()
    return SteerError(f"cannot listen on port {port} of {host}: {reason}; {hint}")


def url_of(opened: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(server: Server, opened: socket.socket) -> None:
    """Run a server until a signal ends it.

    Raises:
        SteerError: if another program has begun to listen on the port meanwhile.
    """
    host, port = opened.getsockname()[:2]
    _allow_connections()
    try:
        server.run(sockets=[opened])
    except OSError as error:
        raise _cannot_listen(host, port, error) from None


def _allow_connections() -> None:
    """As many as the system lets this process have: each waiting request has one.

    Systems give a process 1024 files unless it asks for more, for programs that use select().
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows, or refused
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def end_on_sigterm() -> None:
    """SIGTERM ends the process, until the server takes it: also the first one of a container."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
