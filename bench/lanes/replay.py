"""The same requests and schedule through the simulator, with tick times measured beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.lanes.schedule import LARGE, Job
from bench.simulation.clock import SharedClock
from bench.simulation.run import Simulation
from bench.simulation.setting import BLOCK_TOKENS, Case, Setting
from bench.simulation.ticktimes import TickTimes
from bench.simulation.workload import DELIMITER, TEXT
from engine import Engine


class TurnClock(SharedClock):
    """Lanes that take turns, as on a CPU: a tick in flight waits while the other lane's runs."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = 0

    def advance(self, until: float = float("inf")) -> int:
        """Run the tick whose turn it is to its end; nothing arrives in between."""
        lane = 1 - self._turn if self.idle(self._turn) else self._turn
        if self.idle(lane):
            raise RuntimeError("nothing is in flight")
        self._spend_alone(lane)
        self._turn = 1 - lane
        return lane

    def _spend_alone(self, lane: int) -> None:
        self.now += self._left[lane]
        self.busy[lane] += self._left[lane]
        self._left[lane] = float("inf")


class ForcedTexts:
    """Jobs as the simulator's texts: a delimiter ends each step, the schedule hands over.

    Fields as in :class:`bench.simulation.workload.Workload`.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.prompts = [job.prompt for job in jobs]
        self.answers = [job.answer for job in jobs]
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
        """1 where a boundary goes to the large model; the share has been dealt with."""
        return self._large.tobytes()

    def arrivals(self, rate: float) -> list[float]:
        """There are none: it is a closed loop."""
        raise ValueError("a forced schedule has no arrivals")


@dataclass(frozen=True)
class Replay:
    """Runs schedules in the simulator as an engine would.

    together: what two ticks in flight at once get done compared with one alone; None: the lanes
        take turns.
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
        simulation = Simulation(setting, ForcedTexts(jobs), case)
        if self.together is None:
            simulation.clock = TurnClock()
        return simulation.run()
