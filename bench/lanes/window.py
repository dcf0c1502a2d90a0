"""Throughput of an engine in a window of time in which all of its requests decode."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.lanes.device import Device
from engine import Engine, SamplingParams
from engine._core import LARGE, SMALL
from engine.accounting.ledger import Usage
from engine.accounting.pricing import weight_bytes
from engine.config import ROLES
from engine.errors import SteerError

_WARM = 2  # tokens of each request before the window opens
_MARGIN = 4  # a request with this many tokens left counts as ending
_SLACK = 16  # tokens that the large model may write while the small one begins


@dataclass(frozen=True)
class Window:
    """Counts by lane, small first. Rates are None where a lane had no requests.

    seconds: wall clock of the window.
    ticks, tokens: of each lane in the window; tokens of one request, on average.
    bytes: weights, keys and values that those ticks had to move.
    """

    seconds: float
    ticks: tuple[int, int]
    tokens: tuple[float, float]
    bytes: float

    def token_ms(self, model: int) -> float | None:
        """Milliseconds between two tokens of a request."""
        return 1e3 * self.seconds / self.tokens[model] if self.tokens[model] else None

    def of(self, bandwidth: float) -> float:
        """Bytes over those that the bandwidth would have moved in that time."""
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

    The window closes early if the faster lane runs out of tokens. SteerError if the slower one has
    not had two tokens by then, or if the arena does not hold that many requests.
    """
    run = _Run(engine, models, context, tokens)
    try:
        run.start()
        first = _books(engine, device, run.requests)
        run.decode(tokens)
        last = _books(engine, device, run.requests)
    finally:
        run.end()
    window = _between(engine, run.models, first, last, element)
    if window.tokens[max(models)] < min(2, tokens):
        raise SteerError(
            f"{len(models)} requests of {context} tokens leave the arena no room to decode: "
            "raise --arena-tokens"
        )
    return window


class _Run:
    """Requests of fixed length, each on one model."""

    def __init__(self, engine: Engine, models: Sequence[int], context: int, tokens: int) -> None:
        self.models = sorted(models, reverse=True)  # large ones first: they take longer to begin
        self.requests: list[int] = []
        self._engine = engine
        self._context = context
        self._longest = self._lengths(tokens)

    def start(self) -> None:
        """Start all requests and wait until each decodes."""
        for model in dict.fromkeys(self.models):
            params = SamplingParams(max_tokens=self._longest[model], ignore_eos=True, seed=0)
            for _ in range(self.models.count(model)):
                number = self._engine.submit([1] * self._context, params, ROLES[model])
                self.requests.append(number)
            while self._open() and self._fewest(self.requests) < _WARM:
                self._engine.step()

    def decode(self, tokens: int) -> None:
        """Run until each request of the slower lane has ``tokens`` more, or one is about to end."""
        slower = self.requests[: self.models.count(self.models[0])]
        until = self._fewest(slower) + tokens
        while self._open() and self._fewest(slower) < until:
            self._engine.step()

    def end(self) -> None:
        """End all requests."""
        for number in self.requests:
            self._engine.abort(number)
        while any(map(self._engine.is_live, self.requests)):
            self._engine.step()

    def _fewest(self, requests: Sequence[int]) -> int:
        lengths = (self._engine.scheduler.view(number).length for number in requests)
        return min(lengths) - self._context

    def _open(self) -> bool:
        """Whether no request is about to end."""
        return all(
            self._engine.scheduler.view(number).length
            < self._context + self._longest[model] - _MARGIN
            for number, model in zip(self.requests, self.models, strict=False)
        )

    def _lengths(self, tokens: int) -> list[int]:
        """The most tokens of a request by model: the large model gets only what it needs."""
        config, geometry = self._engine.config, self._engine.arena.geometry
        begin = self.models.count(SMALL) * self._context // config.max_tick_tokens
        needed = tokens + _WARM + _MARGIN + _SLACK + begin
        slabs, longest = geometry.slabs, [needed, needed]
        for model in (LARGE, SMALL):
            count = self.models.count(model)
            if not count:
                continue
            if model == SMALL:
                blocks = slabs * geometry.slots[model] // count
                room = blocks * config.block_tokens - self._context
                alone = geometry.slabs * min(geometry.slots) * config.block_tokens
                most = min(alone, self._engine.max_context) - self._context
                longest[model] = min(room, most)
            blocks = count * math.ceil((self._context + longest[model]) / config.block_tokens)
            slabs -= math.ceil(blocks / geometry.slots[model])
            if slabs < 0 or longest[model] <= _WARM + _MARGIN:
                raise SteerError(
                    f"{len(self.models)} requests of {self._context} tokens do not fit an arena "
                    f"of {config.arena_tokens}: raise --arena-tokens"
                )
        return longest


def _books(engine: Engine, device: Device, requests: Sequence[int]) -> _Books:
    device.synchronize()
    sequences = [engine.scheduler.view(r) for r in requests]
    ticks = engine.scheduler.counters()["ticks"]
    assert isinstance(ticks, list)
    moved = np.sum([Usage.of(sequence).rows.sum(1) for sequence in sequences], axis=0)
    return _Books(time.perf_counter(), ticks, [sequence.length for sequence in sequences], moved)


def _between(
    engine: Engine, models: Sequence[int], first: _Books, last: _Books, element: int
) -> Window:
    small, large = (b - a for a, b in zip(first.ticks, last.ticks, strict=True))
    grown = np.subtract(last.lengths, first.lengths)
    tokens = [
        float(grown[np.equal(models, m)].mean()) if m in models else 0.0 for m in (SMALL, LARGE)
    ]
    moved = 0.0
    for shape, ticks, rows in zip(
        engine.shapes, (small, large), (last.moved - first.moved).sum(1).tolist(), strict=True
    ):
        moved += ticks * weight_bytes(shape, element) + rows * shape.kv_bytes_per_token(element)
    return Window(last.now - first.now, (small, large), (tokens[0], tokens[1]), moved)
