"""Text under a forced schedule of switches is what the named models write from scratch."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from engine import SamplingParams
from engine._core import NOBODY, SMALL, EventKind, Finish, Phase
from engine.requests.request_state import RequestState
from engine.routing.policies import Always, Call

ROLES = ("small", "large")
GREEDY = SamplingParams(max_tokens=48)


def drawn(seed, share=0.5):
    """A schedule: who writes the step that opens at a position."""

    def schedule(position):
        return "large" if zlib.crc32(f"{seed}/{position}".encode()) < share * 2**32 else "small"

    return schedule


def call(schedule, reads):
    """The schedule as a policy."""
    return Call(lambda boundary: schedule(boundary.position), reads=reads)


def drive(engine, ids, between=lambda alive: None):
    """Step until all are finished, disturbing those alive between steps; completions by id."""
    done = {}
    while len(done) < len(ids):
        done |= {c.request_id: c for c in engine.step()}
        between([i for i in ids if i not in done])
        engine.scheduler.check_integrity()
    assert engine.scheduler.pool.live(0) == engine.scheduler.pool.live(1) == 0
    return done


@pytest.fixture
def engine(pair, delimiters):
    """Room for everything, proofs after each tick."""
    return pair.engine(delimiters=delimiters, block_tokens=4, arena_tokens=8192, check_every=1)


@pytest.fixture
def tight(pair, delimiters):
    """Room for little more than two sequences of 90 tokens on the large model."""
    return pair.engine(
        delimiters=delimiters,
        block_tokens=4,
        arena_tokens=192,
        eager_admission=True,
        max_context=96,
        max_sequences=16,
        max_tick_tokens=24,
        check_every=1,
    )


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_alone_token_by_token(pair, engine, prompts, same_text, ties, reads, seed):
    """Each token recomputed from scratch by the model whose turn it is."""
    schedule = drawn(seed)
    (prompt,) = prompts(1, seed=seed)
    (done,) = engine.generate([prompt], GREEDY, call(schedule, reads))
    expected, leads = pair.write(prompt, GREEDY.max_tokens, schedule)
    same_text(done.token_ids, expected, leads, ties)
    pair.check(done, schedule, ties)
    assert {s.model for s in done.steps} == set(ROLES)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_in_a_batch_of_64(pair, engine, prompts, ties, reads, share):
    """Ragged prompts at once, each text as if it were alone."""
    schedule = drawn(11, share)
    done = engine.generate(prompts(64, seed=11), GREEDY, call(schedule, reads))
    for completion in done:
        pair.check(completion, schedule, ties)
    switches = sum(a.model != b.model for c in done for a, b in pairwise(c.steps))
    assert switches > 50


def test_signals_are_there_where_the_policy_reads(engine, prompts):
    """A reading policy sees numbers at every boundary, another one none."""
    for reads in (False, True):
        for done in engine.generate(prompts(8, seed=1), GREEDY, call(drawn(1), reads)):
            assert all((s.signals is not None) == reads for s in done.steps)


@pytest.mark.parametrize("reads", [False, True])
def test_boundaries_tell_the_truth(engine, prompts, reads):
    """Position, step, previous writer and catch-up are those of the finished text."""
    seen = {}

    def policy(boundary):
        seen.setdefault(boundary.request, []).append(boundary)
        return drawn(2)(boundary.position)

    for done in engine.generate(prompts(8, seed=2), GREEDY, Call(policy, reads=reads)):
        read = 0  # by the large model: it never reads the token that it wrote last
        for step, boundary in zip(done.steps, seen[done.request_id], strict=True):
            previous = done.steps[step.index - 1].model if step.index else None
            assert (boundary.step, boundary.position) == (step.index, step.position)
            assert (boundary.previous, boundary.catch_up) == (previous, step.position - read)
            if step.model == "large":
                read = step.position + len(step.token_ids) - 1


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_with_truncations(pair, engine, prompts, ties, reads, seed):
    """Tokens taken back at random, to anywhere down to the prompt, are written again the same."""
    schedule, rng, scheduler = drawn(seed), random.Random(seed), engine.scheduler
    policy, batch = call(schedule, reads), prompts(12, seed=seed + 20)
    ids = [engine.submit(p, GREEDY, policy, settle_at_once=False) for p in batch]
    taken = dict.fromkeys(ids, 0)

    def truncate(alive):
        for request in [i for i in alive if taken[i] < 5 and rng.random() < 0.1]:
            sequence = scheduler.sequence(request)
            opened = [start for start, _ in sequence.steps] + [sequence.prompt_length]
            anywhere = rng.randint(sequence.prompt_length, sequence.length)
            scheduler.truncate(request, rng.choice([anywhere, *opened]))
            taken[request] += 1

    done = drive(engine, ids, truncate)
    for completion in done.values():
        pair.check(completion, schedule, ties)
        assert len(completion.token_ids) == GREEDY.max_tokens
    assert sum(taken.values()) > 30
    assert sum(c.usage.count(r, "discarded") for c in done.values() for r in ROLES) > 12 * 20


@pytest.mark.parametrize("reads", [False, True])
def test_with_preemptions(pair, engine, prompts, ties, reads):
    """All KV of a sequence lost at random moments."""
    schedule, rng, scheduler = drawn(3), random.Random(3), engine.scheduler
    ids = [engine.submit(p, GREEDY, call(schedule, reads)) for p in prompts(16, seed=3)]

    def preempt(alive):
        for request in [i for i in alive if rng.random() < 0.05]:
            scheduler.preempt(request)

    done = drive(engine, ids, preempt).values()
    assert scheduler.counters()["preemptions"] > 10
    for completion in done:
        pair.check(completion, schedule, ties)
    recomputed = [sum(c.usage.count(r, "recompute") for c in done) for r in ROLES]
    assert all(n > 0 for n in recomputed)


@pytest.mark.parametrize("reads", [False, True])
def test_with_aborted_neighbours(pair, engine, prompts, ties, reads):
    """What is left of the aborted ones and all of the others are as they would be alone."""
    schedule, rng = drawn(4), random.Random(4)
    ids = [engine.submit(p, GREEDY, call(schedule, reads)) for p in prompts(24, seed=4)]

    def abort(alive):
        for request in [i for i in alive if i in ids[::2] and rng.random() < 0.04]:
            engine.abort(request)

    done = drive(engine, ids, abort)
    reasons = [done[i].finish_reason for i in ids]
    assert reasons.count("abort") > 5
    assert set(reasons[1::2]) == {"length"}
    for completion in done.values():
        pair.check(completion, schedule, ties)


@pytest.mark.parametrize("reads", [False, True])
def test_under_memory_pressure(pair, tight, prompts, ties, reads):
    """Slabs change hands and KV is given up and computed again; the text does not notice."""
    schedule = drawn(5)
    done = tight.generate(prompts(16, seed=5), GREEDY, call(schedule, reads))
    for completion in done:
        pair.check(completion, schedule, ties)
    counters = tight.scheduler.counters()
    assert counters["lent_slabs"] > 0
    assert counters["preemptions"] > 0
    assert all(lost > 0 for lost in counters["lost_rows"])
    recomputed = [sum(c.usage.count(r, "recompute") for c in done) for r in ROLES]
    assert all(n > 0 for n in recomputed)


def test_one_sequence_that_fills_the_arena(pair, delimiters, prompts, ties):
    """The smallest arena that admits a request serves it, and those after it."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4, arena_tokens=80, check_every=1)
    schedule = drawn(6)
    done = engine.generate(prompts(3, seed=6, longest=32), GREEDY, call(schedule, True))
    for completion in done:
        pair.check(completion, schedule, ties)


