"""Runs requests: ticks the lanes, answers the core's events, keeps completions."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from engine import _core
from engine._core import LARGE, SMALL, EventKind, RowKind
from engine.accounting.ledger import span_counts
from engine.accounting.pricing import pair_flops
from engine.config import ROLES, ModelConfig
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.request import Completion
from engine.requests.guard_log import GuardLog
from engine.requests.lane import Lane
from engine.requests.lock_step import LockStep, ask
from engine.requests.one_thread import OneThread
from engine.requests.request_state import RequestState
from engine.requests.totals import Totals
from engine.routing.policies import Always
from engine.routing.policy import Boundary, Decision
from engine.routing.together import Rewrite
from engine.text.tokenizer import Tokenizer

CLOSED = "the engine is closed; make a new one"
_PATIENCE = 2  # rounds without progress that may be followed by one with progress
_POLL = 2e-5  # seconds between looks at two lanes that run


class _Live(dict[int, RequestState]):
    """Requests by id. If a call is interrupted after the core queued its request and before
    start(), the request is sampled greedily until its first decision, where it is aborted."""

    def __missing__(self, request: int) -> RequestState:
        return RequestState(SamplingParams(), 0, Always("small"))


class Driver:
    """Drives both lanes of one engine. Completions wait in ``finished`` until they are taken.

    ``one_thread``: held by each call that changes something, and by callers around several.
    """

    def __init__(
        self,
        scheduler: _core.Scheduler,
        lanes: tuple[Lane, Lane],
        tokenizer: Tokenizer,
        shapes: tuple[ModelConfig, ModelConfig],
        check: int,
        overlap: bool = True,
        forks: bool = True,
    ) -> None:
        """
        Args:
            check: ticks between integrity checks of the core, 0 only when idle.
            overlap: whether a lane may start while the other one runs.
            forks: whether a forked process can use the lanes; not on a GPU.
        """
        self.live: dict[int, RequestState] = _Live()
        self.finished: dict[int, Completion] = {}
        self.one_thread = OneThread(forks)
        self.totals = Totals()
        self._scheduler = scheduler
        self._lanes: tuple[Lane, ...] = lanes  # none once it is closed
        self._tokenizer = tokenizer
        self._shapes = shapes
        self._check = check
        self._overlap = overlap
        self._lock_step = LockStep()
        self._guard = GuardLog(scheduler.limit)
        self._ticks = 0
        self._idle = 0
        self._events: deque[_core.Event] = deque()
        self._ends: deque[tuple[int, bool]] = deque()  # to end, and whether to drop its completion
        self._dropped: set[int] = set()
        self._ended: set[int] = set()  # ended requests whose shadows have not ended yet
        self._deadlines: list[tuple[float, int]] = []

    def start(self, request: int, live: RequestState, timeout: float | None) -> None:
        """Take over a request that the scheduler has just queued; ``timeout`` in seconds."""
        self.live[request] = live
        if timeout is None:
            return
        heapq.heappush(self._deadlines, (time.monotonic() + timeout, request))
        if len(self._deadlines) > 2 * len(self.live) + 16:  # most of these requests have ended
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self.live]
            heapq.heapify(self._deadlines)

    def advance(self) -> None:
        """Commit finished ticks and launch the next ones; wait only if no lane can do either.

        On a CPU this is one tick of each lane. A policy that raises ends its request with an abort;
        the exception passes through, and the next call continues with all other requests.

        Raises:
            SteerError: if another thread drives the engine.
        """
        if not self._lanes:
            raise SteerError(CLOSED)
        with self.one_thread():
            self._end_asked()
            self._expire()
            self._advance()

    def _advance(self) -> None:
        before = len(self.finished)
        self._answer()
        progressed = False
        for lane in self._lanes:
            progressed |= self._tick(lane)
        progressed |= len(self.finished) > before
        if not progressed:
            progressed = self._wait()
        if not progressed and self._idle == _PATIENCE:  # a batch of which not all can run at once
            progressed = self._decide_together(all_wait=False)
        self._idle = 0 if progressed or not self.live else self._idle + 1
        # A round without progress may have returned a reservation, or passed the turn to a lane.
        if self._idle > _PATIENCE:
            raise RuntimeError(f"no lane can move while {len(self.live)} requests wait")
        self._ticks += 1
        self._guard.look(self._scheduler.limit)
        if not self.live:
            for lane in self._lanes:  # ticks planned ahead for requests that have ended
                lane.land(self.live)
        if not self.live or (self._check and self._ticks % self._check == 0):
            self._scheduler.check_integrity()

    def _tick(self, lane: Lane) -> bool:
        moved = lane.retire(self.live)
        self._answer()  # before the next plan, which depends on these decisions
        if self._overlap or not any(o.in_flight for o in self._lanes if o is not lane):
            moved |= lane.start(self.live)
            if lane.out_of_memory:
                self._retry(lane)
        moved |= lane.retire(self.live)  # on a CPU a launched tick is done at once
        self._answer()
        return moved

    def _retry(self, lane: Lane) -> None:
        """Repeat a launch that ran out of memory, after all ticks ended and caches are released."""
        for each in self._lanes:
            while each.in_flight:
                each.wait()
                each.retire(self.live)
                self._answer()
        lane.runner.release()
        lane.start(self.live)

    def _wait(self) -> bool:
        """Wait until a tick of any lane is done. False if none runs."""
        busy = [lane for lane in self._lanes if lane.in_flight]
        if len(busy) == 1:
            busy[0].wait()
        while busy and not any(lane.ready() for lane in busy):
            time.sleep(_POLL)
        return bool(busy)

    def abort(self, request: int) -> None:
        """End a request that is live. While another thread drives, that one does it at its next
        :meth:`advance`."""
        self._ends.append((request, False))
        with suppress(SteerError), self.one_thread():
            self._end_asked()

    def cancel(self, requests: Iterable[int]) -> None:
        """End requests and drop their completions, in whatever state an exception left them.

        Never raises. A forward pass that fails here stays in flight, and events of other requests
        wait: the next :meth:`advance` handles both and raises their errors. While another thread
        drives, its next :meth:`advance` ends the requests.
        """
        self._ends.extend((request, True) for request in requests)
        with suppress(Exception), self.one_thread():
            self._end_asked()
            for lane in self._lanes:
                lane.land(self.live)

    def close(self) -> None:
        """End all requests, drop their completions and let go of the lanes. Never raises."""
        self.cancel([*self.live, *self.finished])
        self.live.clear()
        self._lanes = ()

    def _end_asked(self) -> None:
        while self._ends:
            request, drop = self._ends[0]
            if request in self.live:
                if drop:
                    self._dropped.add(request)
                self._scheduler.abort(request)
            if drop:
                self.finished.pop(request, None)
            self._ends.popleft()

    def _expire(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            _, request = heapq.heappop(self._deadlines)
            if request in self.live:
                self._scheduler.abort(request, deadline=True)

    def _answer(self) -> None:
        """Handle the core's events until there are none; after an exception the others wait."""
        while True:
            self._events.extend(self._scheduler.take_events())
            if not self._events:
                if self._decide_together():
                    continue
                return
            event = self._events.popleft()
            if event.shadow:
                self._cross_back(event.sequence, event.kind == EventKind.finished)
            elif event.kind == EventKind.decide:
                self._route(event.sequence, event.row)
            else:
                self._finish(event.sequence)

    def _finish(self, request: int) -> None:
        live = self.live.get(request)
        if live and self._scheduler.shadow_of(request) is not None:
            self._ended.add(request)  # its shadow ends next, and its rows must be counted
            return
        sequence = self._scheduler.sequence(request)
        self._scheduler.forget(request)
        self.live.pop(request, None)
        if request in self._dropped:
            self._dropped.discard(request)
        elif live:
            self.finished[request] = live.complete(sequence, self._tokenizer)
            self.totals.add(self.finished[request])

    def _cross_back(self, request: int, ended: bool) -> None:
        """A shadow has written its step, or has ended."""
        retokenizer, shadow = self.live[request].retokenizer, self._scheduler.shadow_of(request)
        assert retokenizer is not None and shadow is not None
        try:
            if self._scheduler.view(request).away:
                retokenizer.cross_back(request)
        except BaseException:
            self._scheduler.abort(request)
            raise
        finally:
            if ended:
                retokenizer.close(request)
                self.live.pop(shadow, None)
        if ended and request in self._ended:
            self._ended.discard(request)
            self._finish(request)

    def _route(self, request: int, row: int) -> None:
        sequence = self._scheduler.view(request)
        if request not in self.live:  # queued by a call that was interrupted before start()
            return self._scheduler.abort(request)
        if not sequence.awaits_route:
            return None  # it ended after the event
        live = self.live[request]
        if sequence.closing:  # an audit has read the last step and accepted it
            return self._scheduler.route(request, LARGE)
        read = row >= 0 and live.policy.reader == ROLES[SMALL]
        signals = self._lanes[SMALL].signals(row) if read else None
        try:
            boundary = live.boundary(self._scheduler, sequence, signals, self._tokenizer)
            if live.asks_batch(boundary):
                self._lock_step.hold(boundary)
            else:
                self._decide(boundary)
        except BaseException:
            self._scheduler.abort(request)
            raise
        return None

    def _decide(self, boundary: Boundary, answer: Decision | None = None) -> None:
        """Follow the decision at a boundary; ``answer``: of a batch's policy."""
        request = boundary.request
        live, sequence = self.live[request], self._scheduler.view(request)
        decision, unread = live.decide(
            boundary, lambda: self._flops(sequence, boundary.position), answer
        )
        if not sequence.awaits_route:  # the policy has aborted it
            return
        model = ROLES.index(decision.model)
        if live.retokenizer and model == LARGE:
            shadow = live.retokenizer.open_shadow(request)
            if shadow not in self.live:
                self.live[shadow] = live.shadow()
            live.retokenizer.cross(request, boundary.position, unread)
        else:
            self._scheduler.route(request, model, decision.rest, unread)

    def _decide_together(self, all_wait: bool = True) -> bool:
        """Decide for a batch whose requests wait, see ``LockStep.due``. False if there is none."""
        batch = self._lock_step.due(self._scheduler, self.live, all_wait)
        if batch is None:
            return False
        open_ = {boundary.request for boundary in batch[1]}
        try:
            for boundary, answer in zip(batch[1], ask(*batch), strict=True):
                if isinstance(answer, Rewrite):
                    cut = self.live[boundary.request].write_again(boundary.step - 1, answer.reason)
                    self._scheduler.truncate(boundary.request, cut)
                elif answer is not None:
                    self._decide(boundary, answer)
                open_.discard(boundary.request)
                if answer is not None:
                    self._lock_step.release(boundary.request)
        except BaseException:
            for request in open_:  # they share the policy that failed
                self._lock_step.release(request)
                self._scheduler.abort(request)
            raise
        return True

    def _flops(self, sequence: _core.SequenceView, position: int) -> int:
        """FLOPs of a request so far, plus those of the large model's catch-up to ``position``."""
        live = self.live[sequence.id]
        usage, (first, missing) = live.usage(sequence), live.lag(sequence, position)
        usage.rows[LARGE, RowKind.catchup] += span_counts(first, first + missing)
        return pair_flops(usage, self._shapes, "catchup")
