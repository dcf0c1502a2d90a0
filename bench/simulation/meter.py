"""Counts of a simulation while it runs. Times are in simulated seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine import _core
from engine._core import ROW_KINDS
from engine.accounting.ledger import Usage
from engine.config import ROLES

PERCENTILES = (50, 90, 99)
_POINTS = 4096  # most points of a history
_OF_SHARE = ("recompute", "sampled")


class ArenaMeter:
    """Slabs that each model owns: mean over time, peak, and a history for a plot.

    The history thins itself: when it is full every second point is dropped, now and from then on.
    """

    def __init__(self, pool: _core.BlockPool) -> None:
        self.peak = [0, 0]
        self.history: list[tuple[float, int, int]] = []
        self._pool = pool
        self._area = [0.0, 0.0]
        self._last = (0.0, 0, 0)
        self._stride = 1
        self._skip = 0

    def sample(self, now: float) -> None:
        """Book the slabs owned since the last sample, and sample again."""
        moment, small, large = self._last
        self._area[0] += small * (now - moment)
        self._area[1] += large * (now - moment)
        small, large = self._pool.owned(0), self._pool.owned(1)
        self._last = now, small, large
        if small > self.peak[0]:
            self.peak[0] = small
        if large > self.peak[1]:
            self.peak[1] = large
        if self._skip:
            self._skip -= 1
        else:
            self._remember()

    def _remember(self) -> None:
        self.history.append(self._last)
        if len(self.history) >= _POINTS:
            del self.history[1::2]
            self._stride *= 2
        self._skip = self._stride - 1

    def mean(self, model: int) -> float:
        """Slabs owned by a model, on average until the last sample."""
        return self._area[model] / self._last[0] if self._last[0] else 0.0


@dataclass
class RequestMeter:
    """Requests from arrival to end.

    first: wait for the first token, of each finished request.
    each: time of each further token.
    total: from arrival to end.
    handoff: from a decision for the large model to the first token that it writes.
    """

    arrived: dict[int, float] = field(default_factory=dict)  # of those that are not finished
    started: dict[int, float] = field(default_factory=dict)  # moment of the first token, of these
    awaiting: dict[int, float] = field(default_factory=dict)  # since when they await a large token
    first: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    handoff: list[float] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    tokens: int = 0
    steps: list[int] = field(default_factory=lambda: [0, 0])  # by model

    @property
    def recomputed_per_sampled(self) -> float:
        """Rows that were computed again over rows that gave a token."""
        again, sampled = (sum(self.usage.count(r, k) for r in ROLES) for k in _OF_SHARE)
        return again / sampled if sampled else 0.0

    def large_wrote(self, sampled: Sequence[int], now: float) -> None:
        """The large model gave these sequences a token."""
        for number in sampled:
            since = self.awaiting.pop(number, None)
            if since is not None:
                self.handoff.append(now - since)
                self.started.setdefault(number, now)

    def book(self, sequence: _core.Sequence) -> None:
        """Add the rows and tokens of a sequence."""
        self.usage += Usage.of(sequence)
        self.tokens += sequence.length - sequence.prompt_length
        for _, model in sequence.steps:
            self.steps[model] += 1

    def finish(self, sequence: _core.Sequence, now: float) -> None:
        """Book a finished sequence."""
        self.book(sequence)
        arrived, started = self.arrived.pop(sequence.id), self.started.pop(sequence.id)
        further = sequence.length - sequence.prompt_length - 1
        self.first.append(started - arrived)
        self.total.append(now - arrived)
        if further:
            self.each.append((now - started) / further)


def percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """``name_p50`` and so on in seconds; None if there is no value."""
    if not values:
        return {f"{name}_p{p}": None for p in PERCENTILES}
    figures = np.percentile(np.asarray(values), PERCENTILES).tolist()
    return {f"{name}_p{p}": value for p, value in zip(PERCENTILES, figures, strict=True)}


def row_counts(usage: Usage) -> dict[str, int]:
    """``small_prompt_rows`` and so on: rows computed, by model and kind."""
    return {f"{r}_{k}_rows": usage.count(r, k) for r in ROLES for k in ROW_KINDS}
