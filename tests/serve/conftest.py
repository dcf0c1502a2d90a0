"""Servers in a thread, reached over HTTP."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from engine.serve import lifecycle
from engine.serve.settings import ServerSettings
from tests.serve.served import Served, served
from tests.serve.stand_in import StandInService, stand_in_server


@dataclass
class Running:
    """A server that runs in a thread, and a client of it."""

    server: lifecycle.Server
    url: str
    client: httpx2.Client
    thread: threading.Thread

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def service(self) -> StandInService:
        service: StandInService = self.server.config.app.state.service
        return service

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """The answer to a request whose path is sent as it is, doubled slashes too."""
        return self.client.request(method, f"{self.url}{path}", **options)

    def raw(self, request: bytes) -> bytes:
        """What the server answers to bytes on a connection of their own, until it closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has seen enough
                connection.sendall(request)
            parts = []
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    parts.append(part)
            return b"".join(parts)


Run = Callable[..., Running]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Starts servers; those that still run are stopped at the module's end."""
    started: list[Running] = []

    def start(names: tuple[str, ...] = ("tiny",), **settings: Any) -> Running:
        ready = threading.Event()
        opened = lifecycle.bind("127.0.0.1", 0)
        server = stand_in_server(ServerSettings(names, **settings), ready.set)
        thread = threading.Thread(target=lifecycle.serve, args=(server, opened))
        url = lifecycle.url_of(opened)
        thread.start()
        assert ready.wait(30)
        running = Running(server, url, httpx2.Client(base_url=url, timeout=20), thread)
        started.append(running)
        return running

    yield start
    for each in started:
        each.client.close()
        if each.thread.is_alive() and not each.server.config.app.state.gate.draining:
            each.server.handle_exit(15, None)
    for each in started:
        each.thread.join(30)


@pytest.fixture(scope="module")
def plain(run: Run) -> Running:
    """A server with the defaults."""
    return run()


@pytest.fixture(scope="session")
def tiny_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """``steer serve --model-pair tiny``, one for all tests of a run that only ask it something."""
    with served(tmp_path_factory.mktemp("serve") / "log", "--log-level", "debug") as server:
        yield server


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """The error of an answer in OpenAI's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) <= 1000
    return error


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """The loggers and the handler of SIGTERM as they were, after a command has set them."""
    loggers = [logging.getLogger(name) for name in ("engine", "uvicorn")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
