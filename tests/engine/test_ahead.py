"""Ticks planned ahead, on devices that take their time: the texts stay those of the schedule."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from torch import Tensor

from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine._core import RowKind
from engine.device.device_queue import Ticket
from engine.routing.policies import Call
from engine.routing.windows import Window
from tests.engine.test_lanes import ROOMS, schedule

LONG = SamplingParams(max_tokens=48)


class LateQueue:
    """A device of a lane's own. Work is done in order, but only after so many looks at it.

    Until then nothing has been read and nothing written, as on a GPU that is behind.
    """

    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._work: deque[Callable[[], None]] = deque()
        self._submitted = self._done = self.deepest = 0
        self._errors: dict[int, Exception] = {}

    def submit(self, work: Callable[[], None]) -> Ticket:
        self._work.append(work)
        self._submitted += 1
        self.deepest = max(self.deepest, len(self._work))
        return _Late(self, self._submitted, self._random.choice((0, 1, 2, 5, 20)))

    def fetch(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def release(self) -> None:
        pass

    def run_to(self, index: int) -> None:
        while self._done < index:
            self._done += 1
            try:
                self._work.popleft()()
            except Exception as error:
                self._errors[self._done] = error

    def is_done(self, index: int) -> bool:
        return self._done >= index

    def check(self, index: int) -> None:
        if index in self._errors:
            raise self._errors[index]


class _Late:
    def __init__(self, queue: LateQueue, index: int, looks: int) -> None:
        self._queue, self._index, self._looks = queue, index, looks

    def done(self) -> bool:
        self._looks -= 1
        if self._looks < 0:
            self._queue.run_to(self._index)
        return self._queue.is_done(self._index)

    def wait(self) -> None:
        self._queue.run_to(self._index)
        self._queue.check(self._index)


def delay(engine: Engine, seed: int) -> tuple[LateQueue, LateQueue]:
    """Put late devices under an engine's lanes."""
    queues = LateQueue(seed), LateQueue(seed + 1)
    for lane, queue in zip(engine.lanes, queues, strict=True):
        lane.runner.queue = queue
    return queues


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("policy", ["latency", "auto"])
@pytest.mark.parametrize("seed", range(3))
def test_text_is_that_of_the_schedule(pair, delimiters, prompts, ties, policy, room, seed):
    """Handoffs, trials, preemption, eviction and aborts in flight included."""
    engine = pair.engine(
        delimiters=delimiters,
        block_tokens=4,
        check_every=1,
        plan_ahead="both",
        lane_policy=policy,
        **ROOMS[room],
    )
    queues = delay(engine, seed)
    chance = random.Random(seed)
    windows = cycle([Window(), Window(), Window("probe", 3)])
    ids = [
        engine.submit(prompt, LONG, Call(lambda b: schedule(b.position), window=next(windows)))
        for prompt in prompts(24, seed=seed)
    ]
    doomed = {chance.randrange(5, 120): request for request in ids[::7]}
    done = []
    for tick in range(10**6):
        done += engine.step()
        if tick in doomed:
            engine.abort(doomed[tick])
        if len(done) == len(ids):
            break
    for completion in done:
        pair.check(completion, schedule, ties)
    assert [c.finish_reason for c in done].count("length") >= len(ids) - len(doomed)
    assert [queue.deepest for queue in queues] == [2, 2]
    counters = engine.scheduler.counters()
    assert all(
        0 < bad < all_ for bad, all_ in zip(counters["voided"], counters["ahead"], strict=True)
    )
    assert (counters["preemptions"] > 0) == (room == "tight")


def answers(engine: Engine, requests) -> list:
    done = [engine.submit(*request) for request in requests]
    found = {}
    while len(found) < len(done):
        found.update((c.request_id, c) for c in engine.step())
    return [found[i] for i in done]


EVERYTHING = [
    SamplingParams(max_tokens=40, temperature=0.8, top_p=0.9, seed=5, logprobs=2),
    SamplingParams(max_tokens=40, repetition_penalty=1.3, frequency_penalty=0.4, logprobs=0),
    SamplingParams(max_tokens=40, temperature=1.0, min_tokens=9, max_step_tokens=5, seed=2),
    SamplingParams(max_tokens=40, stop=("a", "3c"), logit_bias={4: 1.5}),
    SamplingParams(max_tokens=40, max_repeats=3, think_end="ab", max_think_tokens=11),
]


