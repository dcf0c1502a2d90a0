"""Runs the same requests and schedule in the simulator, with tick times of the same run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.lanes.schedule import Job
from bench.simulation.run import Simulation
from bench.simulation.setting import BLOCK_TOKENS, Case, Setting
from bench.simulation.ticktimes import TickTimes
from bench.simulation.workload import DELIMITER, TEXT, Texts
from engine import Engine
from engine._core import LARGE, SMALL


class InTurn(Simulation):
    """Lanes that take turns, as on a CPU: a plan of one has run before the other plans.

    The next request starts once both lanes have had their turn after one has ended: only then is
    the ended one handed to the caller.
    """

    def __init__(self, setting: Setting, workload: Texts, case: Case) -> None:
        super().__init__(setting, workload, case)
        self._next = SMALL
        self._ended: list[float] = []

    def _plan(self, due: float) -> None:
        # An empty round may only have released a reservation, or passed a lane's turn on.
        for _ in range(3):
            for lane in (self._next, 1 - self._next):
                if lane == SMALL:
                    self._start()
                self._plan_lane(lane)
                if not self.clock.idle(lane):
                    self._next = 1 - lane
                    return
        raise RuntimeError("no lane can move while requests wait")

    def _add(self, arrival: float) -> None:
        if arrival:  # not a request that is there from the start
            self._ended.append(arrival)
        else:
            super()._add(arrival)

    def _start(self) -> None:
        """Start the next requests in place of those that have ended."""
        for arrival in self._ended:
            if self._added < len(self._workload.prompts):
                super()._add(arrival)
        self._ended.clear()
        super()._answer_events()

    def _answer_events(self) -> None:
        super()._answer_events()
        if not self.requests.arrived:
            self._start()


class ForcedTexts:
    """Jobs as the simulator's texts: a delimiter ends each step, the schedule decides on handoffs.

    Fields as in :class:`bench.simulation.workload.Workload`.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.prompts = [job.prompt for job in jobs]
        self.answers = self.limits = [job.answer for job in jobs]
        self.longest = max(job.prompt + job.answer for job in jobs)
        size = self.longest + 1
        self.offsets = np.arange(-1, len(jobs)) * size  # the core numbers requests from 1 on
        self.tokens = np.full(len(jobs) * size, TEXT, np.int32)
        self._large = np.zeros(len(jobs) * size, np.bool_)
        for offset, job in zip(self.offsets[1:].tolist(), jobs, strict=True):
            first, last = offset + job.prompt, offset + job.prompt + job.answer
            self.tokens[first + job.step - 1 : last : job.step] = DELIMITER
            self._large[first : last : job.step] = [model == LARGE for model in job.models]

    def handoffs(self, share: float) -> bytes:
        """1 where a boundary goes to the large model; the schedule already follows the share."""
        return self._large.tobytes()

    def arrivals(self, rate: float) -> list[float]:
        """There are none: it is a closed loop."""
        raise ValueError("a forced schedule has no arrivals")


@dataclass(frozen=True)
class Replay:
    """Runs schedules in the simulator as an engine would.

    together: the work that two ticks in flight at once get done, compared with one alone; None:
        the lanes take turns.
    """

    engine: Engine
    times: TickTimes
    together: float | None

    def run(self, jobs: Sequence[Job], share: float, concurrency: int) -> dict[str, Any]:
        """The figures of :class:`bench.simulation.run.Simulation`."""
        config = self.engine.config
        if config.block_tokens != BLOCK_TOKENS:
            raise ValueError(f"a replay has blocks of {BLOCK_TOKENS} tokens")
        setting = Setting(
            shapes=self.engine.shapes,
            geometry=self.engine.arena.geometry,
            times=self.times,
            together=self.together or 1.0,
            max_sequences=config.max_sequences,
            max_tick_tokens=config.max_tick_tokens,
            gather=config.gather,
            hold_ticks=config.hold_ticks,
            eager_backlog=config.eager_backlog,
            read_along=config.read_along,
        )
        case = Case(config.lane_policy, share, concurrency=concurrency)
        simulate = Simulation if self.together else InTurn
        return simulate(setting, ForcedTexts(jobs), case).run()
