"""A clock for two lanes that share one memory bandwidth."""

from __future__ import annotations

from math import inf

from engine._core import NOBODY


class SharedClock:
    """At most two ticks in flight, one per lane, as a fluid: remaining work and a common rate.

    Work is counted in the seconds that a tick takes alone. Alone it advances at rate 1; while both
    lanes are in flight each advances at rate ``together`` / 2. So ``together`` is the work that
    both get done at once, compared with one alone: 1 if both wait for the same memory, 2 if
    neither slows the other.
    """

    def __init__(self, together: float = 1.0) -> None:
        self.now = 0.0  # seconds
        self.busy = [0.0, 0.0]  # seconds with a tick in flight, by lane
        self._left = [inf, inf]  # work of the tick in flight; inf: none
        self._rate = together / 2

    def idle(self, lane: int) -> bool:
        """Is no tick of this lane in flight?"""
        return self._left[lane] == inf

    def start(self, lane: int, work: float) -> None:
        """A tick of ``work`` seconds begins now."""
        if self._left[lane] != inf:
            raise RuntimeError(f"lane {lane} has a tick in flight")
        self._left[lane] = work

    def advance(self, until: float = inf) -> int:
        """Move to the next completion and return its lane, or to ``until`` and return NOBODY.

        Of two completions at the same moment the small model's comes first; a completion at
        ``until`` comes before ``until``.
        """
        left = self._left
        first = 0 if left[0] <= left[1] else 1
        other = 1 - first
        if left[first] == inf and until == inf:
            raise RuntimeError("nothing is in flight and nothing is due")
        rate = 1.0 if left[other] == inf else self._rate
        moment = self.now + left[first] / rate
        if moment > until:
            self._spend(until, (until - self.now) * rate)
            return NOBODY
        self._spend(moment, left[first])
        left[first] = inf
        return first

    def _spend(self, moment: float, work: float) -> None:
        elapsed = moment - self.now
        self.now = moment
        for lane, left in enumerate(self._left):
            if left != inf:
                self.busy[lane] += elapsed
                self._left[lane] = max(0.0, left - work)
