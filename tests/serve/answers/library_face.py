"""What the server needs of the library, over today's AsyncEngine; to be replaced by its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from engine import AsyncEngine, Completion, Engine, SamplingParams, Step
from engine.accounting.pricing import pair_flops
from engine.aio import _OpenRequest
from engine.config import ROLES
from engine.errors import QueueFullError
from engine.request import TokenLogprobs
from engine.requests.stream import StreamedText, StreamEvent


@dataclass(frozen=True)
class FaceParams(SamplingParams):
    prompt_logprobs: int | None = None


@dataclass(frozen=True)
class FaceStep(Step):
    kind: str = "decided"
    catch_up: int = 0


@dataclass(frozen=True)
class FaceEvent(StreamEvent):
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    time: float = 0.0
    step: Any = None


@dataclass(frozen=True)
class Times:
    queued: float
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class FaceCompletion(Completion):
    stop_reason: str | int | None = None
    times: Times = Times(0.0)
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


def copied(kind: Any, of: Any, **more: Any) -> Any:
    return kind(**{f.name: getattr(of, f.name) for f in fields(of)}, **more)


class FaceText(StreamedText):
    """Events with the ids and log-probabilities of their tokens."""

    def __init__(self, engine: Engine, params: SamplingParams) -> None:
        super().__init__(engine.tokenizer)
        self._engine, self._params = engine, params
        self._queued, self._first = time.monotonic(), None

    def grow(self, scheduler: Any, request: int) -> Iterator[StreamEvent]:
        state = self._engine._driver.live[request]
        news = scheduler.news(request, self._position)
        position, tokens = news.start, news.tokens.tolist()
        for start, model in [*news.steps, (news.settled, None)]:
            if start > position:
                piece = tokens[position - news.start : start - news.start]
                text = self._decoder.decode(self._tokenizer.bytes_of(piece))
                self._sent += len(text)
                self._first = self._first or time.monotonic()
                yield self._written(state, position, piece, text)
            position = start
            if model is not None:
                self._model = ROLES[model]
                step = state._step(self._steps, start, [], self._model, "", [])
                self._steps += 1
                yield FaceEvent("step", model=self._model, step=copied(FaceStep, step))
        self._position = news.settled

    def _written(self, state: Any, position: int, ids: list[int], text: str) -> FaceEvent:
        logprobs = None
        if self._params.logprobs is not None:
            each = enumerate(ids, position)
            logprobs = tuple(state.drawn._entry(at, self._model, token) for at, token in each)
        return FaceEvent("text", text, self._model, None, 0, tuple(ids), logprobs, time.monotonic())

    def finish(self, completion: Completion) -> Iterator[StreamEvent]:
        given = max(0, self._position - len(completion.prompt_token_ids))
        done = self._completed(completion)
        for step in done.steps[self._steps :]:
            yield FaceEvent("step", model=step.model, step=replace(step, token_ids=()))
        text = completion.text[self._sent :]
        logprobs = completion.logprobs and completion.logprobs[given:]
        ids = completion.token_ids[given:]
        if text or ids:
            now = time.monotonic()
            yield FaceEvent("text", text, self._model, None, 0, ids, logprobs, now)
        yield FaceEvent("done", completion=done)

    def _completed(self, done: Completion) -> FaceCompletion:
        steps = tuple(copied(FaceStep, step) for step in done.steps)
        times = Times(self._queued, self._first, self._first, time.monotonic())
        cached = int(done.usage.cached.max())
        made = copied(FaceCompletion, replace(done, steps=steps), times=times, cached_tokens=cached)
        reason = self._stop_reason(done)
        if self._params.include_stop and isinstance(reason, str):
            made = replace(made, text=made.text + reason)
        top = getattr(self._params, "prompt_logprobs", None)
        scored = None if top is None else self._scored(done, top)
        return replace(made, stop_reason=reason, prompt_logprobs=scored)

    def _stop_reason(self, done: Completion) -> str | int | None:
        if done.finish_reason != "stop":
            return None
        rest = self._tokenizer.text_of(done.token_ids)[len(done.text) :]
        for stop in self._params.stop:
            if rest.startswith(stop) or done.text.endswith(stop):
                return stop
        last = done.token_ids[-1]
        return last if last in self._params.stop_token_ids else None

    def _scored(self, done: Completion, top: int) -> tuple[TokenLogprobs, ...]:
        return self._engine.scored[done.prompt_token_ids, top]  # type: ignore[attr-defined]


class FaceEngine(Engine):
    """An engine that prices usage and scores prompts."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scored: dict[Any, tuple[TokenLogprobs, ...]] = {}
        self.pause = 0.0  # seconds before each step

    def step(self) -> list[Completion]:
        time.sleep(self.pause)
        return super().step()

    def flops(self, usage: Any) -> dict[str, int]:
        names = ("decode", "catchup", "reprefill")
        return {name: pair_flops(usage, self.shapes, name) for name in names}

    def score(self, ids: tuple[int, ...], top: int, policy: Any) -> None:
        """Each of the prompt's tokens, drawn by force after those before it."""
        rows = [TokenLogprobs(None)]
        for at in range(1, len(ids)):
            forced = SamplingParams(max_tokens=1, logprobs=top, logit_bias={ids[at]: 100.0})
            (done,) = self.generate([list(ids[:at])], forced, policy)
            assert done.token_ids == ids[at : at + 1] and done.logprobs
            rows += done.logprobs
        self.scored[ids, top] = tuple(rows)


class Answers:
    def __init__(self, served: FaceAsyncEngine, requests: list[int], ids: Any, queue: Any) -> None:
        self._served, self.requests = served, tuple(requests)
        self.prompt_token_ids, self._queue = tuple(ids), queue
        self._running = len(requests)

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> list[Any]:
        if not self._running:
            raise StopAsyncIteration
        events = [await self._queue.get()]
        while not self._queue.empty():
            events.append(self._queue.get_nowait())
        for event in events:
            if isinstance(event, Exception):
                raise event
            self._running -= event.kind == "done"
        return events

    @property
    def lag(self) -> int:
        return int(self._queue.qsize())

    def abort(self) -> None:
        self._served.abort_all(self.requests)


class FaceAsyncEngine(AsyncEngine):
    reserved = 0

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        if not self._engine._inputs.has_room(self.reserved + count):
            raise QueueFullError("too many requests wait: try again later")
        self.reserved += count
        try:
            yield
        finally:
            self.reserved -= count

    async def submit(
        self, prompt: Any, params: Any, policy: Any, *, priority: int = 0, timeout: Any = None
    ) -> Answers:
        self._check_open()
        queue: Any = asyncio.Queue()
        engine: Any = self._engine

        def submit() -> tuple[list[int], Any]:
            with self._one_thread(wait=True):
                ids = engine._inputs.prompt_ids(prompt)
                if (top := getattr(params, "prompt_logprobs", None)) is not None:
                    engine.score(tuple(ids), top, policy)
                requests = engine.submit_samples(
                    ids, params, policy, priority=priority, timeout=timeout
                )
            for sample, request in enumerate(requests):
                text = FaceText(engine, params)
                self._open[request] = _OpenRequest(text, queue, sample)
            return requests, ids

        submitted = asyncio.get_running_loop().run_in_executor(self._thread, submit)
        try:
            requests, ids = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(lambda made: self.abort_all(made.result()[0]))
            raise
        self._ensure_driving()
        return Answers(self, requests, ids, queue)

    def abort_all(self, requests: Any) -> None:
        for request in requests:
            if request in self._open:
                self._thread.submit(self._engine.abort, request)
                self._ensure_driving()
