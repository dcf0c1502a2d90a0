"""The asyncio interface: one engine, one thread that drives it, any number of coroutines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from engine.engine import AnyPolicy, Engine
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.request import Completion, Prompt
from engine.requests.batch import for_each, listed_prompts
from engine.requests.stream import StreamedText, StreamEvent
from engine.text.chat import Message

_log = logging.getLogger(__name__)
_Queue = asyncio.Queue[StreamEvent | Exception]


@dataclass(frozen=True)
class _OpenRequest:
    """A request whose events are read. ``queue``: shared by the samples of one prompt."""

    text: StreamedText
    queue: _Queue
    sample: int


class AsyncEngine:
    """Serves coroutines of one event loop from one engine.

    While this is open, no other code may use the engine; if another thread is in one of its calls,
    this waits for it. Close it with :meth:`aclose` or use it as an async context manager. A policy
    that raises ends its request with the reason "abort"; the exception is logged.
    """

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, Engine):
            raise SteerError(f"AsyncEngine takes an Engine, got a {type(engine).__name__}")
        self._engine = engine
        self._one_thread = engine._driver.one_thread
        self._thread = ThreadPoolExecutor(1, "steer-engine")
        self._open: dict[int, _OpenRequest] = {}
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

    async def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        **options: Any,
    ) -> list[int] | Prompt:
        """``Engine.chat``, in a thread of its own: a long conversation stops no other request."""
        return await asyncio.to_thread(
            self._engine.chat, messages, tools, add_generation_prompt, **options
        )

    async def generate(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Completion | Any:
        """Answer one prompt: a Completion, or a list of them if ``params.n`` > 1.

        Arguments and errors are those of ``Engine.submit_samples``.
        """
        # "| Any": type checkers then take the Completion of n = 1 as it is.
        events = self.stream(prompt, params, policy, priority=priority, timeout=timeout)
        answers = [event.completion async for event in events if event.completion]
        answers.sort(key=lambda answer: answer.sample)
        return answers if len(answers) > 1 else answers[0]

    async def as_completed(
        self,
        prompts: Iterable[str | Sequence[int] | Prompt],
        params: SamplingParams | Sequence[SamplingParams | None] | None = None,
        policy: AnyPolicy | Sequence[AnyPolicy] = "steer",
        *,
        priority: int | Sequence[int] = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[tuple[int, Completion]]:
        """Answer many prompts: (the prompt's index, completion) as each answer ends.

        Parameters, policies and priorities are one for all prompts or a list of one for each.
        Leaving early, or an error, aborts the other requests.

        Raises:
            SteerError: as ``Engine.submit_samples`` does, with the prompt's index.
        """
        listed = listed_prompts(prompts, "as_completed()")
        each = (
            for_each(value, len(listed), name, lambda one: one)
            for value, name in ((params, "params"), (policy, "policy"), (priority, "priority"))
        )
        answers: asyncio.Queue[tuple[int, Completion] | Exception | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._engine.config.max_waiting or max(1, len(listed)))

        async def answer(index: int, prompt: Any, wanted: Any, chosen: Any, rank: int) -> None:
            try:
                async with room:
                    events = self.stream(prompt, wanted, chosen, priority=rank, timeout=timeout)
                    async for event in events:
                        if event.completion:
                            answers.put_nowait((index, event.completion))
                answers.put_nowait(None)
            except SteerError as error:
                answers.put_nowait(type(error)(f"prompt {index}: {error}"))
            except Exception as error:
                answers.put_nowait(error)

        rows = zip(listed, *each, strict=True)
        tasks = [asyncio.create_task(answer(i, *row)) for i, row in enumerate(rows)]
        try:
            open_tasks = len(tasks)
            while open_tasks:
                news = await answers.get()
                if isinstance(news, Exception):
                    raise news
                open_tasks -= news is None
                if news is not None:
                    yield news
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stream(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[StreamEvent]:
        """The events of ``Engine.stream``. Leaving early, or cancellation, aborts the request.

        With ``params.n`` > 1 the events of all samples, each with its ``sample``, as they come;
        each sample has a ``done`` event.
        """
        self._check_open()
        queue: _Queue = asyncio.Queue()

        def submit() -> list[int]:
            with self._one_thread(wait=True):
                requests = self._engine.submit_samples(
                    prompt, params, policy, priority=priority, timeout=timeout
                )
            # In the engine's thread, so that no step runs in between.
            for sample, request in enumerate(requests):
                text = StreamedText(self._engine.tokenizer)
                self._open[request] = _OpenRequest(text, queue, sample)
            return requests

        submitted = asyncio.get_running_loop().run_in_executor(self._thread, submit)
        try:
            requests = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(self._drop)
            raise
        self._ensure_driving()
        running = len(requests)
        try:
            while running:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                running -= event.kind == "done"
        finally:
            for request in requests:
                if request in self._open:  # the caller has stopped reading
                    self._thread.submit(self._engine.abort, request)

    def _check_open(self) -> None:
        if self._closed:
            raise SteerError("the AsyncEngine is closed; make a new one from the engine")

    def _drop(self, submitted: asyncio.Future[list[int]]) -> None:
        if submitted.exception() is not None:
            return
        for request in submitted.result():
            if request in self._open:
                self._thread.submit(self._engine.abort, request)
                self._ensure_driving()

    def _ensure_driving(self) -> None:
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._drive())

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _drive(self) -> None:
        while self._open:
            for request, event in await self._call(self._advance):
                self._open[request].queue.put_nowait(event)
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
        for request, each in list(self._open.items()):
            events: Iterable[StreamEvent] = ()
            if request in done:
                events = each.text.finish(done[request])
            elif self._engine.is_live(request):
                events = each.text.grow(self._engine.scheduler, request)
            news += [(request, replace(event, sample=each.sample)) for event in events]
        return news
