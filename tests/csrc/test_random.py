"""Random operations on both lanes in random order: see random_driver.py."""

from __future__ import annotations

import numpy as np
import pytest

from engine._core import DRAFT_SOURCES

from .kinds import LARGE, SMALL
from .random_arena import BLOCK_TOKENS
from .random_driver import Driver

# With a prefix cache or without, and blocks of host memory.
TIERS = [(False, 0), (True, 0), (True, 5), (True, 40)]


@pytest.mark.parametrize(("prefix_cache", "host_blocks"), TIERS)
@pytest.mark.parametrize("seed", range(8))
def test_random_operations(seed: int, prefix_cache: bool, host_blocks: int) -> None:
    """Every text is right, no KV is touched while it is needed, every row is booked once."""
    driver = Driver(seed, prefix_cache, host_blocks=host_blocks)
    driver.run()
    assert np.array_equal(driver.planned, driver.booked)
    scheduler, counters = driver.scheduler, driver.scheduler.counters()
    assert (scheduler.running, scheduler.waiting, scheduler.take_events()) == (0, 0, [])
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 0)
    # What the run is meant to exercise did happen.
    assert counters["lent_slabs"] > 15
    assert counters["preemptions"] > 50
    assert min(counters["lost_rows"]) > 100
    assert min(counters["ticks"]) > 100
    assert (min(counters["hits"]) > 10) == prefix_cache
    assert (min(counters["evictions"]) > 10) == prefix_cache
    assert (driver.seen["saved"] > 50) == (driver.seen["restored"] > 10) == (host_blocks > 0)
    assert counters["saved"] == driver.seen["saved"]
    assert counters["restored"] == driver.seen["restored"] == driver.restored // BLOCK_TOKENS
    assert min(counters["copied"]) > 0
    assert sum(counters["background"]) > 0 or seed not in (1, 2, 5)
    assert (min(counters["held"]) > 50) == (seed % 4 > 0)
    for event in (
        "finish 1",
        "finish 2",
        "finish 3",
        "short",
        "truncated",
        "truncated in flight",
        "forced",
        "trial kept",
        "trial rolled back",
    ):
        assert driver.seen[event] > 0, event


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_operations_with_a_forecast(seed: int, prefix_cache: bool) -> None:
    """Fewer run at once; all else holds, and the same history gives the same decisions."""
    drivers = [Driver(seed, prefix_cache, eager_admission=False, slabs=40) for _ in range(2)]
    for driver in drivers:
        driver.run()
        assert np.array_equal(driver.planned, driver.booked)
    first, second = (driver.scheduler.counters() for driver in drivers)
    assert first == second and first["admitted"] > 50


@pytest.mark.parametrize(("prefix_cache", "host_blocks"), TIERS)
@pytest.mark.parametrize("seed", range(8))
def test_random_operations_with_guesses(seed: int, prefix_cache: bool, host_blocks: int) -> None:
    """All of it, with guesses of each source at what the large model writes."""
    driver = Driver(seed, prefix_cache, host_blocks=host_blocks)
    driver.drafts, driver.sources = (0, 1, 3, 7), DRAFT_SOURCES
    driver.run()
    assert np.array_equal(driver.planned, driver.booked)
    scheduler, counts = driver.scheduler, driver.speculation
    assert (scheduler.running, scheduler.waiting, scheduler.take_events()) == (0, 0, [])
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 0)
    assert driver.seen["verified"] > 20 and counts["rounds"] > 20
    assert 0.2 < counts["accepted"] / counts["compared"] < 0.9
    assert all(counts[source] > 0 for source in ("drafted", "looked_up", "reused"))
    assert counts["tokens"] > counts["passes"] > 0
