"""What an engine gets done in a stretch of time in which all of its requests decode."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.lanes.device import Device
from engine import Engine, SamplingParams
from engine.config import ROLES
from engine.errors import SteerError
from engine.ledger import Usage
from engine.pricing import weight_bytes

_WARM = 2  # tokens of each request before the window opens


@dataclass(frozen=True)
class Window:
    """Counts by lane, small first. Rates are None where a lane had no requests.

    seconds: wall clock of the window.
    ticks, tokens: of each lane in it; tokens of one request, on average.
    bytes: that those ticks had to move: weights, keys and values.
    """

    seconds: float
    ticks: tuple[int, int]
    tokens: tuple[float, float]
    bytes: float

    def token_ms(self, model: int) -> float | None:
        """Milliseconds between two tokens of a request."""
        return 1e3 * self.seconds / self.tokens[model] if self.tokens[model] else None

    def of(self, bandwidth: float) -> float:
        """Bytes over what the bandwidth would have moved in that time."""
        return self.bytes / (bandwidth * self.seconds)


@dataclass(frozen=True)
class _Books:
    """The engine's counts at one moment."""

    now: float
    ticks: list[int]
    lengths: list[int]
    moved: np.ndarray  # int64 [model, (rows, keys)]


def measure(
    engine: Engine, device: Device, models: Sequence[int], context: int, tokens: int, element: int
) -> Window:
    """Decode a request on each of ``models`` until each on the slower lane has ``tokens`` more.

    SteerError where a request ends before: the arena is too small for it.
    """
    room = engine.config.arena_tokens // len(models) - context
    longest = min(room, engine.max_context - context)
    if longest < tokens + 2 * _WARM:
        raise SteerError(
            f"{len(models)} requests of {context} + {tokens} tokens do not fit an arena of "
            f"{engine.config.arena_tokens}: raise --arena-tokens"
        )
    params = SamplingParams(max_tokens=longest, ignore_eos=True, seed=0)
    requests = [engine.submit([1] * context, params, ROLES[model]) for model in models]
    slower = [request for request, m in zip(requests, models, strict=True) if m == max(models)]

    def run(until: int) -> None:
        """Go on while one of the slower lane's requests has fewer tokens than that."""
        while min(engine.scheduler.sequence(r).length for r in slower) < until:
            engine.step()
            if not all(map(engine.is_live, requests)):
                raise SteerError("a request ended in the window: raise --arena-tokens")

    while min(engine.scheduler.sequence(r).length for r in requests) < context + _WARM:
        engine.step()
    first = _books(engine, device, requests)
    run(min(engine.scheduler.sequence(r).length for r in slower) + tokens)
    last = _books(engine, device, requests)
    for request in requests:
        engine.abort(request)
    while any(map(engine.is_live, requests)):
        engine.step()
    return _between(engine, models, first, last, element)


def _books(engine: Engine, device: Device, requests: Sequence[int]) -> _Books:
    device.synchronize()
    found = [engine.scheduler.sequence(r) for r in requests]
    ticks = engine.scheduler.counters()["ticks"]
    assert isinstance(ticks, list)
    moved = np.sum([Usage.of(sequence).rows.sum(1) for sequence in found], axis=0)
    return _Books(time.perf_counter(), ticks, [sequence.length for sequence in found], moved)


def _between(
    engine: Engine, models: Sequence[int], first: _Books, last: _Books, element: int
) -> Window:
    small, large = (b - a for a, b in zip(first.ticks, last.ticks, strict=True))
    grown = np.subtract(last.lengths, first.lengths)
    tokens = [float(grown[np.equal(models, m)].mean()) if m in models else 0.0 for m in (0, 1)]
    moved = 0.0
    for shape, ticks, rows in zip(
        engine.shapes, (small, large), (last.moved - first.moved).sum(1).tolist(), strict=True
    ):
        moved += ticks * weight_bytes(shape, element) + rows * shape.kv_bytes_per_token(element)
    return Window(last.now - first.now, (small, large), (tokens[0], tokens[1]), moved)
