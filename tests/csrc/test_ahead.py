"""Plans that are made while the last one is in flight: what they hold, and what becomes of it.

The random runs are those of test_random.py with a device behind each lane: what is planned is
executed later, in order, with random delays, and a token that the host does not know yet comes from
the tick before. Everything that a tick reads must be there when it runs, void rows included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest

from engine._core import Plan, Scheduler, Sequence

from .test_random import (
    BLOCK_TOKENS,
    LARGE,
    RUNNING,
    SMALL,
    Driver,
    digest,
    virtual_model,
)

DISCARDED = 3
OPERATIONS = 4000


@dataclass
class Flight:
    """A plan as it was made, and what the device has drawn once it has run."""

    plan: Plan
    texts: list[list[int]]  # digests of what the host knew of each sequence
    before: Flight | None  # in flight when this was planned
    drawn: list[int] | None = None


class Device(Driver):
    """Both lanes plan up to one tick ahead and execute when they like."""

    def __init__(self, seed: int, prefix_cache: bool, **changes: object) -> None:
        super().__init__(seed, prefix_cache, **changes)
        self.rings = [[self.scheduler.buffers(lane, i) for i in range(2)] for lane in (0, 1)]
        self.flights: list[list[Flight]] = [[], []]
        self.eager = 0.6  # how often a lane plans ahead where it could

    def lane(self, lane: int) -> int:
        """One of: plan, execute what comes next, commit. 0 if there was nothing to do."""
        flights = self.flights[lane]
        if not flights or (len(flights) < 2 and self.random.random() < self.eager):
            if count := self.plan(lane):
                return count
            if not flights:
                return 0
        waiting = next((f for f in flights if f.drawn is None), None)
        if waiting and (waiting is flights[0] or self.random.random() < 0.5):
            self.execute(lane, waiting)
        else:
            self.commit(lane)
        return 1

    def plan(self, lane: int) -> int:
        flights = self.flights[lane]
        plan = self.rings[lane][self.rings[lane][0].in_flight]
        count = self.scheduler.plan(lane, ahead=True)
        assert count == plan.sequences
        self.seen["short"] += plan.short_of_memory
        if count:
            ids = plan.ids[:count].tolist()
            assert len(set(ids)) == count
            assert plan.rows <= self.budget
            before = flights[-1] if flights else None
            sequences = [self.scheduler.sequence(id) for id in ids]
            texts = [digest(sequence.tokens.tolist()) for sequence in sequences]
            flights.append(Flight(plan, texts, before))
            for i, sequence in enumerate(sequences):
                self.check_span(lane, flights[-1], i, sequence)
        return count

    def check_span(self, lane: int, flight: Flight, i: int, sequence: Sequence) -> None:
        """Ordinary rows, or those that follow the ones in flight."""
        plan, before = flight.plan, flight.before
        rows = slice(int(plan.starts[i]), int(plan.starts[i + 1]))
        first, context = int(plan.positions[rows.start]), int(plan.contexts[i])
        self.planned[lane] += (context - first, sum(range(first + 1, context + 1)))
        if sequence.ahead[lane] == 0:
            self.check_rows(lane, plan, i, rows, sequence)
            return
        self.seen["ahead"] += 1
        assert before is not None
        positions = list(range(sequence.computed[lane] + sequence.in_flight[lane], context))
        tokens = sequence.tokens[first:context].tolist()
        if context > sequence.length:
            tokens.append(-1 - before.plan.ids[: before.plan.sequences].tolist().index(sequence.id))
        table = plan.blocks[i].tolist()
        assert sequence.ahead[lane] == len(positions) > 0 < sequence.in_flight[lane]
        assert plan.positions[rows].tolist() == positions
        assert plan.tokens[rows].tolist() == tokens
        assert plan.slots[rows].tolist() == [
            table[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS for p in positions
        ]
        assert plan.samples[i] == (context >= sequence.length)
        assert plan.attempts[i] == sequence.attempt
        assert (sequence.active, sequence.phase) == (lane, RUNNING)
        assert context < len(self.prompts[sequence.id]) + self.limits[sequence.id]

    def execute(self, lane: int, flight: Flight) -> None:
        plan, flight.drawn = flight.plan, []
        self.copy(lane, plan)
        spans = []
        for i in range(plan.sequences):
            rows = slice(int(plan.starts[i]), int(plan.starts[i + 1]))
            hashes, last = flight.texts[i], int(plan.tokens[rows.stop - 1])
            if last < 0:
                assert flight.before is not None and flight.before.drawn is not None
                hashes.append(hash((hashes[-1], flight.before.drawn[-1 - last])))
            spans.append((rows, hashes))
            first = int(plan.positions[rows.start])
            self.check_context(lane, plan.blocks[i].tolist(), first, hashes)
        for i, (rows, hashes) in enumerate(spans):
            for slot, position in zip(plan.slots[rows], plan.positions[rows], strict=True):
                self.arena.write(lane, int(slot), hash((hashes[int(position) + 1], lane)))
            token = virtual_model(lane, hashes[int(plan.contexts[i])])
            flight.drawn.append(token if plan.samples[i] else -1)
        flight.before = None

    def commit(self, lane: int) -> None:
        flight = self.flights[lane].pop(0)
        for i in range(flight.plan.sequences):
            if self.stands(lane, flight, i):
                table, context = flight.plan.blocks[i].tolist(), int(flight.plan.contexts[i])
                self.check_context(lane, table, context, flight.texts[i])
        self.scheduler.commit(lane, np.array(flight.drawn, np.int32))

    def stands(self, lane: int, flight: Flight, i: int) -> bool:
        """Is this part of the oldest plan neither void nor undecided?"""
        id = int(flight.plan.ids[i])
        if id not in self.prompts:
            return False
        sequence = self.scheduler.sequence(id)
        later = [id in f.plan.ids[: f.plan.sequences] for f in self.flights[lane]]
        again = any(later) and sequence.ahead[lane] == 0
        return sequence.in_flight[lane] > 0 and not again

    def run(self) -> None:
        lanes = [lambda: self.lane(SMALL), lambda: self.lane(LARGE)]
        others = [self.truncate, self.settle, self.preempt, self.abort]
        for stretch in range(OPERATIONS // 100):
            quick = stretch % 3
            self.eager = (0.6, 0.9, 0.0)[stretch // 3 % 3]
            self.more = {"ahead": stretch % 4 > 0}
            weights = [6, 14, (6, 24, 24)[quick], (24, 6, 24)[quick], 2, 1, 0.3, 0.15]
            operations = [self.add, self.route, *lanes, *others]
            for operation in self.random.choices(operations, weights, k=100):
                operation()
                self.after()
        self.drain()


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_random_operations_with_plans_ahead(seed: int, prefix_cache: bool) -> None:
    """As test_random_operations, every row booked once; some bets are won and some are lost."""
    device = Device(seed, prefix_cache)
    device.run()
    assert np.array_equal(device.planned, device.booked)
    counters = device.scheduler.counters()
    print(device.seen, counters)
    assert all(counters["ahead"]) and all(counters["voided"])


class Story(Device):
    """Requests, answers, truncations and aborts that follow from the texts alone: only the timing
    is random, and whether plans are made ahead."""

    def __init__(self, seed: int, eager: float, prefix_cache: bool, **changes: object) -> None:
        super().__init__(seed, prefix_cache, **changes)
        self.seed, self.eager, self.ends = seed, eager, {}
        self.usage: dict[int, tuple[list, list, int]] = {}

    def run(self) -> None:
        requests = [Random(1000 * self.seed + k) for k in range(40)]
        timing = Random(repr((self.seed, self.eager)))
        waits = [8 * timing.random() for _ in range(2)]
        while requests or self.alive:
            if requests and len(self.alive) < 8 and timing.random() < 0.2:
                self.random = requests.pop(0)
                self.more = {"ahead": self.random.random() < 0.9}
                self.add()
            self.random = timing
            for lane in (SMALL, LARGE):
                if timing.random() * waits[lane] < 1:
                    self.lane(lane)
                    self.after()
            if timing.random() < 0.5:
                self.route()
            if self.prefix_cache and timing.random() < 0.01:
                self.preempt()
            self.after()
            assert self.operations < 100_000, "the sequences do not come to an end"

    def route(self) -> None:
        if not self.undecided:
            return
        id = self.undecided.pop(self.random.randrange(len(self.undecided)))
        if id not in self.prompts or not (s := self.scheduler.sequence(id)).awaits_route:
            return
        draw = hash((id, s.attempt, *s.tokens.tolist())) >> 3
        if draw % 31 == 0 and s.trial_from < 0:
            self.scheduler.abort(id)
            return
        if draw % 7 == 0 and s.settled < s.length and s.attempt < 5:
            self.scheduler.truncate(id, s.settled + draw // 7 % (s.length - s.settled))
            return
        if draw % 5 == 0 and s.trial_from < 0:
            self.scheduler.settle(id, (s.settled + s.length) // 2)
        rest, unread = draw % 17 == 0, draw % 13 == 0
        self.scheduler.route(id, draw // 100 % 2, rest=rest, unread=unread)

    def finish(self, sequence: Sequence) -> None:
        s = sequence
        self.ends[s.id] = s.tokens.tolist(), s.steps, s.finish, s.cut_bytes, s.forced, s.attempt
        self.usage[s.id] = s.rows.copy(), s.entries.copy(), s.decision_wait
        super().finish(sequence)


@pytest.mark.parametrize("seed", range(12))
def test_the_answers_are_those_of_the_synchronous_run(seed: int) -> None:
    """With and without plans ahead: the same tokens, steps and ends, in a tight arena with lost KV
    and shared prefixes."""
    plain, ahead = (Story(seed, eager, prefix_cache=True) for eager in (0.0, 0.9))
    for story in (plain, ahead):
        story.run()
        assert np.array_equal(story.planned, story.booked)
    assert len(plain.ends) >= 40
    assert ahead.ends == plain.ends
    assert plain.scheduler.counters()["ahead"] == [0, 0]


@pytest.mark.parametrize("seed", range(12))
def test_it_costs_the_void_rows_and_nothing_else(seed: int) -> None:
    """Where nothing is lost and nothing is found every sequence has the same rows of each kind, and
    besides the discarded ones that were planned in vain."""
    roomy = {"slabs": 80, "background": (0, 0)}
    plain, ahead = (Story(seed, eager, False, **roomy) for eager in (0.0, 0.9))
    for story in (plain, ahead):
        story.most_samples = 1
        story.run()
        assert story.scheduler.counters()["preemptions"] == 0
    assert ahead.ends == plain.ends
    voided = np.zeros(2, np.int64)
    for id, (rows, entries, waited) in ahead.usage.items():
        without = plain.usage[id]
        more = rows - without[0]
        voided += more[:, DISCARDED, 0]
        assert (more[:, DISCARDED] >= 0).all()
        more[:, DISCARDED] = 0
        assert not more.any()
        assert np.array_equal(entries, without[1])
        assert waited == without[2]
    counters = ahead.scheduler.counters()
    assert voided.tolist() == counters["voided"]
    assert 0 < voided.sum() < sum(counters["ahead"]) / 2


# -- one behaviour a test

A, B, BOTH = 0, 1, 7  # text, and a delimiter; see conftest.TOKEN_BYTES
Make = Callable[..., Scheduler]


def start(scheduler: Scheduler, model: int, prompt: int = 3, **request: object) -> int:
    """A request that writes, or that the small model reads."""
    id = scheduler.add([A] * prompt, **({"max_tokens": 16} | request))  # type: ignore[arg-type]
    if "reader" not in request:
        scheduler.take_events()
        scheduler.route(id, model)
    return id


def commit(scheduler: Scheduler, lane: int, *tokens: int) -> None:
    scheduler.commit(lane, np.array(tokens, np.int32))


def rows(plan: Plan) -> list[tuple[int, int]]:
    """(position, token) of each."""
    return list(zip(plan.positions[: plan.rows], plan.tokens[: plan.rows], strict=True))


def test_a_decode_goes_on_with_a_token_that_nobody_knows(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    one, two = start(scheduler, SMALL), start(scheduler, SMALL, ahead=False)
    three = start(scheduler, SMALL, prompt=2)
    plans = [scheduler.buffers(SMALL, i) for i in range(2)]
    assert scheduler.plan(SMALL, ahead=True) == 3
    assert scheduler.plan(SMALL, ahead=True) == 2
    assert plans[1].ids[:2].tolist() == [one, three]
    assert rows(plans[1]) == [(3, -1), (2, -3)]
    assert plans[1].samples[:2].tolist() == [1, 1]
    assert scheduler.sequence(one).ahead == [1, 0]
    for ahead in (False, True):
        with pytest.raises(RuntimeError, match="commit first"):
            scheduler.plan(SMALL, ahead)
    commit(scheduler, SMALL, B, B, B)
    assert (scheduler.sequence(one).in_flight, scheduler.sequence(one).ahead) == ([1, 0], [0, 0])
    assert scheduler.plan(SMALL, ahead=True) == 3  # into the buffer that is free
    assert plans[0].ids[:3].tolist() == [one, two, three]
    assert rows(plans[0]) == [(4, -1), (3, B), (3, -2)]
    commit(scheduler, SMALL, B, B)
    assert scheduler.sequence(one).tokens.tolist() == [A, A, A, B, B]
    assert scheduler.counters()["ahead"] == [4, 0]
    assert scheduler.counters()["voided"] == [0, 0]


def test_a_prefill_goes_on_within_the_rows_that_are_left(make_scheduler: Make) -> None:
    scheduler = make_scheduler(max_tick_tokens=10)
    id = start(scheduler, SMALL, prompt=25, ahead=False)  # its tokens are known
    plans = [scheduler.buffers(SMALL, i) for i in range(2)]
    for i in range(2):
        scheduler.plan(SMALL, ahead=True)
        assert [p for p, _ in rows(plans[i])] == list(range(10 * i, 10 * i + 10))
    commit(scheduler, SMALL, 0)
    scheduler.plan(SMALL, ahead=True)
    assert [p for p, _ in rows(plans[0])] == list(range(20, 25))
    assert (plans[0].samples[0], plans[0].contexts[0]) == (1, 25)
    commit(scheduler, SMALL, 0)
    assert scheduler.plan(SMALL, ahead=True) == 0  # behind its own token it may not go
    commit(scheduler, SMALL, B)
    assert scheduler.sequence(id).rows[SMALL, :, 0].tolist() == [24, 0, 1, 0, 0]


@pytest.mark.parametrize(
    "request_",
    [{"max_tokens": 1}, {"think_end": [5], "max_think_tokens": 1}],
    ids=["the last token", "thinking ends"],
)
def test_what_is_known_to_be_void_is_not_planned(make_scheduler: Make, request_: dict) -> None:
    scheduler = make_scheduler()
    start(scheduler, SMALL, **request_)
    assert scheduler.plan(SMALL, ahead=True) == 1
    assert scheduler.plan(SMALL, ahead=True) == 0


def boundary(scheduler: Scheduler, writer: int) -> int:
    """The small model reads a boundary that a model has written, a row behind its last one is
    planned, and the question is out."""
    id = start(scheduler, writer, prompt=3, reader=SMALL)
    scheduler.plan(SMALL)
    commit(scheduler, SMALL, A)
    scheduler.route(id, writer)
    if writer == SMALL:
        scheduler.plan(SMALL)
        commit(scheduler, SMALL, BOTH)
    else:
        scheduler.plan(LARGE)
        commit(scheduler, LARGE, A)
        for _ in range(2):
            assert scheduler.plan(LARGE, ahead=True) == 1
        commit(scheduler, LARGE, BOTH)
    scheduler.take_events()
    for _ in range(2):
        assert scheduler.plan(SMALL, ahead=True) == 1
    commit(scheduler, SMALL, A)
    assert scheduler.take_events() == [(0, id, 0)]
    return id


@pytest.mark.parametrize("writer", [SMALL, LARGE])
@pytest.mark.parametrize("answer", [SMALL, LARGE])
def test_who_goes_on_finds_its_row(make_scheduler: Make, writer: int, answer: int) -> None:
    """The candidate's row, if the reader goes on; that behind the delimiter, if its writer does."""
    scheduler = make_scheduler()
    id = boundary(scheduler, writer)
    before = scheduler.sequence(id)
    assert before.in_flight == [0, 0]
    assert before.ahead == [1, int(writer == LARGE)]
    scheduler.route(id, answer)
    after = scheduler.sequence(id)
    kept = [int(answer == SMALL), int(writer == answer == LARGE)]
    assert (after.in_flight, after.ahead) == (kept, [0, 0])
    lost = [a - k for a, k in zip(before.ahead, kept, strict=True)]
    assert scheduler.counters()["voided"] == lost
    # What was sampled from them is booked at once, whatever the batch in flight gives.
    more = after.rows[:, DISCARDED, 0] - before.rows[:, DISCARDED, 0]
    assert more.tolist() == [lost[SMALL] + (answer == LARGE), lost[LARGE]]  # and the candidate's
    commit(scheduler, SMALL, B)
    drawn = [B] if answer == SMALL else []
    assert scheduler.sequence(id).tokens.tolist() == [*after.tokens.tolist(), *drawn]


