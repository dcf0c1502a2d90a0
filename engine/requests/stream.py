"""Streaming: events for settled text, and for the steps it belongs to."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from engine import _core
from engine._core import SMALL
from engine.config import ROLES
from engine.request import Completion, Step, TokenLogprobs
from engine.requests.driver import Driver
from engine.requests.news import News, NewsReader
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class StreamEvent:
    """A piece of an answer.

    kind: "step" where a step opens, "text", or "done" at the end.
    text: the text of a text event; all of them join to the completion's. It is empty where a
        character is not complete yet.
    model: the role of the model that writes, for step and text events.
    completion: the completion of the done event.
    sample: number of the answer among those to the same prompt, from 0.
    token_ids: the ids of a text event; all of them join to the completion's.
    logprobs: an entry for each of ``token_ids``; None if not requested.
    step: of a step event: the step, still without its text and tokens.
    time: when it was seen, in seconds of ``time.monotonic()``.
    """

    kind: str
    text: str = ""
    model: str | None = None
    completion: Completion | None = None
    sample: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    step: Step | None = None
    time: float = field(default=0.0, compare=False)


def stream_events(
    driver: Driver, scheduler: _core.Scheduler, tokenizer: Tokenizer, request: int
) -> Iterator[StreamEvent]:
    """Advance all requests and yield the events of one until it is finished.

    Closing the iterator early aborts the request.
    """
    text = StreamedText(tokenizer)
    try:
        news, completion = NewsReader(driver, scheduler, request), None
        while completion is None:
            with driver.one_thread():  # not while an event is with the caller
                if request not in driver.finished:
                    driver.advance()
                completion = driver.finished.pop(request, None)
                live = request in driver.live
                read = news.read() if live else None
            if read:
                yield from text.events(read)
        yield from text.events(news.finish(completion))
    finally:
        driver.cancel([request])


class StreamedText:
    """Turns the news of one request into events. Incomplete characters are held back."""

    def __init__(self, tokenizer: Tokenizer, sample: int = 0) -> None:
        """``sample``: of the events."""
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._model = ROLES[SMALL]
        self._sample = sample
        self._sent = 0  # characters

    def events(self, news: News) -> Iterator[StreamEvent]:
        """The events of the next news; at the end the done event."""
        if not news.steps and news.completion is None:
            yield from self._piece(news, 0, len(news.token_ids), None)
            return
        ends = [*(index for index, _ in news.steps), len(news.token_ids)]
        opens = self._opens(news)
        yield from self._piece(news, 0, ends[0], next(opens))
        for (start, step), end in zip(news.steps, ends[1:], strict=True):
            self._model = step.model
            opened = replace(step, text="", token_ids=(), audit=(), replaced=None)
            yield StreamEvent(
                "step", model=step.model, sample=self._sample, step=opened, time=news.time
            )
            yield from self._piece(news, start, end, next(opens))
        if news.completion:
            yield StreamEvent(
                "done", completion=news.completion, sample=self._sample, time=news.time
            )

    @staticmethod
    def _opens(news: News) -> Iterator[int | None]:
        """Where each piece of the news ends in the completion's text; None while there is none."""
        if news.completion is None:
            yield from [None] * (len(news.steps) + 1)
            return
        steps = news.completion.steps
        known = len(steps) - len(news.steps)
        place = sum(len(step.text) for step in steps[:known])
        for step in steps[known:]:
            yield place
            place += len(step.text)
        yield len(news.completion.text)

    def _piece(self, news: News, start: int, end: int, place: int | None) -> Iterator[StreamEvent]:
        """A text event for the ids from ``start`` to ``end``, unless there is nothing to say.

        place: where their text ends in the completion's, which may be cut at a stop.
        """
        ids = news.token_ids[start:end]
        if place is None or news.completion is None:
            text = self._decoder.decode(self._tokenizer.bytes_of(ids))
        else:
            text = news.completion.text[self._sent : place]
        self._sent += len(text)
        if ids or text:
            logprobs = None if news.logprobs is None else tuple(news.logprobs[start:end])
            # By position: there is one for every token.
            yield StreamEvent(
                "text", text, self._model, None, self._sample, tuple(ids), logprobs, None, news.time
            )
