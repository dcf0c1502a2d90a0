"""The way of a request through either endpoint."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from engine.request import Completion
from engine.serve.answering import AnyPrompt, ClientGoneError, Job, collect, submit, unless_gone
from engine.serve.body import read_json
from engine.serve.chunks import Chunks, frames
from engine.serve.fields import read_fields
from engine.serve.reporting import Report
from engine.serve.sampling import drops_text
from engine.serve.service import Service, clear_errors, counted_rejections
from engine.serve.sse import EventStream
from engine.serve.steer_object import steer_object
from engine.serve.usage import usage_of

_CLIENT_GONE = 499  # nginx's; the client never sees it, the log does


@dataclass(frozen=True)
class Endpoint:
    """One of the two endpoints.

    fields: the model of the body.
    prefix: how ids of its answers begin.
    kind: the ``object`` of an answer.
    count: prompts of a request.
    read_prompts: tokenises or renders them; runs in a thread.
    chunks: writes a stream.
    choices: the choices of a whole answer.
    more: further fields of it.
    """

    fields: type[Any]
    prefix: str
    kind: str
    count: Callable[[Any], int]
    read_prompts: Callable[[Service, Any], Sequence[AnyPrompt]]
    chunks: Callable[[Job], Chunks]
    choices: Callable[[Job, Sequence[Completion]], list[dict[str, Any]]]
    more: Callable[[Job, Sequence[Completion]], dict[str, Any]] = lambda job, done: {}

    async def answer(self, request: Request) -> Response:
        """A whole answer, or a stream. ApiError on anything that cannot be answered."""
        service: Service = request.app.state.service
        with clear_errors():
            raw = await read_json(request)
            asked = read_fields(self.fields, raw, service.settings)
            route = service.routes.find(asked.model, asked.routing)
            report = Report(service.metrics, service.engine, request)
            identity = f"{self.prefix}-{asked.request_id or secrets.token_hex(12)}"
            job = Job(service, asked, route, report, identity, int(time.time()))
            try:
                return await unless_gone(request, self._respond(job))
            except ClientGoneError:
                return Response(status_code=_CLIENT_GONE)

    async def _respond(self, job: Job) -> Response:
        service, asked = job.service, job.asked
        try:
            with counted_rejections(service):
                await submit(job, lambda: self.read_prompts(service, asked), self.count(asked))
            if asked.stream:
                return self._stream(job)
            done = await collect(job)
            return Response(self._whole(job, done), media_type="application/json")
        except BaseException as error:
            job.report.failed(error)
            raise
        finally:
            job.close()

    def _stream(self, job: Job) -> Response:
        close, job.close = job.close, lambda: None

        def ended(cause: str) -> None:
            job.report.ended(cause)
            close()

        patience = job.service.settings.slow_reader_timeout
        return EventStream(frames(job, self.chunks(job)), ended, patience)

    def _whole(self, job: Job, done: Sequence[Completion]) -> bytes:
        engine = job.service.engine
        usage = usage_of(engine, job.prompt_lengths, done, drops_text(job.asked))
        return orjson.dumps(
            {
                "id": job.identity,
                "object": self.kind,
                "created": job.created,
                "model": job.route.model,
                "system_fingerprint": engine.fingerprint,
                "choices": self.choices(job, done),
                "usage": usage,
                "steer": steer_object(engine, job.route.name, done),
                **self.more(job, done),
            },
            option=orjson.OPT_NON_STR_KEYS,
        )