def test_an_answer_that_comes_too_late(make_scheduler: Make) -> None:
    """The row is computed again; nothing else is lost."""
    scheduler = make_scheduler()
    id = boundary(scheduler, SMALL)
    commit(scheduler, SMALL, B)
    assert scheduler.sequence(id).ahead == [0, 0]
    assert scheduler.counters()["voided"] == [1, 0]
    length = scheduler.sequence(id).length
    scheduler.route(id, SMALL)
    assert scheduler.sequence(id).length == length + 1
    assert scheduler.plan(SMALL) == 1
    assert rows(scheduler.buffers(SMALL)) == [(length, A)]


def test_void_rows_keep_nothing_waiting(make_scheduler: Make) -> None:
    """A sequence ends and is forgotten while the device still computes for it; its blocks go to the
    other lane behind the fence only."""
    scheduler = make_scheduler(slabs=1, slots=(2, 2), max_context=8)
    id = start(scheduler, SMALL, prompt=3, max_tokens=5, stop_ids=[5])
    for _ in range(2):
        assert scheduler.plan(SMALL, ahead=True) == 1
    commit(scheduler, SMALL, 5)
    assert scheduler.take_events() == [(1, id, -1)]
    assert scheduler.sequence(id).rows[SMALL, DISCARDED].tolist() == [1, 4]
    scheduler.forget(id)
    assert scheduler.pool.live(SMALL) == 0
    start(scheduler, LARGE, max_tokens=5)
    assert scheduler.plan(LARGE) == 0
    commit(scheduler, SMALL, B)
    assert scheduler.plan(LARGE) == 1


