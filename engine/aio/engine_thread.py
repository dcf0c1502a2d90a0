"""The thread that drives an engine: it takes calls between steps, and hands out their news."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from engine.engine import Engine
from engine.errors import UnavailableError
from engine.request import Completion
from engine.requests.news import News, NewsReader

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
Batch = list[tuple[int, News | Exception]]  # by request; an exception ends it


class EngineThread:
    """Drives one engine until it is stopped. While it runs, no other thread may use the engine.

    It stays in its thread from step to step: a step costs the event loop one call, however many
    requests it has news of.
    """

    def __init__(
        self, engine: Engine, deliver: Callable[[Batch], None], failed: Callable[[Exception], None]
    ) -> None:
        """
        Args:
            deliver: called in the thread with the news of each step, if there are any.
            failed: called in the thread if it ends by an error: nothing more is delivered.
        """
        self._engine = engine
        self._one_thread = engine._driver.one_thread
        self._deliver, self._failed = deliver, failed
        self._error: Exception | None = None  # that the thread has ended by
        self._calls: deque[Callable[[], None]] = deque()
        self._called = threading.Event()
        self._readers: dict[int, NewsReader] = {}
        self._failures = 0  # steps in a row that raised
        self._idle = False
        self._stopping = False
        self._turned = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="steer-engine", daemon=True)
        self._thread.start()

    def alive(self, within: float) -> bool:
        """Whether it waits for work, or has begun a step within so many seconds."""
        turned = self._idle or time.monotonic() - self._turned < within
        return self._error is None and self._thread.is_alive() and turned

    def check(self) -> None:
        """UnavailableError if the thread has failed."""
        if self._error is not None:
            raise UnavailableError("the engine has failed and takes no more requests: restart it")

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run a function before the next step; at once if the thread was stopped.

        The future's error is an UnavailableError if the thread has failed.
        """
        future: Future[_T] = Future()

        def run() -> None:
            try:
                self.check()
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.append(run)
        self._called.set()
        if self._error is not None or not self._thread.is_alive():
            self._answer_calls()
        return future

    def follow(self, requests: list[int]) -> None:
        """Report the news of requests that this thread has just queued, until each has ended."""
        engine = self._engine
        for request in requests:
            self._readers[request] = NewsReader(engine._driver, engine.scheduler, request)

    def stop(self) -> None:
        """End the thread once no request is followed any more, and wait for it."""
        self._stopping = True
        self._called.set()
        self._thread.join()
        self._answer_calls()

    def _run(self) -> None:
        try:
            self._turn()
        except BaseException as error:  # none is expected here
            self._error = RuntimeError(f"the engine's thread has failed: {error!r}")
            _log.exception("the engine's thread has failed")
            self._readers.clear()
            self._failed(self._error)
            self._answer_calls()

    def _turn(self) -> None:
        while not (self._stopping and not self._readers and not self._calls):
            self._turned = time.monotonic()
            self._called.clear()
            self._answer_calls()
            if self._readers:
                if batch := self._step():
                    self._deliver(batch)
            elif not self._stopping:
                self._idle = True
                self._called.wait()
                self._turned = time.monotonic()  # first: alive() may ask in between
                self._idle = False

    def _answer_calls(self) -> None:
        while self._calls:
            with suppress(IndexError):  # an ended thread and its last caller may both come here
                self._calls.popleft()()

    def _step(self) -> Batch:
        """Run one step; the news of the followed requests."""
        done: dict[int, Completion] = {}
        try:
            with self._one_thread(wait=True):
                done = {c.request_id: c for c in self._engine.step()}
            self._failures = 0
        except Exception as error:  # a policy raised: only its request is aborted
            _log.exception("a step failed")
            self._failures += 1
            if self._failures > len(self._readers) + 2:  # more than one for each request's policy
                return self._give_up(error)
        batch: Batch = []
        for request, reader in list(self._readers.items()):
            if request in done:
                del self._readers[request]
                batch.append((request, reader.finish(done[request])))
            elif self._engine.is_live(request) and (news := reader.read()):
                batch.append((request, news))
        return batch

    def _give_up(self, error: Exception) -> Batch:
        """End all requests with an error that no single one of them caused."""
        requests = list(self._readers)
        self._readers.clear()
        for request in requests:
            self._engine.abort(request)
        with suppress(Exception), self._one_thread(wait=True):
            self._engine.step()  # gives their memory back: there may be no other step for long
        self._failures = 0
        return [(request, error) for request in requests]
