"""The answers to one prompt, as their events come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from engine.request import Prompt
from engine.requests.news import News
from engine.requests.stream import StreamedText, StreamEvent
from engine.text.tokenizer import Tokenizer


class Answers:
    """The answers to one prompt: iterate over it for lists of events.

    Each turn has all that came since the last one: at most a step, a text and an end of each answer
    for a reader that keeps up, more for one that is slow. What waits is never more than the text.

    requests: the id of each answer's request, in the order of the samples.
    prompt_token_ids: of the prompt, in the small model's ids if the models' differ.
    cause: what :meth:`abort` was called for first; None if it was not. An answer that ends with the
        reason "abort" without it was ended by an error of its policy, which is logged.
    """

    def __init__(
        self,
        requests: Sequence[int],
        prompt: Sequence[int] | Prompt,
        tokenizer: Tokenizer,
        abort: Callable[[int], None],
    ) -> None:
        """``abort``: ends a request that is not finished."""
        self.requests = tuple(requests)
        self.prompt_token_ids = prompt.small if isinstance(prompt, Prompt) else tuple(prompt)
        self.cause: str | None = None
        self._texts = [StreamedText(tokenizer, sample) for sample in range(len(requests))]
        self._waiting: dict[int, News] = {}  # by sample
        self._running = set(requests)
        self._abort = abort
        self._error: Exception | None = None
        self._came = asyncio.Event()

    def __repr__(self) -> str:
        return f"Answers(requests={self.requests}, {len(self._running)} open)"

    @property
    def lag(self) -> int:
        """Tokens that have settled and were not taken yet."""
        return sum(len(news.token_ids) for news in self._waiting.values())

    def abort(self, cause: str = "request") -> None:
        """End the answers that are not finished, with the finish reason "abort".

        ``cause``: any word, kept for those who read them.
        """
        if self._running:
            self.cause = self.cause or cause
        for request in self._running:
            self._abort(request)

    def put(self, request: int, news: News | Exception) -> None:
        """Take news of one answer; called in the event loop. An exception ends them all."""
        if isinstance(news, Exception):
            self._error = news
            self._running.discard(request)
        else:
            if news.completion:
                self._running.discard(request)
            sample = self.requests.index(request)
            if sample in self._waiting:
                self._waiting[sample].extend(news)
            else:
                self._waiting[sample] = news
        self._came.set()

    async def __aiter__(self) -> AsyncGenerator[list[StreamEvent], None]:
        """Events until each answer has its "done". Leaving early ends the answers."""
        open_ = len(self.requests)
        try:
            while open_:
                await self._came.wait()
                self._came.clear()
                waiting, self._waiting = self._waiting, {}
                events = [e for s, news in waiting.items() for e in self._texts[s].events(news)]
                open_ -= sum(event.kind == "done" for event in events)
                if events:
                    yield events
                if self._error is not None:
                    raise self._error
        finally:
            self.abort("left")
