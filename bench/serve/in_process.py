"""The same load given to the library in this process: what a server is compared with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.serve.client import Measured
from bench.serve.load import END, Asked, Load
from bench.serve.probe import with_tokens
from bench.serve.processes import Run
from bench.serve.records import OK, SLOW, VANISHED, Record
from engine import AsyncEngine, Engine, SamplingParams, SteerError


@dataclass(frozen=True)
class Library:
    """An engine and how it is asked. chat: prompts go through the checkpoint's chat template."""

    engine: Engine
    policy: str
    chat: bool
    temperature: float
    ignore_eos: bool

    def prompt(self, asked: Asked) -> Any:
        """What ``AsyncEngine.stream`` takes. SteerError if the template refuses it."""
        if not self.chat:
            return asked.prompt
        messages = asked.prompt
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.engine.chat(messages)

    def fitted(self, load: Load) -> Load:
        """The load for this pair's tokenizer."""
        if load.entries:
            return load
        texts = "12+" * 10 + END, "12+" * 40 + END
        counts = [len(self.engine.tokenizer.encode(text, special=True)) for text in texts]
        return with_tokens(load, (len(texts[0]), len(texts[1])), (counts[0], counts[1]))

    def run(self, load: Load) -> Run:
        """Run the load. Its processor seconds are the engine's and the reading coroutines'."""
        self.engine.warm_up(min(load.at_once or 1, self.engine.config.max_sequences))
        return asyncio.run(self._run(load))

    async def _run(self, load: Load) -> Run:
        async with AsyncEngine(self.engine) as served:
            reader = _Reader(self, load, served)
            before = time.process_time()
            begin = time.monotonic()
            await reader.run(begin)
            taken = time.process_time() - before
        return Run(begin, [Measured(reader.records, taken, 0.0)])


class _Reader:
    """Sends requests to an AsyncEngine and reads their events."""

    def __init__(self, library: Library, load: Load, served: AsyncEngine) -> None:
        self.records: list[Record] = []
        self._library = library
        self._load = load
        self._served = served

    async def run(self, begin: float) -> None:
        """All requests of the load, in a closed or an open loop."""
        asked = self._load.share(0, 1)
        if self._load.rate is None:
            places = self._load.places(0, 1)
            await asyncio.gather(*(self._place(asked, begin) for _ in range(places)))
            return
        running = []
        for request in asked:
            assert request.due is not None
            due = begin + request.due
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            running.append(asyncio.create_task(self._one(request, due)))
        await asyncio.gather(*running)

    async def _place(self, asked: Iterator[Asked], begin: float) -> None:
        seconds = self._load.seconds
        while seconds is None or time.monotonic() < begin + seconds:
            request = next(asked, None)
            if request is None:
                return
            await self._one(request, time.monotonic())

    async def _one(self, asked: Asked, due: float) -> None:
        record = Record(asked.index, due, time.monotonic(), slow=asked.pause > 0)
        self.records.append(record)
        try:
            await self._read(asked, record)
        except SteerError as error:
            record.outcome, record.message = "refused", str(error)
        record.end = time.monotonic()

    async def _read(self, asked: Asked, record: Record) -> None:
        library = self._library
        params = SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=library.temperature,
            ignore_eos=library.ignore_eos,
        )
        events = self._served.stream(library.prompt(asked), params, library.policy)
        most = None if asked.vanish is None else int(asked.vanish * asked.max_tokens)
        async for event in events:
            if event.kind == "text":
                record.arrivals.append(time.monotonic())
                record.counts.append(len(event.token_ids))
                record.tokens += len(event.token_ids)
            elif event.completion:
                done = event.completion
                record.tokens, record.finish = len(done.token_ids), done.finish_reason
                record.prompt_tokens = len(done.prompt_token_ids)
                record.outcome = SLOW if record.slow else OK
                if done.finish_reason in ("abort", "error", "deadline"):
                    record.outcome, record.message = done.finish_reason, done.error or ""
            if most is not None and len(record.arrivals) > most:
                record.outcome = VANISHED
                break
            if asked.pause:
                await asyncio.sleep(asked.pause)
        await events.aclose()  # type: ignore[attr-defined]