@pytest.mark.parametrize("what", ["truncate", "abort", "preempt"])
def test_an_operation_between_two_plans(make_scheduler: Make, what: str) -> None:
    scheduler = make_scheduler()
    id = start(scheduler, SMALL, settle_at_once=False)
    for _ in range(2):
        scheduler.plan(SMALL)
        commit(scheduler, SMALL, B)
    for _ in range(2):
        scheduler.plan(SMALL, ahead=True)
    getattr(scheduler, what)(*((id, 4) if what == "truncate" else (id,)))
    commit(scheduler, SMALL, B)
    sequence = scheduler.sequence(id)
    assert (sequence.in_flight, sequence.ahead) == ([0, 0], [0, 0])
    assert sequence.length == {"truncate": 4, "abort": 5, "preempt": 6}[what]
    assert scheduler.counters()["voided"] == [1, 0]
    commit(scheduler, SMALL, B)
    assert scheduler.sequence(id).length == sequence.length


def test_a_tick_that_fails_takes_what_was_planned_behind_it(make_scheduler: Make) -> None:
    """Its sequences end; one that only started in the next tick goes on."""
    scheduler = make_scheduler()
    one = start(scheduler, SMALL)
    scheduler.plan(SMALL, ahead=True)
    two = start(scheduler, SMALL)
    assert scheduler.plan(SMALL, ahead=True) == 2
    scheduler.fail(SMALL)
    assert scheduler.take_events() == [(1, one, -1)]
    assert scheduler.counters()["voided"] == [1, 0]
    commit(scheduler, SMALL, -1, B)
    assert scheduler.sequence(two).tokens.tolist()[-1] == B


