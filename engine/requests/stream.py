"""Streaming: events for settled text, and for the steps it belongs to."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from engine import _core
from engine._core import SMALL
from engine.config import ROLES
from engine.request import Completion
from engine.requests.driver import Driver
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class StreamEvent:
    """A piece of an answer.

    kind: "step" where a step opens, "text", or "done" at the end.
    text: the text of a text event; all of them join to the completion's.
    model: the role of the model that writes, for step and text events.
    completion: the completion of the done event.
    sample: number of the answer among those to the same prompt, from 0.
    """

    kind: str
    text: str = ""
    model: str | None = None
    completion: Completion | None = None
    sample: int = 0


def stream_events(
    driver: Driver, scheduler: _core.Scheduler, tokenizer: Tokenizer, request: int
) -> Iterator[StreamEvent]:
    """Advance all requests and yield the events of one until it is finished.

    Closing the iterator early aborts the request.
    """
    text = StreamedText(tokenizer)
    try:
        completion = None
        while completion is None:
            with driver.one_thread():  # not while an event is with the caller
                if request not in driver.finished:
                    driver.advance()
                completion = driver.finished.pop(request, None)
                live = request in driver.live
                events = [*text.grow(scheduler, request)] if live else []
            yield from events
        yield from text.finish(completion)
    finally:
        driver.cancel([request])


class StreamedText:
    """Turns a growing sequence into events. Incomplete characters are held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._position = 0  # what lies before it has been sent
        self._steps = 0
        self._model = ROLES[SMALL]
        self._sent = 0  # characters

    def grow(self, scheduler: _core.Scheduler, request: int) -> Iterator[StreamEvent]:
        """Events for the text of a sequence that settled since the last call."""
        news = scheduler.news(request, self._position)
        position, tokens = news.start, news.tokens.tolist()
        for start, model in [*news.steps, (news.settled, None)]:
            if start > position:
                piece = tokens[position - news.start : start - news.start]
                text = self._decoder.decode(self._tokenizer.bytes_of(piece))
                yield from self._text(text)
            position = start
            if model is not None:
                self._model = ROLES[model]
                self._steps += 1
                yield StreamEvent("step", model=self._model)
        self._position = news.settled

    def _text(self, text: str) -> Iterator[StreamEvent]:
        if text:
            self._sent += len(text)
            yield StreamEvent("text", text=text, model=self._model)

    def finish(self, completion: Completion) -> Iterator[StreamEvent]:
        """The rest of the text and the done event."""
        text, steps = completion.text, completion.steps
        opens = sum(len(step.text) for step in steps[: self._steps])  # characters before a step
        for step in steps[self._steps :]:
            yield from self._text(text[self._sent : opens])
            self._model = step.model
            yield StreamEvent("step", model=step.model)
            opens += len(step.text)
        yield from self._text(text[self._sent :])
        yield StreamEvent("done", completion=completion)
