"""Lane policies and reading along change when things are computed, never what is written."""

from __future__ import annotations

import gc
import threading
import zlib
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.tasks import arithmetic
from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine._core import RowKind
from engine.accounting.ledger import Usage
from engine.config import LANE_POLICIES
from engine.routing.policies import Call
from engine.routing.windows import Window

GREEDY = SamplingParams(max_tokens=48)
PARAMS = SamplingParams(max_tokens=80)
PROMPTS = [p.prompt for p in arithmetic.problems("test", 32, seed=9)]
WAYS = {
    **{name: {"lane_policy": name} for name in LANE_POLICIES},
    "gather 2": {"lane_policy": "throughput", "gather": 2, "hold_ticks": 3},
    "read along": {"read_along": 1, "eager_backlog": 1},
    "read along, gathered": {"lane_policy": "throughput", "read_along": 2, "eager_backlog": 7},
}
ROOMS = {
    "roomy": {"arena_tokens": 8192, "prefix_cache": False},
    "cached": {"arena_tokens": 8192},
    # What a forecast would keep off the arena is what this is about.
    "tight": {
        "arena_tokens": 192,
        "max_context": 96,
        "max_sequences": 16,
        "max_tick_tokens": 24,
        "eager_admission": True,
    },
}


def schedule(position: int) -> str:
    return "large" if zlib.crc32(str(position).encode()) % 5 < 2 else "small"


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("way", WAYS)
def test_text_is_that_of_the_schedule(pair, delimiters, prompts, ties, way, room):
    """Prefix hits, preemption, eviction, lending, trials and aborted neighbours included."""
    engine = pair.engine(
        delimiters=delimiters, block_tokens=4, check_every=1, **WAYS[way], **ROOMS[room]
    )
    shared = prompts(24, seed=21)
    shared = [*shared, *(p + p[:3] for p in shared[:8] if len(p) < 20)]
    windows = cycle([Window(), Window(), Window("probe", 3)])
    ids = [
        engine.submit(prompt, GREEDY, Call(lambda b: schedule(b.position), window=next(windows)))
        for prompt in shared
    ]
    doomed = ids[::7]
    done = []
    for tick in range(10**6):
        done += engine.step()
        if tick == 20:
            for request in doomed:
                engine.abort(request)
        if len(done) == len(ids):
            break
    for completion in done:
        pair.check(completion, schedule, ties)
    assert [c.finish_reason for c in done].count("length") >= len(ids) - len(doomed)
    counters = engine.scheduler.counters()
    assert (sum(counters["background"]) > 0) == ("read" in way)
    assert (counters["preemptions"] > 0) == (room == "tight")
    again = sum((c.usage.rows[:, RowKind.recompute, 0] for c in done), np.zeros(2))
    assert again.tolist() == counters["recomputed"]


def test_the_small_model_reads_along():
    """What it has read while the large one wrote, no decision waits for."""
    waits, rows = [], []
    for read_along in (0, 4, 1):
        engine = Engine("tiny", config=EngineConfig(prefix_cache=False, read_along=read_along))
        done = engine.generate(PROMPTS, PARAMS, "threshold:max_prob:0.9")
        usage = sum((c.usage for c in done), Usage())
        waits.append(usage.decision_wait)
        rows.append(usage.rows[0, :, 0].sum())
    # Its lane comes first in a round: a step's last two tokens are always still to read.
    steps = sum(s.model == "large" for c in done for s in c.steps[:-1])
    assert waits[0] > waits[1] > waits[2] >= steps
    # The same work at another time, but for what it reads of a step that ends the answer.
    assert rows[0] <= rows[1] <= rows[2] < 1.05 * rows[0]


