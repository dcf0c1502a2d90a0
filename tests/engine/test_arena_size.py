"""The arena's default size on a CPU, what it holds, and what the log says of it."""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.evaluate import task_tests
from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine.config import ARENA_TOKENS
from engine.config.named_models import NAMED_MODELS
from engine.device.arena_size import default_slabs, log_shortage, slabs_for
from engine.device.kv_arena import ArenaGeometry
from engine.requests.guard_log import GuardLog
from engine.routing.policies import Call

GIB = 2**30
QWEN = NAMED_MODELS["qwen-0.5b"], NAMED_MODELS["qwen-1.5b"]
CONTEXT = 32768
PLENTY = 2**50
NAME = "engine.device.arena_size"  # of the logger


def of(shapes=QWEN, **config) -> tuple[ArenaGeometry, EngineConfig]:
    made = EngineConfig(**config)
    return ArenaGeometry.of(shapes, made, 2), made


def tiny(**config) -> Engine:
    return Engine("tiny", config=EngineConfig(**config), device="cpu")


def test_it_holds_what_may_run_at_once():
    """The embedded pair: all of max_sequences, each of full context on both models."""
    geometry = tiny().arena.geometry
    blocks = 256 * 256 // 16
    assert geometry.slabs == -(-blocks // geometry.slots[0]) + -(-blocks // geometry.slots[1])
    halved = tiny(max_context=128).arena.geometry
    assert halved.slabs == geometry.slabs // 2


def test_few_at_once_leave_room_for_the_prefix_cache():
    """Not below a fixed size, where memory is free."""
    arena = tiny(max_sequences=4).arena.geometry
    assert arena.slabs * arena.slots[1] * 16 == ARENA_TOKENS


def test_what_is_asked_for_is_made():
    arena = tiny(arena_tokens=4096).arena.geometry
    assert arena.slabs * arena.slots[1] * 16 == 4096


def test_memory_is_taken_as_it_is_written():
    """Engines side by side: the arenas' sizes are promises."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("reads the process's memory from /proc")

    def resident() -> int:
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])

    tiny()
    before = resident()
    engines = [tiny() for _ in range(8)]
    grown = resident() - before
    assert sum(engine.arena.bytes for engine in engines) > 4 * GIB
    assert grown < 8 * 2**26


@pytest.mark.parametrize("gib", [2, 8, 300])
def test_half_of_what_is_free_at_most(gib: int):
    """A laptop, say: all of the batch at full context would need hundreds of GiB."""
    geometry, config = of()
    slabs = default_slabs(geometry, config, CONTEXT, gib * GIB)
    assert 0 <= gib * GIB / 2 - slabs * geometry.slab_bytes < geometry.slab_bytes
    everything = default_slabs(geometry, config, CONTEXT, PLENTY)
    assert slabs < everything == slabs_for(256, CONTEXT, 16, geometry)


def test_one_request_may_take_more_than_half():
    """What one of full context needs on either model, up to three quarters; else half holds."""
    geometry, config = of()
    one = CONTEXT // 16 // geometry.slots[1]
    need = one * geometry.slab_bytes
    for share in (0.5, 0.6, 0.74):
        assert default_slabs(geometry, config, CONTEXT, int(need / share) + 1) == one
    assert default_slabs(geometry, config, CONTEXT, int(need / 0.4)) > one
    assert default_slabs(geometry, config, CONTEXT, int(need / 0.76)) == int(one * 0.5 / 0.76)


def test_host_memory_for_parking_is_not_the_arenas():
    geometry, config = of(host_kv_tokens=16 * 1024)
    parked = 1024 * geometry.block_bytes[1]
    without = replace(config, host_kv_tokens=0)
    assert default_slabs(geometry, config, CONTEXT, 8 * GIB + parked) == default_slabs(
        geometry, without, CONTEXT, 8 * GIB
    )
    with pytest.raises(SteerError, match=r"0\.00 GiB of memory are free beside host_kv_tokens"):
        default_slabs(geometry, config, CONTEXT, parked // 2)


def test_too_little_for_any_use():
    """1,024 tokens of the large model, or one request where the context is shorter."""
    geometry, config = of()
    least = 2 * 1024 // 16 // geometry.slots[1] * geometry.slab_bytes
    assert default_slabs(geometry, config, CONTEXT, least) * geometry.slots[1] * 16 == 1024
    with pytest.raises(
        SteerError, match=r"0\.05 GiB of memory are free, .* too little for 1024 tokens, 0\.03 GiB;"
    ):
        default_slabs(geometry, config, CONTEXT, least - 1)
    assert default_slabs(geometry, config, 512, least // 2) * geometry.slots[1] * 16 == 512


@pytest.fixture
def machine(monkeypatch) -> Callable[[int | None], None]:
    """``machine(free)``: the system says that so many bytes are free; None says nothing."""

    def says(free: int | None) -> None:
        read_text = Path.read_text

        def read(path: Path, *arguments: object, **options: object) -> str:
            if path != Path("/proc/meminfo"):
                return read_text(path, *arguments, **options)
            if free is None:
                raise FileNotFoundError(path)
            return f"MemAvailable: {free // 1024} kB\n"

        def no_such_name(_: object) -> int:
            raise ValueError("unrecognized configuration name")

        monkeypatch.setattr(Path, "read_text", read)
        if free is None:
            monkeypatch.setattr(os, "sysconf", no_such_name)

    return says


def test_a_host_with_little_memory(machine):
    """The engine starts, and says of a request whether it fits; or does not start."""
    machine(6 * 2**20)
    engine = tiny()
    assert 2**21 < engine.arena.bytes <= 2 * 2**21
    assert engine.generate(["47+36*37-15?\n\n"], SamplingParams(max_tokens=32))[0].text
    machine(2**20)
    with pytest.raises(SteerError, match=r"0\.00 GiB of memory are free"):
        tiny()
    assert tiny(arena_tokens=64).arena.bytes < 2**20


def test_a_system_that_does_not_say(machine):
    machine(None)
    arena = tiny().arena.geometry
    assert arena.slabs * arena.slots[1] * 16 == ARENA_TOKENS


def test_so_many_requests_really_fit(pair, delimiters, prompts):
    """An arena for 12 of full context: they run at once, and none loses KV to another."""
    shape = {"delimiters": delimiters, "block_tokens": 4, "max_context": 64, "check_every": 1}
    geometry = pair.engine(**shape, arena_tokens=4).arena.geometry
    slabs = slabs_for(12, 64, 4, geometry)
    engine = pair.engine(
        **shape, arena_tokens=slabs * geometry.slots[1] * 4, max_sequences=12, prefix_cache=False
    )
    assert engine.arena.geometry.slabs == slabs
    policy = Call(lambda b: random.Random(b.position).choice(["small", "large"]), reads=True)
    for prompt in prompts(12, seed=5, longest=4):
        engine.submit(prompt, SamplingParams(max_tokens=64 - len(prompt)), policy)
    done, most = [], 0
    while len(done) < 12:
        done += engine.step()
        most = max(most, engine.scheduler.running)
    assert most == 12 and engine.scheduler.counters()["preemptions"] == 0
    assert sum(c.usage.recomputed_share for c in done) == 0


def logged(caplog, geometry: ArenaGeometry, config: EngineConfig, context: int) -> list[tuple]:
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="engine"):
        log_shortage(geometry, config, context)
    return [(r.levelno, r.getMessage()) for r in caplog.records if r.name == NAME]


def test_the_log_says_how_many_it_holds(caplog):
    """Nothing where all fit; INFO where some do; WARNING where none does."""
    geometry, config = of(max_sequences=8)
    for held, level in ((8, None), (7, logging.INFO), (1, logging.INFO)):
        slabs = slabs_for(held, CONTEXT, 16, geometry)
        found = logged(caplog, replace(geometry, slabs=slabs), config, CONTEXT)
        assert [f[0] for f in found] == ([level] if level else [])
        for _, text in found:
            assert f"holds {held} requests of {CONTEXT} tokens" in text
            assert "max_sequences is 8" in text and "lower max_context or max_seq" in text
    slabs = slabs_for(1, CONTEXT, 16, geometry) - 1
    ((level, text),) = logged(caplog, replace(geometry, slabs=slabs), config, CONTEXT)
    assert level == logging.WARNING and f"cannot hold one request of {CONTEXT} tokens" in text


def test_an_engine_logs_it_once_as_it_starts(caplog):
    with caplog.at_level(logging.INFO, logger="engine"):
        tiny()
        assert not [r for r in caplog.records if r.name == NAME]
        engine = tiny(arena_tokens=256)
        engine.generate(["47+36*37-15?\n\n"], SamplingParams(max_tokens=32))
    (record,) = (r for r in caplog.records if r.name == NAME)
    assert record.levelno == logging.WARNING


def test_the_guard_is_logged_as_it_begins_and_ends(caplog):
    """Not each move of its limit; a warning the first time only."""
    guard = GuardLog(256)
    with caplog.at_level(logging.INFO, logger="engine"):
        for limit in (256, 256, 100, 87, 100, 255, 256, 256, 90, 256):
            guard.look(limit)
    assert [r.levelno for r in caplog.records] == [
        logging.WARNING,
        logging.INFO,
        logging.INFO,
        logging.INFO,
    ]
    first, second = (r.getMessage() for r in caplog.records[:2])
    assert "no more than 100 sequences at once for now, max_sequences is 256" in first
    assert "up to 256 sequences" in second


def test_an_engine_says_when_its_guard_acts(caplog):
    """An arena for one request on one model, and 60 that change models at half of their steps."""
    engine = tiny(arena_tokens=256, prefix_cache=False, eager_admission=True)
    tests, rounds = task_tests("test", 60), 0
    while engine.scheduler.limit == 256 and rounds < 12:
        assert not [r for r in caplog.records if r.name == "engine.requests.guard_log"]
        params = SamplingParams(max_tokens=tests.max_tokens)
        engine.generate([p.prompt for p in tests.problems], params, "random:0.5")
        rounds += 1
    (record,) = (r for r in caplog.records if r.name == "engine.requests.guard_log")
    assert record.levelno == logging.WARNING and "max_sequences is 256" in record.getMessage()
