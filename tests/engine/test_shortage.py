"""Memory that runs out in the middle of a run, in every way in which it is reported."""

from __future__ import annotations

import itertools

import pytest
import torch

from engine import SamplingParams
from engine.device.device_queue import HostQueue
from engine.device.graphs import Graphs, HostRecorder
from engine.out_of_memory import is_out_of_memory
from engine.routing.policies import Call
from tests.engine.test_ahead import EVERYTHING, LateQueue, answers
from tests.engine.test_lanes import schedule

SHORTAGES = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "cublas": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "pinned": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported late"),
    "host": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8."),
    "python": MemoryError(),
}
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
    RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448"),
    ValueError("out of memory"),
    None,
]
POLICY = Call(lambda b: schedule(b.position))


def test_what_counts_as_a_shortage():
    assert all(map(is_out_of_memory, SHORTAGES.values())) and not any(map(is_out_of_memory, OTHERS))


class ShortQueue(HostQueue):
    """A lane's queue without room for some of its work: ``fails`` says of each call whether."""

    def __init__(self, error, submits=(), fetches=()):
        self.error, self.released = error, 0
        self._submits, self._fetches = iter(submits), iter(fetches)

    def submit(self, work):
        if next(self._submits, False):
            raise self.error
        return super().submit(work)

    def fetch(self, tensor):
        if next(self._fetches, False):
            raise self.error
        return super().fetch(tensor)

    def release(self):
        self.released += 1


def every(count):
    """False but for each ``count``-th."""
    return (i % count == count - 1 for i in itertools.count())


def now_and_then():
    """At any of the up to four copies that a tick fetches, but never twice in one tick."""
    for gap in itertools.cycle((7, 8, 6, 9, 11)):
        yield from [False] * gap
        yield True


@pytest.mark.parametrize("kind", SHORTAGES)
def test_a_tick_is_tried_again(pair, delimiters, prompts, kind):
    """Whatever it had done: draws that it has kept already, and its successor looks up, too."""
    requests = [(p, params, POLICY) for p in prompts(1, seed=41) for params in EVERYTHING]
    config = {"delimiters": delimiters, "block_tokens": 4, "plan_ahead": "both"}
    expected = answers(pair.engine(**config), requests)
    engine, queues = pair.engine(**config, graphs="on", check_every=1), []
    for lane, submits, fetches in zip(
        engine.lanes, (every(7), ()), ((), now_and_then()), strict=True
    ):
        lane.runner.queue = ShortQueue(SHORTAGES[kind], submits, fetches)
        queues.append(lane.runner.queue)
    found = answers(engine, requests)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert [c.logprobs for c in found] == [c.logprobs for c in expected]
    assert all(queue.released > 2 for queue in queues)


@pytest.mark.parametrize("kind", SHORTAGES)
@pytest.mark.parametrize("late", [False, True])
def test_for_good(pair, delimiters, prompts, kind, late):
    """Requests of that tick end with a reason; those of the other lane, and later ones, go on."""
    engine = pair.engine(delimiters=delimiters, check_every=1)
    params, batch = SamplingParams(max_tokens=12), prompts(4, seed=42)
    calm, hit = engine.lanes[0].runner, engine.lanes[1].runner
    expected = [c.token_ids for c in engine.generate(batch, params, "large")]
    queue, statistics = hit.queue, hit.decoder.signals

    def fail(*_):
        raise SHORTAGES[kind]

    hit.queue = LateQueue(1) if late else ShortQueue(SHORTAGES[kind], itertools.repeat(True))
    hit.decoder.signals = fail
    ids = [engine.submit(p, params, name) for p in batch for name in ("small", "large")]
    done = {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.step()}
    assert [done[i].finish_reason for i in ids] == ["length", "error"] * 4
    assert all(len(done[i].token_ids) == 12 for i in ids[::2]) and calm.queue is not hit.queue
    hit.queue, hit.decoder.signals = queue, statistics
    assert [c.token_ids for c in engine.generate(batch, params, "large")] == expected


def test_what_is_no_shortage_is_heard_of(pair, prompts):
    engine = pair.engine()
    engine.lanes[0].runner.queue = ShortQueue(OTHERS[0], itertools.repeat(True))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.generate(prompts(2, seed=43), SamplingParams(max_tokens=4), "small")


class Watched(ShortQueue):
    """Fails now and then, and expects an idle device when it is asked again."""

    def __init__(self, error, other):
        super().__init__(error)
        self.other, self.turns, self.idle, self.busy = other, every(4), [], []
        self.failed = False

    def submit(self, work):
        if self.failed:
            self.idle.append(not self.other.left)
        self.failed = not self.failed and next(self.turns)
        if self.failed:
            self.busy.append(bool(self.other.left))
            raise self.error
        return super().submit(work)


class Deep(LateQueue):
    @property
    def left(self):
        return len(self._work)


def test_the_other_lane_lands_first(pair, delimiters, prompts):
    """What its tick holds on to may be all that is missing."""
    engine = pair.engine(delimiters=delimiters, check_every=1)
    other = engine.lanes[1].runner.queue = Deep(3)
    queue = engine.lanes[0].runner.queue = Watched(SHORTAGES["cublas"], other)
    batch, params = prompts(8, seed=44), SamplingParams(max_tokens=20)
    for _ in range(2):
        done = engine.generate(batch, params, POLICY)
        assert {c.finish_reason for c in done} == {"length"}
    assert len(queue.idle) > 5 and all(queue.idle) and any(queue.busy)


class Stingy(HostRecorder):
    """No room to record the first graph, nor to start the second when it is asked for."""

    def __init__(self, error):
        super().__init__()
        self.error, self.recorded = error, 0

    def record(self, work):
        self.recorded += 1
        if self.recorded == 1:
            try:
                raise self.error
            except (RuntimeError, MemoryError):
                raise RuntimeError("failed by an earlier error during capture") from None
        replay, first = super().record(work), self.recorded == 2

        def start():
            if first:
                raise self.error
            return replay()

        return start


@pytest.mark.parametrize("kind", [kind for kind in SHORTAGES if kind != "python"])
def test_graphs_without_room_are_given_up(pair, delimiters, prompts, kind):
    batch, params = prompts(6, seed=45), SamplingParams(max_tokens=16)
    engine = pair.engine(delimiters=delimiters, graphs="on")
    expected = [c.token_ids for c in engine.generate(batch, params, POLICY)]
    for lane in engine.lanes:
        lane.runner.graphs = Graphs(Stingy(SHORTAGES[kind]))
    assert [c.token_ids for c in engine.generate(batch, params, POLICY)] == expected
    counts = list(engine.graph_counts.values())
    assert all(c.refused == 2 and c.captures == c.misses - 1 for c in counts)
