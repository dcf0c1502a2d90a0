"""Plain objects in the places of AsyncEngine and of the routes, to test the shell around them.

STAND-IN: to be replaced by the real AsyncEngine and Service once both are there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from engine.errors import QueueFullError, SteerError
from engine.serve import operations
from engine.serve.app import build_app
from engine.serve.body import read_json
from engine.serve.facts import Facts
from engine.serve.lifecycle import Server
from engine.serve.settings import ServerSettings

FACTS = Facts("0.1.0", "tiny", "tiny-abc", 512, 16)
SNAPSHOT: dict[str, Any] = {
    "running": 2,
    "waiting": 1,
    "open": 3,
    "reserved": 0,
    "ticks": {"small": 9, "large": 4},
    "rows": {"small": {"prompt": 10, "sampled": 8}, "large": {"prompt": 0, "catchup": 6}},
    "preemptions": 1,
    "handoffs": 2,
    "slabs": {"small": 1, "large": 2, "free": 4, "lent": 0},
    "tokens": {"small": {"live": 3, "cached": 5}, "large": {"live": 0, "cached": 7}},
    "capacity": {"small": 640, "large": 320},
    "kv_usage": 0.25,
}
routes = APIRouter()


class StandInAnswers:
    """Open answers; ``ended`` is set once they are aborted."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def abort(self) -> None:
        self.ended.set()


class StandInEngine:
    """The methods of AsyncEngine that the shell calls. ``open``: that of its service."""

    def __init__(self, open_answers: dict[str, list[StandInAnswers]]) -> None:
        self.open = open_answers
        self.is_alive = True
        self.closed = False

    def alive(self, within: float = 5.0) -> bool:
        return self.is_alive

    def snapshot(self) -> dict[str, Any]:
        return {**SNAPSHOT, "open": len(self.open)}

    async def drain(self, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while self.open and time.monotonic() < end:
            await asyncio.sleep(0.01)
        left = [each for answers in self.open.values() for each in answers]
        for each in left:
            each.abort()
        return not left

    async def aclose(self) -> None:
        self.closed = True


class StandInService:
    """What ``app.state.service`` has for the shell."""

    def __init__(self, metrics: object = None) -> None:
        self.metrics = metrics
        self.open: dict[str, list[StandInAnswers]] = {}
        self.served = StandInEngine(self.open)


class Fields(BaseModel):
    """A body with a typed field and a list."""

    count: int
    stop: list[str] = []


@routes.post("/test/body")
async def body(request: Request) -> Response:
    fields = Fields.model_validate(await read_json(request))
    request.state.tokens = fields.count
    return Response(str(fields.count))


@routes.post("/test/declared")
async def declared(fields: Fields) -> Response:
    return Response(str(fields.count))


@routes.get("/test/fails/{kind}")
async def fails(kind: str) -> Response:
    raise {
        "steer": SteerError("max_tokens must be at least 1"),
        "full": QueueFullError("8 requests wait already"),
    }.get(kind, RuntimeError("the secret prompt"))


@routes.get("/test/stream")
async def stream(request: Request) -> Response:
    """Frames until they are aborted, or for ``seconds``; its name is ``id``."""
    service = request.app.state.service
    name, seconds = request.query_params["id"], float(request.query_params.get("seconds", 60))
    answers = StandInAnswers()
    service.open[name] = [answers]

    async def frames() -> Any:
        end = time.monotonic() + seconds
        try:
            yield b"data: {}\n\n"
            while time.monotonic() < end and not answers.ended.is_set():
                await asyncio.sleep(0.02)
                yield b": ping\n\n"
            yield b'data: {"error":{}}\n\n' if answers.ended.is_set() else b"data: [DONE]\n\n"
        finally:
            del service.open[name]

    return StreamingResponse(frames(), media_type="text/event-stream")


@routes.get("/test/broken")
async def broken() -> Response:
    """A stream that fails after its first frame."""

    async def frames() -> Any:
        yield b"data: {}\n\n"
        raise RuntimeError("the secret prompt")

    return StreamingResponse(frames(), media_type="text/event-stream")


def stand_in_server(
    settings: ServerSettings, started: Callable[[], None] = lambda: None, **options: Any
) -> Server:
    """A server with the routes above and the real operations."""
    app = build_app(StandInService, settings, FACTS, (operations.router, routes))
    return Server(app, settings, started, **options)
