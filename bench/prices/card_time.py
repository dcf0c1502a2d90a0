"""Time that answers take on a card, from their counts alone.

At a load of n requests at once each of them is with one of the models at any moment. A model that
has a request for the share p of its time runs ticks of n p / (1 - (1 - p)^n) sequences on average:
n independent requests, and no tick where there is none. A tick reads the weights once, for all its
sequences, so each pays for its part of the tick.

A tick's time is that of :class:`bench.simulation.ticktimes.TickTimes`: of a card's roofline, or
measured. Its sequences have the mean context. Rows that are only read come in portions, one for
each time that a model begins to draw after a prompt or after the other model: so some sequences of
a tick read a portion, by chance, and the others draw only.

Both models share the card: time of one is not time of the other. Not counted: queues, sequences
that wait for the tick in flight, memory that is short, lane policies that hold a lane. The same
counts from long runs of :mod:`bench.simulate` under the lane policy ``latency``, which has queues
and waits, are priced within 2% at load 1, 10% at 8 and 16% at 64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.simulation.ticktimes import TickTimes
from engine.accounting.ledger import Usage
from engine.accounting.passes import Passes
from engine.config import ROLES

Floats = npt.NDArray[np.float64]
_HALVINGS = 50
_TAIL = 1e-12  # what is rarer is left out


def binomial(count: int, chance: float) -> Floats:
    """Probabilities of 0 to ``count`` of so many, each with this chance: float64 [count + 1]."""
    if chance in (0, 1):
        return np.eye(1, count + 1, count * int(chance)).ravel()
    steps = np.arange(1, count + 1)
    ratios = np.log((count + 1 - steps) / steps) + math.log(chance) - math.log1p(-chance)
    logs = count * math.log1p(-chance) + np.concatenate(([0.0], np.cumsum(ratios)))
    return np.array(np.exp(logs))


def readers(batch: float, chance: float) -> dict[int, float]:
    """How many of ``batch`` sequences read in a tick, if each does with this chance, and how often.

    Between two whole numbers of sequences lies their mixture, so that the mean is exact.
    """
    low = math.floor(batch)
    found: dict[int, float] = {}
    for size, share in ((low, 1 - (batch - low)), (low + 1, batch - low)):
        for number, often in enumerate(share * binomial(size, chance) if share else ()):
            if often > _TAIL:
                found[number] = found.get(number, 0.0) + float(often)
    return found


def tick_size(load: int, share: float) -> float:
    """Sequences in a tick of a model that each of ``load`` requests is with for this share."""
    if share <= 0:
        return 1.0
    return load * share / -math.expm1(load * math.log1p(-share)) if share < 1 else float(load)


@dataclass(frozen=True)
class _Model:
    """Ticks of one model that does this work."""

    model: int
    work: Passes
    times: TickTimes

    def bare(self, batch: float) -> float:
        """Seconds of a tick in which nothing is read."""
        work = self.work
        span = work.drawn / work.passes
        return self.times.seconds(self.model, batch, self._context, span)

    @property
    def _context(self) -> float:
        return self.work.drawn_keys / self.work.drawn

    def tick(self, batch: float) -> float:
        """Seconds of a tick of ``batch`` sequences on average."""
        work = self.work
        entries = work.entries
        if not entries:
            return self.bare(batch)
        portion, drawn = work.read / entries, work.drawn / work.passes
        met = work.entered / entries + 1 if work.entered else self._context
        seconds = 0.0
        for count, often in readers(batch, entries / work.passes).items():
            entering = min(count, batch)
            context = ((batch - entering) * self._context + entering * met) / batch
            span = drawn + count * portion / batch
            seconds += often * self.times.seconds(self.model, batch, context, span)
        return seconds


class CardTime:
    """Prices counts in seconds of a card at one load."""

    def __init__(self, times: TickTimes, load: int) -> None:
        """``load``: requests at once, 1 or more."""
        self._times, self._load = times, load

    def each(self, usages: Sequence[Usage]) -> Floats:
        """Seconds of the card for each request: float64 [requests].

        All of them are one workload, whose ticks they share: they add up to the time that the card
        needs for all. A request pays for its passes, and for what it reads by the rows.
        """
        done = [[Passes.of(usage, role) for role in ROLES] for usage in usages]
        models = [
            _Model(m, sum((each[m] for each in done), Passes()), self._times)
            for m in range(len(ROLES))
        ]
        sizes = self._sizes(models)
        seconds = np.zeros(len(done))
        for model, size in zip(models, sizes, strict=True):
            work = model.work
            if not work.passes:
                continue
            bare = model.bare(size) / size
            reading = work.passes * (model.tick(size) / size - bare)
            own = [each[model.model] for each in done]
            seconds += bare * np.array([p.passes for p in own])
            seconds += reading * np.array([p.read for p in own]) / max(1, work.read)
        return seconds

    def total(self, usages: Sequence[Usage]) -> float:
        """Seconds of the card for all requests."""
        return float(self.each(usages).sum())

    def _sizes(self, models: Sequence[_Model]) -> list[float]:
        """Sequences in a tick of each model: the shares of time that these sizes themselves lead
        to, found by halving."""
        if not all(model.work.passes for model in models):
            return [float(self._load)] * len(models)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            sizes = [tick_size(self._load, s) for s in (share, 1 - share)]
            small, large = (
                m.work.passes * m.tick(size) for m, size in zip(models, sizes, strict=True)
            )
            low, high = (share, high) if small / (small + large) > share else (low, share)
        return sizes
