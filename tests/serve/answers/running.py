"""A server of the routes that answer, on a socket of its own; clients in the test's thread."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI

from engine import AsyncEngine
from engine.serve.app import build_app
from engine.serve.facts import Facts
from engine.serve.service import Service
from engine.serve.settings import ServerSettings

from .slow_engine import SlowEngine


def make_app(engine: SlowEngine, settings: ServerSettings) -> FastAPI:
    """The server's own app."""
    return build_app(
        lambda metrics: Service(AsyncEngine(engine), engine, settings, metrics=metrics),
        settings,
        Facts.of(engine),
    )


@dataclass
class Running:
    engine: SlowEngine
    service: Service
    url: str
    client: httpx2.Client
    loop: Any
    app: FastAPI

    def post(self, path: str, **body: Any) -> Any:
        """The answer's JSON; the request must succeed."""
        response = self.client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, text: str = "hi", **body: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", **{"messages": messages, **body})

    def refused(self, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
        """The error of a request that must fail so."""
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert "\n" not in error["message"] and len(error["message"]) <= 1000
        return dict(error)

    def raw(self, path: str, **body: Any) -> bytes:
        """The bytes of a stream."""
        response = self.client.post(path, json={"stream": True, **body})
        assert response.status_code == 200, response.text
        return response.content

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The chunks of a stream, which must end with [DONE]."""
        chunks = frames_of(self.raw(path, **body))
        assert chunks[-1] == "[DONE]"
        return chunks[:-1]

    def chat_stream(self, text: str = "hi", **body: Any) -> list[Any]:
        messages = [{"role": "user", "content": text}]
        return self.stream("/v1/chat/completions", **{"messages": messages, **body})

    def idle(self, seconds: float = 5.0) -> bool:
        """Whether nothing is queued or running any more, and the service holds no request."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.engine._driver.live and not self.service.open:
                return True
            time.sleep(0.01)
        return False


def frames_of(raw: bytes) -> list[Any]:
    """The data of each frame, parsed; any line that is no ``data:`` and no comment fails."""
    events: list[Any] = []
    for frame in raw.decode().split("\n\n"):
        if not frame or frame.startswith(":"):
            continue
        assert frame.startswith("data: ") and "\n" not in frame, frame
        data = frame.removeprefix("data: ")
        events.append(data if data == "[DONE]" else json.loads(data))
    return events


@contextmanager
def running(engine: SlowEngine, **settings: Any) -> Iterator[Running]:
    """A server until the block ends."""
    app = make_app(engine, ServerSettings(names=("tiny", "again"), **settings))
    config = uvicorn.Config(app, port=0, http="h11", log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    loops: list[Any] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, timeout=60) as client:
            yield Running(engine, app.state.service, url, client, loops[0], app)
    finally:
        server.should_exit = True
        thread.join()