def test_the_large_model_catches_up_early():
    """With a backlog of one it has nearly all of the prefix when it is asked."""
    seen = {}
    for backlog in (0, 1):
        found = seen.setdefault(backlog, [])

        def policy(boundary, found=found):
            found.append(boundary.catch_up)
            return "large" if boundary.step == 3 else "small"

        config = EngineConfig(prefix_cache=False, eager_backlog=backlog)
        engine = Engine("tiny", config=config)
        done = engine.generate(PROMPTS, PARAMS, Call(policy))
        background = engine.scheduler.counters()["background"]
        assert (background[1] > 0) == (backlog > 0) and background[0] == 0
    assert max(seen[1]) < 30 < max(seen[0])  # the prompt's own backlog at the first boundary
    assert all(c.usage.count("large", "recompute") == 0 for c in done)


def test_large_steps_gather():
    """The same text in fewer, fuller large ticks."""
    ticks, texts = {}, {}
    for policy in ("latency", "throughput"):
        config = EngineConfig(prefix_cache=False, lane_policy=policy)
        engine = Engine("tiny", config=config)
        texts[policy] = [c.text for c in engine.generate(PROMPTS, PARAMS, "steer")]
        ticks[policy] = engine.scheduler.counters()["ticks"][1]
    assert texts["throughput"] == texts["latency"]
    assert ticks["throughput"] < 0.7 * ticks["latency"]


def test_unknown_lane_policies_are_refused():
    with pytest.raises(SteerError, match="unknown lane policy 'fast'; known: latency, weighted"):
        EngineConfig(lane_policy="fast")
    with pytest.raises(SteerError, match="hold_ticks must be at least 1"):
        EngineConfig(hold_ticks=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gather": 2**40}, "gather must be a whole number below"),
        ({"prefix_cache": "no"}, "prefix_cache must be true or false"),
        ({"delimiters": 5}, "delimiters must be one or more strings"),
        ({"delimiters": "ab"}, "delimiters must be one or more strings"),
    ],
)
def test_bad_settings(changes: dict, message: str):
    with pytest.raises(SteerError, match=message):
        EngineConfig(**changes)


@pytest.mark.parametrize("policy", [None, 3, SamplingParams])
def test_what_is_no_policy(policy):
    with pytest.raises(SteerError, match="a policy must be a name, a Policy or a function"):
        Engine("tiny").generate(PROMPTS, PARAMS, policy)


def test_two_engines_under_load():
    """Two threads, each with an engine of its own, write what one alone writes."""
    expected = [c.text for c in Engine("tiny").generate(PROMPTS, PARAMS, "steer")]
    found: dict[str, list[str]] = {}

    def serve(name: str, config: EngineConfig) -> None:
        engine = Engine("tiny", config=config)
        for _ in range(3):
            found[name] = [c.text for c in engine.generate(PROMPTS, PARAMS, "steer")]

    configs = {
        "tight": EngineConfig(arena_tokens=512, check_every=1),
        "gathered": EngineConfig(lane_policy="throughput", read_along=1),
    }
    threads = [threading.Thread(target=serve, args=item) for item in configs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"tight": expected, "gathered": expected}


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def tensor_bytes() -> int:
    """Of all tensors that Python holds."""
    gc.collect()
    return sum(t.nbytes for t in gc.get_objects() if type(t) is torch.Tensor)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat_over_ten_thousand_requests():
    """The arena is the only store of KV, and nothing is kept of a finished request."""
    engine = Engine("tiny", config=EngineConfig(arena_tokens=4096, max_sequences=128))
    held = tensor_bytes()
    address = engine.arena.rows(engine.shapes[0]).data_ptr()
    prompts = list(islice(cycle(PROMPTS), 2000))
    params = SamplingParams(max_tokens=6)
    engine.generate(prompts, params, "threshold:max_prob:0.9")  # buffers reach their size
    gc.collect()
    before = resident_bytes()
    for _ in range(4):
        engine.generate(prompts, params, "threshold:max_prob:0.9")
    gc.collect()
    assert resident_bytes() - before < 16 * 2**20
    assert engine.scheduler.counters()["admitted"] == 10_000
    assert engine.arena.rows(engine.shapes[0]).data_ptr() == address
    assert engine.arena.bytes == engine.arena.geometry.slabs * engine.arena.geometry.slab_bytes
    # Nor does a pass leave tensors behind, but for the last one's results: a few numbers a row.
    assert tensor_bytes() - held < 64 * 2**10
