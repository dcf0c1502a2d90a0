"""Servers over the embedded pair, and over pairs that write a known text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import EngineConfig

from .ring_pair import THINKS, WRITES, write_pair
from .running import Running, running
from .slow_engine import SlowEngine


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    """The embedded pair."""
    with running(SlowEngine("tiny", config=EngineConfig(check_every=1))) as server:
        yield server


@pytest.fixture(scope="session")
def ring_paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ring")
    return {name: write_pair(folder / name, ring, ends) for name, ring, ends in RINGS}


RINGS = (("thinks", THINKS, True), ("writes", WRITES, True), ("endless", WRITES, False))


def _ring(paths, name: str, **settings) -> Iterator[Running]:
    small, large = paths[name]
    config = EngineConfig(check_every=1, **settings)
    engine = SlowEngine("custom", small=small, large=large, config=config, device="cpu")
    with running(engine, policy="random:0.5") as server:
        yield server


@pytest.fixture(scope="module")
def writes(ring_paths) -> Iterator[Running]:
    """Answers every chat with an accent, a blank line, an emoji and a line separator."""
    yield from _ring(ring_paths, "writes")


@pytest.fixture(scope="module")
def thinks(ring_paths) -> Iterator[Running]:
    """Answers every chat with <think>ab</think>xy, a blank line and z."""
    yield from _ring(ring_paths, "thinks")


@pytest.fixture
def slow(ring_paths) -> Iterator[Running]:
    """Writes without an end, a token every 50 ms, one answer at a time; two more can wait."""
    for server in _ring(ring_paths, "endless", max_sequences=1, max_waiting=2):
        server.engine.pause = 0.05
        yield server
        server.engine.pause = 0.0