def overlapped(engine, schedule, requests, reader, disturb, rng):
    """Lanes in flight over each other, run as late and retired in any order, disturbed between."""
    scheduler, finished, flying = engine.scheduler, {}, set()
    ids = [scheduler.add(p, max_tokens=48, reader=reader, settle_at_once=False) for p in requests]
    draws = {i: RequestState(GREEDY, 0, Always("small")) for i in ids}

    def runs(request):
        return request not in finished and scheduler.sequence(request).phase != Phase.finished

    for _ in range(5000):
        route_all(scheduler, schedule, finished)
        if len(finished) == len(ids):
            break
        disturb([i for i in ids if runs(i)])
        for lane in rng.sample(range(2), 2):
            if lane not in flying and scheduler.plan(lane):
                flying.add(lane)
        disturb([i for i in ids if runs(i)])
        for lane in rng.sample(sorted(flying), rng.randint(min(1, len(flying)), len(flying))):
            ran = engine.lanes[lane].runner.execute(scheduler.buffers(lane), draws)
            scheduler.commit(lane, ran.tokens)
            scheduler.check_integrity()
            flying.remove(lane)
    assert len(finished) == len(ids), "nothing moves"
    return finished


def route_all(scheduler, schedule, finished):
    """Answer what the core asks and collect what it finished."""
    for kind, request, _ in scheduler.take_events():
        sequence = scheduler.sequence(request)
        if kind == EventKind.finished:
            finished[request] = sequence
        elif sequence.awaits_route:
            scheduler.route(request, ROLES.index(schedule(sequence.length)))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("reader", [NOBODY, SMALL])
