"""What of a request has settled since it was looked at last: ids, steps, log-probabilities."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engine import _core
from engine._core import SMALL
from engine.config import ROLES
from engine.request import Completion, Step, TokenLogprobs
from engine.requests.driver import Driver


@dataclass
class News:
    """A piece of a request's text, in ids.

    token_ids: those that settled, in order.
    steps: the steps that open among them: the index in ``token_ids`` of each one's first token, and
        the step, still without its text and tokens.
    logprobs: an entry for each id; None if not requested.
    time: when they were seen, in seconds of ``time.monotonic()``.
    completion: of a request that has ended; these are the last ids then.
    """

    token_ids: list[int]
    steps: list[tuple[int, Step]]
    logprobs: list[TokenLogprobs] | None
    completion: Completion | None = None
    time: float = field(default_factory=time.monotonic)

    def __bool__(self) -> bool:
        return bool(self.token_ids or self.completion)

    def extend(self, later: News) -> None:
        """Append what came after this; the time stays that of the first ids."""
        known = len(self.token_ids)
        self.token_ids += later.token_ids
        self.steps += [(known + index, step) for index, step in later.steps]
        if self.logprobs is not None and later.logprobs is not None:
            self.logprobs += later.logprobs
        self.completion = later.completion


class NewsReader:
    """Reads the news of one request; the work does not grow with the length of its text."""

    def __init__(self, driver: Driver, scheduler: _core.Scheduler, request: int) -> None:
        """``request``: one that has just been queued."""
        self._scheduler = scheduler
        self._request = request
        self._live = driver.live[request]
        self._position = 0  # what lies before it has been told
        self._steps = 0
        self._model = ROLES[SMALL]

    def read(self) -> News:
        """What has settled since the last call, of a request that is queued or runs."""
        core = self._scheduler.news(self._request, self._position)
        steps = [
            (start - core.start, self._live.opened(self._steps + number, start, ROLES[model]))
            for number, (start, model) in enumerate(core.steps)
        ]
        tokens: list[int] = core.tokens.tolist()
        news = News(tokens, steps, self._logprobs(core.start, tokens, steps))
        self._steps += len(steps)
        self._model = steps[-1][1].model if steps else self._model
        self._position = core.settled
        return news

    def _logprobs(
        self, start: int, tokens: list[int], steps: list[tuple[int, Step]]
    ) -> list[TokenLogprobs] | None:
        if self._live.params.logprobs is None:
            return None
        entries, opened, model = [], dict(steps), self._model
        for index, token in enumerate(tokens):
            model = opened[index].model if index in opened else model
            entries.append(self._live.drawn.entry(start + index, model, token))
        return entries

    def finish(self, completion: Completion) -> News:
        """The rest of a finished request."""
        prompt = len(completion.prompt_token_ids)
        known = max(self._position, prompt)
        steps = [(step.position - known, step) for step in completion.steps[self._steps :]]
        rest, entries = completion.token_ids[known - prompt :], completion.logprobs
        logprobs = None if entries is None else list(entries[known - prompt :])
        return News(list(rest), steps, logprobs, completion)
