"""Many prompts at once: the answers as they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Protocol

from engine.engine import AnyPolicy
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.request import Completion, Prompt
from engine.requests.batch import for_each, listed_prompts
from engine.requests.stream import StreamEvent


class Streams(Protocol):
    """What streams one prompt; ``max_waiting``: requests that may wait at once, 0: any number."""

    @property
    def max_waiting(self) -> int:
        """See above."""
        ...

    def stream(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None = None,
        policy: AnyPolicy = "steer",
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[StreamEvent]:
        """The events of one prompt."""
        ...


async def answer_many(
    streams: Streams,
    prompts: Iterable[str | Sequence[int] | Prompt],
    params: SamplingParams | Sequence[SamplingParams | None] | None,
    policy: AnyPolicy | Sequence[AnyPolicy],
    priority: int | Sequence[int],
    timeout: float | None,
) -> AsyncIterator[tuple[int, Completion]]:
    """See ``AsyncEngine.as_completed``."""
    listed = listed_prompts(prompts, "as_completed()")
    each = (
        for_each(value, len(listed), name, lambda one: one)
        for value, name in ((params, "params"), (policy, "policy"), (priority, "priority"))
    )
    answers: asyncio.Queue[tuple[int, Completion] | Exception | None] = asyncio.Queue()
    room = asyncio.Semaphore(streams.max_waiting or max(1, len(listed)))

    async def answer(index: int, prompt: Any, wanted: Any, chosen: Any, rank: int) -> None:
        try:
            async with room:
                events = streams.stream(prompt, wanted, chosen, priority=rank, timeout=timeout)
                async for event in events:
                    if event.completion:
                        answers.put_nowait((index, event.completion))
            answers.put_nowait(None)
        except SteerError as error:
            answers.put_nowait(error.within(f"prompt {index}"))
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
