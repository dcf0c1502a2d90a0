"""Drives an engine's scheduler tick by tick, so that single ticks can be timed as they occur.

A decode is timed in two ways. In turn: plan, run, commit, and the device waits while the host does
its part. Or ahead, as a lane with ``plan_ahead`` does it: the next tick is planned and launched
while the last one runs, and the time between two commits counts.

The work before a timed tick (a prompt, the other model's text) is planned and committed, but no
model runs: instead of computed keys and values the arena holds random numbers, which cost a forward
pass just as much. The plans are the scheduler's own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from bench.lanes.device import Device
from engine import Engine, SamplingParams
from engine._core import LARGE, NOBODY, SMALL, EventKind
from engine.config import ROLES
from engine.errors import SteerError
from engine.requests.lane import Lane
from engine.requests.request_state import RequestState
from engine.routing.policies import Always

_HOLD = -1  # in place of a model: wait
_NOT_TIMED = 2  # first ticks of each kind: compilation, graphs, first touches


class NoRoomError(SteerError):
    """The arena or the context is too small for the request."""


@dataclass(frozen=True)
class Tick:
    """One tick of a model.

    seconds: of plan, forward pass and commit; for a tick that was planned ahead, from the commit
        before it to its own.
    context: keys that the last row of a sequence sees, on average.
    sampled: sequences that got a token.
    """

    seconds: float
    sequences: int
    rows: int
    context: float
    sampled: int


class ScriptedEngine:
    """One engine whose requests only this object drives."""

    def __init__(self, engine: Engine, device: Device) -> None:
        self._engine = engine
        self._device = device
        self._scheduler = engine.scheduler
        self._plans = [engine.scheduler.buffers(model) for model in (SMALL, LARGE)]
        self._routes: dict[int, list[int]] = {}
        self._live: dict[int, RequestState] = {}
        self._held: list[int] = []
        self._committed = 0.0
        for model in (SMALL, LARGE):  # uninitialised memory may hold NaN
            engine.arena.rows(engine.shapes[model], model).normal_()
        self._now()

    @property
    def engine(self) -> Engine:
        """The engine that is driven."""
        return self._engine

    @property
    def most_rows(self) -> int:
        """The most rows of one tick."""
        return self._engine.config.max_tick_tokens

    def plans_ahead(self, model: int) -> bool:
        """Whether the engine's lane of a model plans ahead."""
        return self._engine.lanes[model].ahead

    def decode(self, model: int, batch: int, context: int, count: int) -> list[Tick]:
        """``count`` ticks of ``batch`` sequences, a token each, from ``context`` keys on."""
        self._line_up(model, batch, context, count)
        ticks = [self._tick(model, batch) for _ in range(count + _NOT_TIMED)]
        self.clear()
        return ticks[_NOT_TIMED:]

    def decode_ahead(self, model: int, batch: int, context: int, count: int) -> list[Tick]:
        """As :meth:`decode`, but each tick is planned and launched while the one before it runs."""
        with self._running_ahead(model, batch, context, count) as lane:
            ticks = [self._next(lane) for _ in range(count)]
            self._check_all_moved(ticks)
        return ticks

    def decode_as_engine(self, model: int, batch: int, context: int, count: int) -> list[Tick]:
        """As :meth:`decode_ahead` if the engine's lane plans ahead, else as :meth:`decode`."""
        way = self.decode_ahead if self.plans_ahead(model) else self.decode
        return way(model, batch, context, count)

    def busy_share(self, model: int, context: int, count: int) -> float | None:
        """Share of the time in which the device computes while one sequence decodes, if known.

        Ticks are planned ahead: idle time then is not spent waiting for the host to plan.
        """
        with self._running_ahead(model, 1, context, count) as lane:
            return self._device.busy_share(lambda: [self._next(lane) for _ in range(count)])

    @contextmanager
    def _running_ahead(self, model: int, batch: int, context: int, count: int) -> Iterator[Lane]:
        """A lane that decodes ahead, with a tick in flight; it has tokens for ``count`` more."""
        self._line_up(model, batch, context, count + 1)  # one more follows the last one, too
        lane = Lane(self._scheduler, self._engine.lanes[model].runner, ahead=True)
        self._committed = self._now()
        try:
            for _ in range(_NOT_TIMED):
                self._next(lane)
            yield lane
        finally:
            lane.land(self._live)
            self.clear()

    def _next(self, lane: Lane) -> Tick:
        """Commit the oldest tick of a lane, as the engine's driver does; the next one runs by then.

        The host waits for the device only until that tick ends.
        """
        lane.start(self._live)
        lane.wait()
        lane.retire(self._live)
        self._answer()
        if not self._held or self._held[0] not in self._live:
            raise NoRoomError("a sequence ended while it was measured")
        began, self._committed = self._committed, time.perf_counter()
        batch, seen = len(self._held), self._length(self._held[0]) - 1
        return Tick(self._committed - began, batch, batch, seen, batch)

    def _check_all_moved(self, ticks: list[Tick]) -> None:
        """NoRoomError unless each tick gave each sequence a token."""
        first = round(ticks[0].context)
        expected = [first + i for i in range(len(ticks))]
        ends = {self._length(number) for number in self._held}
        if [t.context for t in ticks] != expected or ends != {expected[-1] + 1}:
            raise NoRoomError("sequences found no room for a token each in every tick")

    def _line_up(self, model: int, batch: int, context: int, count: int) -> None:
        """Bring sequences to where each tick gives all of them a token."""
        tokens = count + _NOT_TIMED + 1
        self._check_room({model}, batch, context + tokens)
        for _ in range(batch):  # one token each, then they wait for each other
            self._add(context, tokens, [model, _HOLD], step=1)
        self._drain(model)
        if len(self._held) < batch:
            raise NoRoomError(
                f"{batch} sequences of {context} tokens were not let in at once: raise "
                "--arena-tokens"
            )
        for number in self._held:
            self._scheduler.route(number, model, True)

    def _tick(self, model: int, expected: int = 0) -> Tick:
        """Plan, run and commit; NoRoomError if the tick does not have the expected rows."""
        began = self._now()
        self._scheduler.plan(model)
        plan = self._plans[model]
        n, rows = plan.sequences, plan.rows
        if expected and rows != expected:
            raise NoRoomError(f"a tick of {expected} rows was asked for, {rows} found room")
        context, sampled = float(plan.contexts[:n].mean()), int((plan.samples[:n] != 0).sum())
        result = self._engine.lanes[model].runner.execute(plan, self._live)
        self._commit(model, result.tokens)
        return Tick(self._now() - began, n, rows, context, sampled)

    def catch_up(self, model: int, batch: int, context: int, span: int, count: int) -> list[Tick]:
        """``count`` ticks in which ``batch`` sequences compute ``span`` rows each and get a token.

        The other model has written all of a span but its first row. If the context is less than
        twice the span there is no such text: then a prompt of one span is read.
        """
        if batch * span > self.most_rows:
            raise NoRoomError(f"{batch} spans of {span} rows exceed a tick of {self.most_rows}")
        ticks = []
        for _ in range(count + _NOT_TIMED):
            self._prepare(model, batch, context, span)
            ticks.append(self._tick(model, batch * span))
            self.clear()
        return ticks[_NOT_TIMED:]

    def _prepare(self, model: int, batch: int, context: int, span: int) -> None:
        step = span - 1
        if context < 2 * span:
            self._check_room({model}, batch, span + 2)
            for _ in range(batch):
                self._add(span, 2, [model])
            return
        self._check_room({SMALL, LARGE}, batch, context + 2)
        for _ in range(batch):
            self._add(context - 2 * step, 2 * step + 2, [model, 1 - model, model], step)
        self._drain(model)
        self._drain(1 - model)

    def handoff(self, to: int, context: int, backlog: int) -> list[Tick]:
        """The ticks from the boundary to the first token of ``to``.

        ``to`` knows ``context`` tokens, the other model wrote ``backlog`` more. While the other one
        writes, ``to`` reads along as the engine's settings say.
        """
        self._check_room({SMALL, LARGE}, 1, context + 2 * backlog + 2)
        # The small model reads along only where it is going to read the boundary.
        reader = SMALL if to == SMALL else NOBODY
        models = [to, 1 - to, to]
        request = self._add(context, 2 * backlog + 2, models, backlog, reader)
        self._drain(to)
        boundary = context + 2 * backlog
        while self._length(request) < boundary:
            if self._scheduler.plan(1 - to):
                self._pass(1 - to)
            # Before the boundary no sequence waits for this model: its plans are reading along.
            if self._length(request) < boundary and self._scheduler.plan(to):
                self._pass(to)
        ticks: list[Tick] = []
        while not ticks or not ticks[-1].sampled:
            ticks.append(self._tick(to))
        self.clear()
        return ticks

    def clear(self) -> None:
        """End all requests."""
        for number in list(self._live):
            self._scheduler.abort(number)
        self._answer()
        self._held.clear()

    def _now(self) -> float:
        self._device.synchronize()
        return time.perf_counter()

    def _add(
        self, prompt: int, tokens: int, models: list[int], step: int = 0, reader: int = NOBODY
    ) -> int:
        """Queue a request; ``models`` write its steps, the last of them the rest."""
        number = self._scheduler.add(
            [1] * prompt, max_tokens=tokens, max_step_tokens=step, reader=reader
        )
        self._routes[number] = models
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        self._live[number] = RequestState(params, 0, Always(ROLES[models[-1]]), prompt)
        self._answer()
        return number

    def _length(self, request: int) -> int:
        return self._scheduler.view(request).length

    def _drain(self, model: int) -> None:
        """Commit ticks of a model, without running them, until it has nothing to do."""
        while self._scheduler.plan(model):
            self._pass(model)

    def _pass(self, model: int) -> None:
        """Commit the plan as if it had run."""
        self._commit(model, np.zeros(self._plans[model].sequences, np.int32))

    def _commit(self, model: int, tokens: np.ndarray) -> None:
        self._scheduler.commit(model, tokens)
        self._answer()

    def _answer(self) -> None:
        while events := self._scheduler.take_events():
            for kind, number, _ in events:
                if kind == EventKind.decide:
                    self._decide(number)
                else:
                    self._scheduler.forget(number)
                    del self._routes[number], self._live[number]

    def _decide(self, number: int) -> None:
        first, *rest = self._routes[number]
        if first == _HOLD:
            self._held.append(number)
            return
        self._routes[number] = rest
        self._scheduler.route(number, first, not rest)

    def _check_room(self, models: set[int], batch: int, tokens: int) -> None:
        """NoRoomError unless ``batch`` sequences of ``tokens`` fit the arena at once."""
        if tokens > self._engine.max_context:
            limit = self._engine.max_context
            raise NoRoomError(f"{tokens} tokens exceed the context of {limit}")
        geometry = self._engine.arena.geometry
        blocks = batch * -(-tokens // self._engine.config.block_tokens)
        slabs = sum(-(-blocks // geometry.slots[model]) for model in models)
        if slabs > geometry.slabs:
            raise NoRoomError(
                f"{batch} x {tokens} tokens need {slabs} slabs of the arena, it has "
                f"{geometry.slabs}: raise --arena-tokens"
            )
