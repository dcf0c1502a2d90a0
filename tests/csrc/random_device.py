"""A device behind each lane of the random driver: what is planned is executed later, in order.

With random delays; a token that the host does not know yet comes from the tick before. Everything
that a tick reads must be there when it runs, void rows included.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np

from engine._core import Plan, Sequence

from .kinds import LARGE, RUNNING, SMALL
from .random_arena import BLOCK_TOKENS, digest
from .random_driver import Driver, known

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
            assert not self.most_drawn or plan.samples[:count].sum() <= self.most_drawn
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
            self.more |= {"ahead": stretch % 4 > 0}
            weights = [6, 14, (6, 24, 24)[quick], (24, 6, 24)[quick], 2, 1, 0.3, 0.15]
            operations = [self.add, self.route, *lanes, *others]
            for operation in self.random.choices(operations, weights, k=100):
                operation()
                self.after()
        self.drain()