def test_everything_a_request_can_ask_for_is_the_same(pair, delimiters, prompts):
    """Draws, penalties that look back on a token the host has not seen, stops, forced tokens."""
    policy = Call(lambda b: schedule(b.position))
    requests = [(prompt, params, policy) for prompt in prompts(6, seed=3) for params in EVERYTHING]
    plain = answers(pair.engine(delimiters=delimiters, block_tokens=4), requests)
    engine = pair.engine(delimiters=delimiters, block_tokens=4, plan_ahead="both")
    delay(engine, 7)
    late = answers(engine, requests)
    same = [a.token_ids == b.token_ids for a, b in zip(plain, late, strict=True)]
    assert same.count(False) <= 1, "more than a tie"
    assert {a.finish_reason for a in plain} >= {"length", "stop"}
    for a, b in zip(plain, late, strict=True):
        if a.token_ids == b.token_ids:
            assert [s.model for s in a.steps] == [s.model for s in b.steps]
            assert a.finish_reason == b.finish_reason and a.text == b.text
            check_logprobs(a.logprobs, b.logprobs)


@pytest.mark.parametrize("seed", range(2))
def test_a_late_device_replays_graphs(pair, delimiters, prompts, seed):
    """Each replay spoils what the others gave, and is asked for before the last one has run.

    Requests are aborted with rows in flight; what the others write is the synchronous engine's.
    """
    policy = Call(lambda b: schedule(b.position))
    requests = [
        (prompt, params, policy) for prompt in prompts(4, seed=seed + 13) for params in EVERYTHING
    ]
    plain = answers(pair.engine(delimiters=delimiters, block_tokens=4), requests)
    engine = pair.engine(
        delimiters=delimiters, block_tokens=4, plan_ahead="both", graphs="on", check_every=1
    )
    queues = delay(engine, seed)
    ids = [engine.submit(*request) for request in requests]
    doomed, aborted, done = set(ids[::3]), 0, {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.step()}
        for request in sorted(doomed - done.keys()):
            sequence = engine.scheduler.sequence(request)
            if any(sequence.in_flight) and len(sequence.tokens) > sequence.prompt_length + 4:
                engine.abort(request)
                doomed.discard(request)
                aborted += 1
    for request, sync in zip(ids, plain, strict=True):
        late = done[request]
        if late.finish_reason == "abort":
            assert late.token_ids == sync.token_ids[: len(late.token_ids)]
            continue
        assert late.token_ids == sync.token_ids and late.finish_reason == sync.finish_reason
        assert [s.model for s in late.steps] == [s.model for s in sync.steps]
        check_logprobs(sync.logprobs, late.logprobs)
    assert aborted > 2 and [queue.deepest for queue in queues] == [2, 2]
    for counts in engine.graph_counts.values():
        assert counts.replays > counts.captures > 3 and counts.captures == counts.misses


def check_logprobs(plain, late) -> None:
    assert (plain is None) == (late is None)
    for a, b in zip(plain or (), late or (), strict=True):
        assert a.logprob == (None if b.logprob is None else pytest.approx(b.logprob, abs=1e-3))


def test_a_handoff_costs_one_token_more(pair, delimiters, prompts):
    """What was drawn for a step that the other model then wrote is booked, and nothing else is."""
    policy = Call(lambda b: "small" if b.step % 2 == 0 else "large")
    requests = [(prompt, LONG, policy) for prompt in prompts(8, seed=6)]
    books = []
    for ahead in ("off", "both"):
        engine = pair.engine(delimiters=delimiters, prefix_cache=False, plan_ahead=ahead)
        if ahead != "off":
            delay(engine, 3)
        books.append(answers(engine, requests))
    for sync, late in zip(*books, strict=True):
        assert sync.token_ids == late.token_ids
        handoffs = sum(step.model == "large" for step in sync.steps)
        extra = late.usage.rows[:, RowKind.discarded, 0] - sync.usage.rows[:, RowKind.discarded, 0]
        assert 0 <= extra[0] <= 2 * handoffs + 1  # its own, and that of the end
        kept = [kind for kind in RowKind if kind != RowKind.discarded]
        assert (late.usage.rows[:, kept, 0] == sync.usage.rows[:, kept, 0]).all()


def test_what_fails_on_the_device_ends_its_requests_only(pair, delimiters, prompts):
    engine = pair.engine(delimiters=delimiters, plan_ahead="both")
    delay(engine, 1)
    first = [engine.submit(p, LONG, "small") for p in prompts(3, seed=8)]
    decoder, broken = engine.lanes[0].runner.decoder, {"left": 1}
    statistics = decoder.signals

    def fail_once(*args):
        if broken["left"]:
            broken["left"] -= 1
            raise RuntimeError("the device is gone")
        return statistics(*args)

    decoder.signals = fail_once
    done = []
    with pytest.raises(RuntimeError, match="the device is gone"):
        while len(done) < 3:
            done += engine.step()
    while len(done) < 3:
        done += engine.step()
    assert {c.request_id: c.finish_reason for c in done} == dict.fromkeys(first, "error")
    (after,) = engine.generate(prompts(1, seed=9), LONG, "small")
    assert after.finish_reason == "length"


def test_bad_input():
    with pytest.raises(
        SteerError, match="plan_ahead must be one of auto, off, small, both; got 'yes'"
    ):
        EngineConfig(plan_ahead="yes")