@pytest.mark.parametrize("room", ["engine", "tight"])
def test_disturbed_in_flight(pair, prompts, ties, request, room, reader, seed):
    """Truncation, preemption and abort of batches in flight, with and without room."""
    engine, schedule, rng = request.getfixturevalue(room), drawn(seed + 7), random.Random(seed)
    scheduler, left = engine.scheduler, [60]

    def disturb(alive):
        for target in [i for i in alive if left[0] and rng.random() < 0.05]:
            left[0] -= 1
            sequence = scheduler.sequence(target)
            what = rng.choice(["truncate", "truncate", "preempt", "preempt", "abort"])
            if what == "truncate":
                scheduler.truncate(target, rng.randint(sequence.prompt_length, sequence.length))
            elif what == "preempt" or target % 3:
                scheduler.preempt(target)
            else:
                scheduler.abort(target)
            scheduler.check_integrity()

    batch = prompts(12, seed=seed + 30)
    finished = overlapped(engine, schedule, batch, reader, disturb, rng)
    for sequence in finished.values():
        pair.check_tokens(sequence.tokens.tolist(), sequence.prompt_length, schedule, ties)
        cut = len(sequence.tokens) < sequence.prompt_length + 48
        assert sequence.finish == (Finish.abort if cut else Finish.length)


def test_unusable_logits_end_one_request(pair, delimiters, prompts, ties):
    """A NaN in one sequence ends it with an error; its neighbours write on untouched."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4, arena_tokens=2048, check_every=1)
    schedule, batch = drawn(9), prompts(16, seed=9)
    ids = [engine.submit(p, GREEDY, call(schedule, True)) for p in batch]
    engine.step()
    poisoned, plan = ids[3], engine.scheduler.buffers(0)
    block = plan.blocks[plan.ids.tolist().index(poisoned), :1].tolist()
    first = engine.arena.layout(engine.shapes[0], 0, 4).first_row(torch.tensor(block))
    engine.arena.rows(engine.shapes[0])[first] = float("nan")
    done = drive(engine, ids)
    assert [i for i in ids if done[i].finish_reason == "error"] == [poisoned]
    for request in ids:
        if request != poisoned:
            pair.check(done[request], schedule, ties)


def test_an_interrupted_run_leaves_a_clean_engine(pair, engine, prompts, ties):
    """An exception in a policy ends all requests; the next run is as good as the first."""
    calls = []

    def failing(boundary):
        calls.append(boundary)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return drawn(8)(boundary.position)

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts(16, seed=8), GREEDY, Call(failing, reads=True))
    engine.scheduler.check_integrity()
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    for completion in engine.generate(prompts(16, seed=8), GREEDY, call(drawn(8), True)):
        pair.check(completion, drawn(8), ties)


def test_two_engines_share_nothing(pair, delimiters, prompts, ties):
    """Steps of two engines in one process interleaved."""
    schedule = drawn(10)
    engines = [
        pair.engine(delimiters=delimiters, block_tokens=n, arena_tokens=2048, check_every=1)
        for n in (4, 8)
    ]
    for engine in engines:
        for prompt in prompts(6, seed=10):
            engine.submit(prompt, GREEDY, call(schedule, False))
    done = []
    while len(done) < 12:
        for engine in engines:
            if engine.scheduler.running + engine.scheduler.waiting:
                done += engine.step()
    for completion in done:
        pair.check(completion, schedule, ties)
    assert np.unique([c.request_id for c in done], return_counts=True)[1].tolist() == [2] * 6
