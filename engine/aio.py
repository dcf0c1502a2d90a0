"""The asyncio interface: one engine, one thread that drives it, any number of coroutines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engine.engine import AnyPolicy, Engine
from engine.params import SamplingParams
from engine.request import Completion, Prompt
from engine.requests.stream import StreamedText, StreamEvent

_log = logging.getLogger(__name__)
_Queue = asyncio.Queue[StreamEvent | Exception]


class AsyncEngine:
    """Serves coroutines of one event loop from one engine.

    While this is open, no other code may use the engine; if another thread is in one of its calls,
    this waits for it. Close it with :meth:`aclose` or use it as an async context manager. A policy
    that raises ends its request with the reason "abort"; the exception is logged.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._one_thread = engine._driver.one_thread
        self._thread = ThreadPoolExecutor(1, "steer-engine")
        self._open: dict[int, tuple[StreamedText, _Queue]] = {}
        self._driving: asyncio.Task[None] | None = None
        self._failures = 0  # steps in a row that raised
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncEngine({self._engine!r}, {len(self._open)} open)"

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Abort open requests and stop the thread. The engine itself stays usable."""
        if self._closed:
            return
        self._closed = True
        await self._call(int)  # after it, requests that are being submitted are in self._open
        for request in list(self._open):
            await self._call(self._engine.abort, request)
        while self._open:
            self._ensure_driving()
            await asyncio.wait([self._driving] if self._driving else [])
        self._thread.shutdown()

    async def generate(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Completion:
        """Answer one prompt. Arguments and errors are those of ``Engine.submit``."""
        events = self.stream(prompt, params, policy, priority=priority, timeout=timeout)
        async for event in events:
            if event.completion is not None:
                return event.completion
        raise RuntimeError("a stream ended without its completion")

    async def stream(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[StreamEvent]:
        """The events of ``Engine.stream``. Leaving early, or cancellation, aborts the request."""

        if self._closed:
            raise RuntimeError("the AsyncEngine is closed")
        queue: _Queue = asyncio.Queue()

        def submit() -> int:
            with self._one_thread(wait=True):
                request = self._engine.submit(
                    prompt, params, policy, priority=priority, timeout=timeout
                )
            # In the engine's thread, so that no step runs in between.
            self._open[request] = StreamedText(self._engine.tokenizer), queue
            return request

        submitted = asyncio.get_running_loop().run_in_executor(self._thread, submit)
        try:
            request = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(self._drop)
            raise
        self._ensure_driving()
        try:
            while True:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.kind == "done":
                    return
        finally:
            if request in self._open:  # the caller has stopped reading
                self._thread.submit(self._engine.abort, request)

    def _drop(self, submitted: asyncio.Future[int]) -> None:
        if submitted.exception() is None and submitted.result() in self._open:
            self._thread.submit(self._engine.abort, submitted.result())
            self._ensure_driving()

    def _ensure_driving(self) -> None:
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._drive())

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _drive(self) -> None:
        while self._open:
            for request, event in await self._call(self._advance):
                self._open[request][1].put_nowait(event)
                if isinstance(event, Exception) or event.kind == "done":
                    del self._open[request]

    def _advance(self) -> list[tuple[int, StreamEvent | Exception]]:
        """Run one step, in the engine's thread, and return the new events of the open streams."""
        done: dict[int, Completion] = {}
        try:
            with self._one_thread(wait=True):
                done = {c.request_id: c for c in self._engine.step()}
            self._failures = 0
        except Exception as error:  # a policy raised: only its request is aborted
            _log.exception("a step failed")
            self._failures += 1
            if self._failures > len(self._open) + 2:  # more than one for each open request's policy
                for request in self._open:
                    self._engine.abort(request)
                return [(request, error) for request in list(self._open)]
        news: list[tuple[int, StreamEvent | Exception]] = []
        for request, (text, _) in list(self._open.items()):
            if request in done:
                news += [(request, event) for event in text.finish(done[request])]
            elif self._engine.is_live(request):
                sequence = self._engine.scheduler.sequence(request)
                news += [(request, event) for event in text.grow(sequence)]
        return news
