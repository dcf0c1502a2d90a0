"""Time for two lanes that live off one memory bandwidth."""

from __future__ import annotations

from math import inf

NOBODY = -1


class SharedClock:
    """Two ticks in flight at most, one a lane, as a fluid: remaining work and a common rate.

    Work is counted in seconds that a tick takes by itself. Alone it advances at rate 1; while both
    lanes are in flight each advances at rate ``together`` / 2. So ``together`` is how much they get
    done with each other, compared with one alone: 1 where both wait for the same memory, 2 where
    neither notices the other.
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

        Of two completions at the same moment the small model's comes first; a completion comes
        before what is due at the same moment.
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
