"""One simulation: the real scheduler, driven by a clock instead of models."""

from __future__ import annotations

import time
from math import inf
from typing import Any

import numpy as np

from bench.simulation.clock import SharedClock
from bench.simulation.meter import ArenaMeter, RequestMeter, percentiles, row_counts
from bench.simulation.setting import Case, Setting, build_scheduler
from bench.simulation.workload import END, TEXT, Texts
from engine._core import LARGE, NOBODY, SMALL, EventKind
from engine.config import ROLES

LANES = (SMALL, LARGE)


class Simulation:
    """One case, run once."""

    def __init__(self, setting: Setting, workload: Texts, case: Case) -> None:
        self.case = case
        self.clock = SharedClock(setting.together)
        self.scheduler = build_scheduler(setting, case, workload.longest)
        self.arena = ArenaMeter(self.scheduler.pool)
        self.requests = RequestMeter()
        self.ticks = [0, 0]
        self._sequences = [0, 0]  # of all ticks
        self._counts = [0, 0]  # of the tick in flight
        self._setting = setting
        self._workload = workload
        # Views of buffers that keep their addresses.
        self._plans = [self.scheduler.buffers(lane) for lane in LANES]
        self._ids = [plan.ids for plan in self._plans]
        self._contexts = [plan.contexts for plan in self._plans]
        self._samples = [plan.samples for plan in self._plans]
        self._text = [TEXT] * max(workload.prompts)
        self._offsets: list[int] = workload.offsets.tolist()
        # By request number, from 1 on: keys of the row that gives the last token.
        sizes = zip(workload.prompts, workload.answers, strict=True)
        self._ends = np.array([0, *(prompt + answer - 1 for prompt, answer in sizes)])
        self._handoffs = workload.handoffs(case.handoff)
        # If the large model writes all, no model reads a boundary.
        self._reader = NOBODY if case.handoff == 1 else SMALL
        self._arrivals = list(workload.arrivals(case.rate)) if case.rate else []
        self._added = 0

    def run(self) -> dict[str, Any]:
        """Run to the end; the figures of a row. Raises RuntimeError if no lane can move."""
        began = time.perf_counter()
        for _ in range(self.case.concurrency or 0):
            self._add(0.0)
        self._answer_events()
        due = self._next_arrival()
        limit = self._setting.ticks or inf
        while (self.requests.arrived or due < inf) and sum(self.ticks) < limit:
            self._plan(due)
            self.arena.sample(self.clock.now)
            lane = self.clock.advance(due)
            if lane == NOBODY:
                self._add(due)
                due = self._next_arrival()
            else:
                self._commit(lane)
            self._answer_events()
        self.arena.sample(self.clock.now)
        self.scheduler.check_integrity()
        for number in self.requests.arrived:  # cut off by the limit of ticks
            self.requests.book(self.scheduler.sequence(number))
        return self._figures(time.perf_counter() - began)

    def _next_arrival(self) -> float:
        return self._arrivals[self._added] if self._added < len(self._arrivals) else inf

    def _add(self, arrival: float) -> None:
        at = self._added
        self._added += 1
        prompt = self._text[: self._workload.prompts[at]]
        number = self.scheduler.add(
            prompt, max_tokens=self._workload.limits[at], stop_ids=[END], reader=self._reader
        )
        self.requests.arrived[number] = arrival

    def _plan(self, due: float) -> None:
        """Ask both lanes: one that has nothing to do now is asked again after each event."""
        # An empty round may only have released a reservation, or passed a lane's turn on.
        for _ in range(3):
            for lane in LANES:
                if self.clock.idle(lane):
                    self._plan_lane(lane)
            if not (self.clock.idle(SMALL) and self.clock.idle(LARGE)):
                return
        if due == inf:
            raise RuntimeError(f"no lane can move while {len(self.requests.arrived)} requests wait")

    def _plan_lane(self, lane: int) -> None:
        count = self.scheduler.plan(lane)
        if count == 0:
            return
        self._counts[lane] = count
        context = int(np.add.reduce(self._contexts[lane][:count])) / count
        span = self._plans[lane].rows / count
        self.clock.start(lane, self._setting.times.seconds(lane, count, context, span))

    def _commit(self, lane: int) -> None:
        count = self._counts[lane]
        ids = self._ids[lane][:count]
        contexts = self._contexts[lane][:count]
        tokens = self._workload.tokens[self._workload.offsets[ids] + contexts]
        self.scheduler.commit(lane, np.where(contexts >= self._ends[ids], END, tokens))
        self.ticks[lane] += 1
        self._sequences[lane] += count
        if lane == LARGE and self.requests.awaiting:
            sampled = ids[self._samples[lane][:count] != 0]
            self.requests.large_wrote(sampled.tolist(), self.clock.now)

    def _answer_events(self) -> None:
        while events := self.scheduler.take_events():
            for kind, number, row in events:
                if kind == EventKind.decide:
                    self._decide(number, row)
                else:
                    self._finish(number)

    def _decide(self, number: int, row: int) -> None:
        """``row`` of the small model's plan is the boundary; -1 if no model read it."""
        now = self.clock.now
        if row < 0:
            self.requests.awaiting[number] = now
            self.scheduler.route(number, LARGE, True)
            return
        large = self._handoffs[self._offsets[number] + int(self._contexts[SMALL][row])]
        if large:
            self.requests.awaiting[number] = now
        else:  # the read boundary gave a token, which is kept
            self.requests.started.setdefault(number, now)
        self.scheduler.route(number, large)

    def _finish(self, number: int) -> None:
        self.requests.finish(self.scheduler.sequence(number), self.clock.now)
        self.scheduler.forget(number)
        if self.case.concurrency and self._added < len(self._workload.prompts):
            self._add(self.clock.now)

    def _figures(self, wall: float) -> dict[str, Any]:
        now, met, ticks = self.clock.now, self.requests, sum(self.ticks)
        counters = self.scheduler.counters()
        lanes = [self._lane_figures(lane) for lane in LANES]
        return {
            "finished": len(met.total),
            "tokens": met.tokens,
            "tokens_per_second": met.tokens / now,
            "requests_per_second": len(met.total) / now,
            **percentiles("ttft", met.first),
            **percentiles("tpot", met.each),
            **percentiles("latency", met.total),
            **percentiles("handoff_wait", met.handoff),
            "steps": sum(met.steps),
            "large_step_share": met.steps[LARGE] / max(1, sum(met.steps)),
            **lanes[SMALL],
            **lanes[LARGE],
            **row_counts(met.usage),
            "recomputed_per_sampled": met.recomputed_per_sampled,
            **{
                name: counters[name]
                for name in ("lent_slabs", "preemptions", "suspended", "guarded", "lost_rows")
            },
            "counters": counters,
            "ticks": ticks,
            "simulated_seconds": now,
            "wall_seconds": wall,
            "ticks_per_wall_second": ticks / wall,
        }

    def _lane_figures(self, lane: int) -> dict[str, Any]:
        role, ticks = ROLES[lane], self.ticks[lane]
        return {
            f"{role}_busy": self.clock.busy[lane] / self.clock.now,
            f"{role}_ticks": ticks,
            f"{role}_mean_batch": self._sequences[lane] / ticks if ticks else 0.0,
            f"{role}_slabs_mean": self.arena.mean(lane),
            f"{role}_slabs_peak": self.arena.peak[lane],
        }
