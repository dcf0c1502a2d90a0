"""What a request tells the metrics and the log."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Iterable

from starlette.requests import Request

from engine.engine import Engine
from engine.request import Completion
from engine.requests.stream import StreamEvent
from engine.serve.errors import CutShortError
from engine.serve.metrics import Metrics
from engine.serve.usage import large_alone


class Report:
    """Follows the answers of one request, from when it arrived."""

    def __init__(self, metrics: Metrics, engine: Engine, request: Request) -> None:
        """
        Args:
            metrics: the server's.
            engine: prices the answers.
            request: its ``state`` gets ``tokens`` and ``aborted`` for the line in the log.
        """
        self._metrics, self._engine, self._state = metrics, engine, request.state
        self._began = time.monotonic()
        self._open = 0
        self._tokens = 0
        self._last: dict[tuple[int, int], float] = {}

    def started(self, samples: int) -> None:
        """So many answers are queued."""
        self._open += samples
        for _ in range(samples):
            self._metrics.request_started()

    def turn(self, prompt: int, events: Iterable[StreamEvent], cause: str | None) -> None:
        """New events of the answers to one of the prompts; ``cause``: of their abort, if any."""
        for event in events:
            if event.completion is not None:
                self._done(event.completion, cause)
            elif event.token_ids:
                self._timed((prompt, event.sample), event)

    def ended(self, cause: str) -> None:
        """Nothing is read any more; answers that are not finished were ended by ``cause``."""
        for _ in range(self._open):
            self._aborted(cause)
            self._metrics.abandoned(cause if cause in ("deadline", "error") else "abort")
        self._open = 0

    def failed(self, error: BaseException) -> None:
        """The same, after an exception: the one of a cancelled task is that of its client."""
        if isinstance(error, CancelledError):
            self.ended("client")
        else:
            self.ended(error.cause if isinstance(error, CutShortError) else "error")

    def _timed(self, answer: tuple[int, int], event: StreamEvent) -> None:
        before = self._last.get(answer)
        self._last[answer] = event.time
        count = len(event.token_ids)
        if before is None:
            self._metrics.first_token(max(0.0, event.time - self._began))
        else:
            self._metrics.tokens_between(max(0.0, event.time - before), count)

    def _done(self, completion: Completion, cause: str | None) -> None:
        self._open -= 1
        self._tokens += len(completion.token_ids)
        self._state.tokens = self._tokens
        reason = completion.finish_reason
        if reason == "abort":
            self._aborted(cause or "error")
        elif reason in ("deadline", "error"):
            self._aborted(reason)
        seconds = time.monotonic() - self._began
        flops = self._engine.flops(completion.usage)
        alone = large_alone(self._engine, [completion])
        self._metrics.finished(completion, seconds, flops, alone)

    def _aborted(self, cause: str) -> None:
        self._state.aborted = cause
        self._metrics.aborted(cause)
