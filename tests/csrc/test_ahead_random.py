"""Plans that are made while the last one is in flight, at random and against the synchronous run.

The runs are those of test_random.py with a device behind each lane: what is planned is
executed later, in order, with random delays, and a token that the host does not know yet comes from
the tick before. Everything that a tick reads must be there when it runs, void rows included.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from random import Random

import numpy as np
import pytest

from engine._core import Plan, Sequence

from .kinds import (
    CATCHUP,
    DISCARDED,
    DRAFTED,
    LARGE,
    PROMPT,
    RECOMPUTE,
    REJECTED,
    RUNNING,
    SAMPLED,
    SMALL,
)
from .random_arena import BLOCK_TOKENS, digest
from .random_driver import Driver, known
from .test_random import TIERS

OPERATIONS = 4000


@dataclass
class Flight:
    """A plan as it was made, and what the device has drawn once it has run."""

    plan: Plan
    texts: list[list[int]]  # digests of what the host knew of each sequence
    before: Flight | None  # in flight when this was planned
    drawn: list[list[int]] | None = None  # of each sequence


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
            texts = [digest(known(sequence)) for sequence in sequences]
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
        text = known(sequence)
        tokens = text[first:context]
        if context > len(text):
            tokens.append(-1 - before.plan.ids[: before.plan.sequences].tolist().index(sequence.id))
        table = plan.blocks[i].tolist()
        assert sequence.ahead[lane] == len(positions) > 0 < sequence.in_flight[lane]
        assert plan.positions[rows].tolist() == positions
        assert plan.tokens[rows].tolist() == tokens
        assert plan.slots[rows].tolist() == [
            table[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS for p in positions
        ]
        assert plan.samples[i] == (context >= len(text))
        assert plan.guesses[i] == (sequence.drafting and plan.samples[i])
        assert plan.attempts[i] == sequence.attempt
        assert sequence.active == lane or (sequence.drafting and lane == SMALL)
        assert sequence.phase == RUNNING
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
                (token,) = flight.before.drawn[-1 - last]
                hashes.append(hash((hashes[-1], token)))
            spans.append((rows, hashes))
            first = int(plan.positions[rows.start])
            self.check_context(lane, plan.blocks[i].tolist(), first, hashes)
        for i, (rows, hashes) in enumerate(spans):
            for slot, position in zip(plan.slots[rows], plan.positions[rows], strict=True):
                self.arena.write(lane, int(slot), hash((hashes[int(position) + 1], lane)))
            flight.drawn.append(self.draw(lane, plan, i, hashes))
        flight.before = None

    def commit(self, lane: int) -> None:
        flight = self.flights[lane].pop(0)
        for i in range(flight.plan.sequences):
            if self.stands(lane, flight, i):
                table, context = flight.plan.blocks[i].tolist(), int(flight.plan.contexts[i])
                self.check_context(lane, table, context, flight.texts[i])
        assert flight.drawn is not None
        self.scheduler.commit(lane, np.array([*chain(*flight.drawn)], np.int32))

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


@pytest.mark.parametrize(("prefix_cache", "host_blocks"), TIERS)
@pytest.mark.parametrize("seed", range(8))
def test_random_operations_with_plans_ahead(
    seed: int, prefix_cache: bool, host_blocks: int
) -> None:
    """As test_random_operations, every row booked once; some bets are won and some are lost."""
    device = Device(seed, prefix_cache, host_blocks=host_blocks)
    device.run()
    assert np.array_equal(device.planned, device.booked)
    counters = device.scheduler.counters()
    print(device.seen, counters)
    assert all(counters["ahead"]) and all(counters["voided"])
    assert (counters["saved"] > 0) == (counters["restored"] > 0) == (host_blocks > 0)


@pytest.mark.parametrize(("prefix_cache", "host_blocks"), TIERS)
@pytest.mark.parametrize("seed", range(8))
def test_random_operations_with_guesses_ahead(
    seed: int, prefix_cache: bool, host_blocks: int
) -> None:
    """Guesses are planned after guesses that only the device knows yet."""
    device = Device(seed, prefix_cache, host_blocks=host_blocks)
    device.drafts = (0, 2, 7)
    device.run()
    assert np.array_equal(device.planned, device.booked)
    assert device.seen["verified"] > 5 and device.speculation["rounds"] > 5


class Story(Device):
    """Requests, answers, truncations and aborts that follow from the texts alone: only the timing
    is random, and whether plans are made ahead."""

    def __init__(
        self, seed: int, eager: float, prefix_cache: bool, drafts: int = 0, **changes: object
    ) -> None:
        super().__init__(seed, prefix_cache, **changes)
        self.seed, self.eager, self.ends, self.drafts = seed, eager, {}, (drafts,)
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
    """With and without plans ahead: the same tokens, steps and ends, in a tight arena with lost KV,
    shared prefixes and, for every other seed, host memory."""
    host = 12 * (seed % 2)
    plain, ahead = (Story(seed, eager, True, host_blocks=host) for eager in (0.0, 0.9))
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


@pytest.mark.parametrize("eager", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(8))
def test_the_answers_are_those_without_guesses(seed: int, eager: float) -> None:
    """However many tokens the small model guesses, right or wrong: the same tokens, steps and ends,
    tokens taken back and forced, in a tight arena, under each lane policy."""
    host = 12 * (seed % 2)
    plain = Story(seed, 0.0, seed % 4 < 2, host_blocks=host * (seed % 4 < 2))
    plain.run()
    for drafts in (1, 3, 7):
        story = Story(seed, eager, plain.prefix_cache, drafts, host_blocks=host * (seed % 4 < 2))
        story.run()
        assert np.array_equal(story.planned, story.booked)
        assert story.ends == plain.ends
        assert story.speculation["rounds"] > 20 and story.speculation["accepted"] > 20


@pytest.mark.parametrize("seed", range(8))
def test_what_guesses_cost(seed: int) -> None:
    """Where nothing is lost and nothing is found: rows of guesses, rows of the large model that
    drew nothing, and what the small model reads for the guesses; and no pass more than without."""
    roomy = {"slabs": 80, "background": (0, 0), "lane_policy": "latency"}
    plain, spec = (Story(seed, 0.0, False, drafts, **roomy) for drafts in (0, 4))
    for story in (plain, spec):
        story.most_samples = 1
        story.run()
        assert story.scheduler.counters()["preemptions"] == 0
    assert spec.ends == plain.ends
    for id, (rows, entries, _) in spec.usage.items():
        more = rows - plain.usage[id][0]
        assert np.array_equal(entries, plain.usage[id][1])
        assert not more[LARGE, [PROMPT, CATCHUP, SAMPLED, RECOMPUTE]].any()
        assert not more[SMALL, [SAMPLED, DISCARDED]].any()
        assert (more[:, [DISCARDED, DRAFTED, REJECTED]] >= 0).all()
        # Each draw after a wrong guess, or after the end of a run, was for a guess.
        assert more[LARGE, DISCARDED, 0] <= more[SMALL, [DRAFTED, REJECTED], 0].sum()
    counts = spec.speculation
    assert counts["tokens"] > 1.2 * counts["passes"]
