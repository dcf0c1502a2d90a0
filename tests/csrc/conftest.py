"""Fixtures of the core's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from engine._core import Scheduler

# Token ids of the tests: 0..5 plain text, then the ways in which "\n\n" can come about.
TOKEN_BYTES = [b"a", b"b", b"c", b"d", b"e", b"f", b"\n", b"\n\n", b".\n\n", b"", b"\n\n\n"]


@pytest.fixture
def make_scheduler() -> Iterator[Callable[..., Scheduler]]:
    """Builds schedulers of a roomy default shape; proves the books of each at the end."""
    built: list[Scheduler] = []

    def make(**changes: object) -> Scheduler:
        settings: dict[str, object] = {
            "slabs": 16,
            "slots": (9, 1),
            "block_tokens": 4,
            "max_context": 64,
            "max_sequences": 8,
            "max_tick_tokens": 64,
            "eager_admission": True,  # what it keeps off the arena is what most tests look at
            "delimiters": [b"\n\n"],
            "token_bytes": TOKEN_BYTES,
        }
        built.append(Scheduler(**(settings | changes)))  # type: ignore[arg-type]
        return built[-1]

    yield make
    for scheduler in built:
        scheduler.check_integrity()
