"""One engine, one thread that drives it, any number of coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from engine.aio.answers import Answers
from engine.aio.engine_thread import Batch, EngineThread
from engine.aio.many import answer_many
from engine.engine import AnyPolicy, Engine
from engine.errors import QueueFullError, SteerError, UnavailableError
from engine.params import SamplingParams
from engine.request import Completion, Prompt
from engine.requests.input_processor import CheckedRequest
from engine.requests.stream import StreamEvent
from engine.text.chat import Message

_CLOSED = "the AsyncEngine is closed; make a new one from the engine"
_DRAINING = "the AsyncEngine takes no more requests: it is about to close"


@dataclass(eq=False)
class Room:
    """Places in the queue that are kept for requests which are not in it yet."""

    places: int


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
        self._thread: EngineThread | None = None  # from the first request on
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: dict[int, Answers] = {}
        self._rooms: set[Room] = set()
        self._submitting = 0
        self._ended = asyncio.Event()  # set whenever a request has ended
        self._draining = False
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
        await self.drain(0)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.stop)

    async def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for the open ones.

        Args:
            timeout: seconds after which those that still run are aborted, with the cause "drain";
                None: never.

        Returns:
            Whether all ended by themselves.
        """
        self._draining = True
        if not (self._open or self._submitting):  # a timeout of 0 would not even look
            return True
        try:
            await asyncio.wait_for(self._emptied(), timeout)
        except TimeoutError:
            self._abort_all()
            await self._emptied(aborting=True)
            return False
        return True

    async def _emptied(self, aborting: bool = False) -> None:
        while self._open or self._submitting:
            self._ended.clear()
            await self._ended.wait()
            if aborting:
                self._abort_all()  # those that were being submitted

    def _abort_all(self) -> None:
        for answers in set(self._open.values()):
            answers.abort("drain")

    def alive(self, within: float = 5.0) -> bool:
        """Whether the engine's thread waits for work, or has begun a step within so many seconds.

        A long prefill is one step: it may take longer on a slow device.
        """
        return self._thread is None or self._thread.alive(within)

    def snapshot(self) -> dict[str, Any]:
        """``Engine.snapshot``, and the requests that are ``open``, or about to be (``reserved``).

        Any thread may ask, at any time.
        """
        reserved = sum(room.places for room in list(self._rooms))
        return {**self._engine.snapshot(), "open": len(self._open), "reserved": reserved}

    @property
    def max_waiting(self) -> int:
        """Requests that may wait at once; 0: any number."""
        return self._engine.config.max_waiting

    @contextmanager
    def room(self, requests: int = 1) -> Iterator[Room]:
        """Keep places in the queue for requests that are about to be submitted.

        It costs nothing to be refused here, before a long prompt is encoded. Give what this yields
        to :meth:`submit`.

        Raises:
            QueueFullError: if so many more cannot wait; try again later.
            SteerError: if so many could never wait at once.
            UnavailableError: if this is closed or about to be, or its thread has failed.
        """
        self._check_open()
        limit = self.max_waiting
        if limit and requests > limit:
            said = f"{requests} answers can never be queued at once: the queue holds {limit}"
            raise SteerError(said, "n")
        waiting = self._engine.scheduler.waiting + sum(room.places for room in self._rooms)
        if limit and waiting + requests > limit:
            raise QueueFullError(f"the queue is full: {waiting} requests wait, it holds {limit}")
        room = Room(requests)
        self._rooms.add(room)
        try:
            yield room
        finally:
            self._rooms.discard(room)

    async def submit(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
        room: Room | None = None,
    ) -> Answers:
        """Queue ``params.n`` answers to one prompt.

        Checks and tokenising run in a thread of their own: a long prompt stops no other request.

        Args:
            prompt, params, policy, priority, timeout: as for ``Engine.submit_samples``.
            room: places that :meth:`room` has kept for them.

        Raises:
            QueueFullError: if the queue is full.
            UnavailableError: if this is closed or about to be, or its thread has failed.
            SteerError: if the request can never run.
        """
        self._check_open()
        self._submitting += 1
        try:
            return await self._submit(prompt, params, policy, priority, timeout, room)
        finally:
            self._submitting -= 1
            self._ended.set()

    async def _submit(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None,
        policy: AnyPolicy,
        priority: int,
        timeout: float | None,
        room: Room | None,
    ) -> Answers:
        engine, thread = self._engine, self._started()
        checked = await asyncio.to_thread(
            lambda: engine._inputs.check(prompt, params, engine.policy(policy), priority, timeout)
        )
        queued = asyncio.wrap_future(thread.call(lambda: self._queue(checked, thread, room)))
        try:
            return await asyncio.shield(queued)
        except asyncio.CancelledError:
            queued.add_done_callback(_drop)
            raise

    def _queue(self, checked: CheckedRequest, thread: EngineThread, room: Room | None) -> Answers:
        """In the engine's thread, so that no step runs in between."""
        engine = self._engine
        with engine._driver.one_thread(wait=True):
            requests = list(engine._inputs.queue(checked))
            engine._submitted.update(requests)
        if room is not None:
            room.places = max(0, room.places - len(requests))  # they are in the queue now
        answers = Answers(requests, checked.prompt, engine.tokenizer, self.abort)
        self._open.update(dict.fromkeys(requests, answers))
        thread.follow(requests)
        return answers

    def _started(self) -> EngineThread:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = EngineThread(self._engine, self._deliver, self._failed)
        return self._thread

    def _deliver(self, batch: Batch) -> None:
        """In the engine's thread."""
        self._in_loop(lambda: self._hand_out(batch))

    def _failed(self, error: Exception) -> None:
        """In the engine's thread, as it ends by an error: no reader may wait for ever."""
        self._in_loop(lambda: self._hand_out([(request, error) for request in self._open]))

    def _in_loop(self, function: Callable[[], None]) -> None:
        """A loop that is closed has no readers left."""
        loop = self._loop
        with suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(function)

    def _hand_out(self, batch: Batch) -> None:
        for request, news in batch:
            ended = isinstance(news, Exception) or news.completion is not None
            answers = self._open.pop(request) if ended else self._open[request]
            answers.put(request, news)
            if ended:
                self._ended.set()

    def abort(self, request: int) -> None:
        """End a request; its answer ends with the finish reason "abort". No effect on others."""
        if request in self._open and self._thread is not None:
            self._thread.call(lambda: self._engine.abort(request))

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
        async for answer in answer_many(self, prompts, params, policy, priority, timeout):
            yield answer

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
        answers = await self.submit(prompt, params, policy, priority=priority, timeout=timeout)
        events = answers.__aiter__()
        try:
            async for batch in events:
                for event in batch:
                    yield event
        finally:
            await events.aclose()

    def _check_open(self) -> None:
        if self._closed or self._draining:
            raise UnavailableError(_CLOSED if self._closed else _DRAINING)
        if self._thread is not None:
            self._thread.check()


def _drop(queued: asyncio.Future[Answers]) -> None:
    """Nobody waits for these answers any more."""
    if not queued.cancelled() and queued.exception() is None:
        queued.result().abort()
