"""KV of the large model that waits in host memory: the texts stay, and less is computed again."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine.accounting.ledger import Usage
from engine.device.host_offload import PIECE_BYTES, HostKVStore
from engine.device.kv_arena import ArenaGeometry, KVArena
from engine.routing.policies import Call
from engine.routing.windows import Window
from tests.engine.test_ahead import delay
from tests.engine.test_lanes import ROOMS, schedule

LONG = SamplingParams(max_tokens=48)
BLOCK = 4
TIGHT = {"block_tokens": BLOCK, "check_every": 1, **ROOMS["tight"]}


def run(engine: Engine, prompts: list[list[int]], doomed: int = 0) -> list:
    """Completions in order; the first ``doomed`` requests are ended on the way."""
    windows = cycle([Window(), Window(), Window("probe", 3)])
    ids = [
        engine.submit(prompt, LONG, Call(lambda b: schedule(b.position), window=next(windows)))
        for prompt in prompts
    ]
    done = {}
    for tick in range(10**6):
        done.update((c.request_id, c) for c in engine.step())
        if doomed and tick == 60:
            for request in ids[:doomed]:
                engine.abort(request)
        if len(done) == len(ids):
            break
    return [done[i] for i in ids]


@pytest.mark.parametrize("host", [64, 4096])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("graphs", ["off", "on"])
def test_text_is_that_of_the_schedule(pair, delimiters, prompts, ties, graphs, late, host):
    """Plans ahead, devices that take their time, graphs, aborts in flight; a tier that overflows
    and one that does not."""
    engine = pair.engine(
        delimiters=delimiters,
        host_kv_tokens=host,
        graphs=graphs,
        plan_ahead="both" if late else "off",
        **TIGHT,
    )
    if late:
        delay(engine, 5)
    done = run(engine, prompts(24, seed=3), doomed=4)
    for completion in done:
        pair.check(completion, schedule, ties)
    counters = engine.scheduler.counters()
    assert counters["saved"] > 0
    assert counters["restored"] > 0
    assert sum(c.usage.restored for c in done) == counters["restored"] * BLOCK
    assert engine.scheduler.host_used <= -(-host // BLOCK)


def test_what_comes_back_is_not_computed_again(pair, delimiters, prompts):
    books = []
    for host in (0, 4096):
        engine = pair.engine(delimiters=delimiters, host_kv_tokens=host, **TIGHT)
        done = run(engine, prompts(24, seed=11))
        usage = sum((c.usage for c in done), Usage())
        books.append(([c.token_ids for c in done], usage, engine.scheduler.counters()))
    (without, before, lost), (texts, after, kept) = books
    assert sum(a != b for a, b in zip(without, texts, strict=True)) <= 1, "more than a tie"
    assert before.restored == 0 < after.restored
    assert kept["recomputed"][1] == after.count("large", "recompute")
    assert kept["recomputed"][1] < lost["recomputed"][1] / 2


def test_a_launch_that_is_repeated_saves_nothing_twice(pair, delimiters, prompts, ties):
    """The first time has written over the blocks whose room it took."""
    engine = pair.engine(delimiters=delimiters, host_kv_tokens=4096, **TIGHT)
    left = {"small": 1, "large": 1}
    for role, lane in zip(left, engine.lanes, strict=True):
        runner, statistics = lane.runner, lane.runner.decoder.signals
        buffers = engine.scheduler.buffers(runner.model)

        def fail_once(*args, role=role, buffers=buffers, statistics=statistics):
            found = statistics(*args)
            if left[role] and buffers.saved:
                left[role] -= 1
                raise RuntimeError("cut short")
            return found

        runner.decoder.signals = fail_once
    step = engine.step

    def patient_step():
        try:
            return step()
        except RuntimeError as error:
            assert str(error) == "cut short"
            return []

    engine.step = patient_step
    for completion in run(engine, prompts(24, seed=4)):
        pair.check(completion, schedule, ties)
        assert completion.finish_reason == "length"
    assert left == {"small": 0, "large": 0}
    assert engine.scheduler.counters()["restored"] > 0


@pytest.mark.parametrize("piece", [1, 47, PIECE_BYTES])  # a slot or all slots at a time
def test_a_slot_holds_what_its_block_held(piece: int):
    geometry = ArenaGeometry(slabs=3, slab_bytes=64, block_bytes=(12, 24))
    arena = KVArena(geometry, torch.float32)
    store = HostKVStore(arena, 2, piece)
    assert store.bytes == 48
    for block in range(6):  # two in a slab, which they do not fill
        arena.block(1, block).fill_(block)
    store.offload(torch.tensor([[3, 0], [4, 1]]).numpy())
    assert bytes(arena.block(1, 3).tolist()) == bytes([3] * 24)
    arena.block(1, 3).zero_()
    store.restore(torch.tensor([[0, 5], [1, 3]]).numpy())
    assert [set(arena.block(1, block).tolist()) for block in range(6)] == [
        {0},
        {1},
        {2},
        {4},
        {4},
        {3},
    ]


def test_the_ledger_keeps_what_came_back():
    counted = Usage(restored=12) + Usage(restored=3)
    assert Usage.from_json(counted.to_json()).restored == 15
    older = {name: value for name, value in counted.to_json().items() if name != "restored"}
    assert Usage.from_json(older).restored == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host_kv_tokens": 64, "prefix_cache": False}, "host_kv_tokens needs prefix_cache"),
        ({"host_kv_tokens": -1}, "host_kv_tokens must be 0 or more, got -1"),
        ({"host_kv_tokens": 2**40}, "host_kv_tokens must be at most"),
        ({"host_kv_tokens": 1.5}, "host_kv_tokens must be a whole number"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SteerError, match=message):
        EngineConfig(**settings)


def test_models_on_cards_of_their_own_have_no_tier():
    geometry = ArenaGeometry(slabs=1, slab_bytes=64, block_bytes=(12, 24))
    devices = torch.device("cpu"), torch.device("meta")
    with pytest.raises(SteerError, match="host_kv_tokens needs both models on one device"):
        HostKVStore(KVArena(geometry, torch.float32, devices), 2)


def test_no_memory_for_the_tier():
    geometry = ArenaGeometry(slabs=1, slab_bytes=64, block_bytes=(12, 2**40))
    arena = KVArena(geometry, torch.float32)
    with pytest.raises(SteerError, match=r"no host memory for .* GiB of KV; lower host_kv_tokens"):
        HostKVStore(arena, 2**20)
