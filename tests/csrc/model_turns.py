"""The lane policies as csrc/lane_policy.h describes them: who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, sqrt

from .kinds import LARGE, SMALL

RECENT = 16384  # tokens of a lane after which older ones count half


@dataclass(frozen=True)
class Lanes:
    lane_policy: str = "latency"
    gather: int = 0
    hold_ticks: int = 32
    automatic_from: int = 4
    tick_cost: tuple[float, float] = (1.0, 1.0)
    lane_weight: tuple[float, float] = (1.0, 1.0)


class Turns:
    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.stuck = [False, False]  # asked, had nothing, and nothing has changed since
        self.owed = [False, False]  # the other had nothing; this one goes next whatever comes
        self.rested = [False, False]  # had nothing when last asked
        self.used = [0.0, 0.0]  # time by weight
        self.drawn = [0.0, 0.0]  # tokens of late
        self.waited = [0, 0]  # ticks of the other lane while this one had work

    def changed(self) -> None:
        self.stuck = [False, False]

    def holds(self, lane: int, other_flies: bool, running: int, ready: list[int]) -> bool:
        """Is the lane put off? Never while the other one can do nothing."""
        policy, other = self.lanes.lane_policy, 1 - lane
        if self.owed[lane] or (self.stuck[other] and not other_flies):
            return False
        if policy == "weighted":
            return self.used[lane] > self.used[other]
        if policy == "throughput" or (policy == "auto" and running > self.lanes.automatic_from):
            return other_flies or lane != self._turn(running, ready)
        return False

    def _turn(self, running: int, ready: list[int]) -> int:
        """One lane at a time: the large one while enough share its ticks, but neither for ever."""
        patience = self.lanes.hold_ticks
        if ready[LARGE] == 0 or (ready[SMALL] and self.waited[SMALL] >= patience):
            return SMALL
        worth_it = ready[LARGE] >= self._enough(running) or self.waited[LARGE] >= patience
        return LARGE if worth_it else SMALL

    def _enough(self, running: int) -> int:
        if self.lanes.gather:
            return min(self.lanes.gather, running)
        weights = [sqrt((self.drawn[m] + 1) * self.lanes.tick_cost[m]) for m in (SMALL, LARGE)]
        share = weights[LARGE] / (weights[LARGE] + weights[SMALL])
        return max(1, floor(share * running + 0.5))

    def planned(self, lane: int, sequences: int, ready: list[int]) -> None:
        if self.lanes.lane_policy == "latency":
            return
        rested, self.rested[lane] = self.rested[lane], sequences == 0
        self.stuck[lane] = self.owed[1 - lane] = sequences == 0
        self.owed[lane] = False
        if sequences == 0:
            return
        if rested:  # time without use is not saved up
            self.used[lane] = max(self.used)
        self.used[lane] += self.lanes.tick_cost[lane] / self.lanes.lane_weight[lane]
        self.drawn[lane] += sequences
        if self.drawn[lane] > RECENT:
            self.drawn = [drawn / 2 for drawn in self.drawn]
        other = 1 - lane
        self.waited[lane] = 0
        self.waited[other] = self.waited[other] + 1 if ready[other] else 0