def test_a_failed_bet_ends_nothing(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = boundary(scheduler, SMALL)
    scheduler.fail(SMALL)
    assert scheduler.take_events() == []
    scheduler.route(id, SMALL)
    assert scheduler.plan(SMALL) == 1


def test_a_bet_takes_nothing_from_anybody(make_scheduler: Make) -> None:
    """No block that a sequence holds: it waits for the token, and takes what it may then."""
    scheduler = make_scheduler(slabs=2, slots=(1, 1), max_context=8)
    first = start(scheduler, SMALL, prompt=3, max_tokens=5)
    second = start(scheduler, LARGE, prompt=3, max_tokens=5)
    scheduler.plan(LARGE)
    commit(scheduler, LARGE, B)
    for _ in range(2):
        assert scheduler.plan(SMALL, ahead=True) == 1
    commit(scheduler, SMALL, B)
    assert scheduler.plan(SMALL, ahead=True) == 0  # the first block is full
    assert scheduler.buffers(SMALL, 0).short_of_memory
    assert scheduler.sequence(second).computed == [0, 3]
    commit(scheduler, SMALL, B)
    assert scheduler.plan(SMALL, ahead=True) == 1
    assert scheduler.sequence(first).in_flight == [1, 0]
    assert scheduler.sequence(second).computed == [0, 0]
