"""Random operations on both lanes in random order, watched by a shadow of the arena.

The shadow is compared with what the planned sequences need, at plan() and again at commit(), and
written at both: a block that is used twice within a tick in flight is caught, whichever model owns
it.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import numpy as np

from engine._core import Plan, Scheduler, Sequence

from .arena_checks import ArenaChecks, known
from .kinds import (
    ABORT,
    DECIDE,
    DRAFTED,
    LARGE,
    LENGTH,
    NOBODY,
    REJECTED,
    REPETITION,
    SMALL,
    STOP,
    WHOLE,
)
from .random_arena import (
    BLOCK_TOKENS,
    CONTEXT,
    GEOMETRIES,
    MARKER,
    OPERATIONS,
    STOP_ID,
    TOKEN_BYTES,
    Arena,
    digest,
    virtual_guess,
    virtual_model,
)


class Driver(ArenaChecks):
    """A scheduler, its shadow, and the operations of the test."""

    def __init__(self, seed: int, prefix_cache: bool, **changes: object) -> None:
        self.random = Random(seed)
        self.prefix_cache, self.most_samples = prefix_cache, 3
        slots, token, slab = GEOMETRIES[seed % len(GEOMETRIES)]
        slabs = int(changes.get("slabs", 11 // min(slots)))
        self.arena = Arena(slabs, slots, token, slab)
        self.host: dict[int, list[int]] = {}  # what the last save left in each slot
        self.budget = self.random.choice((8, 16, 64))
        self.most_drawn = changes.get("max_drawn_rows", 30 * (seed % 2))
        settings = {
            "slabs": slabs,
            "slots": slots,
            "block_tokens": BLOCK_TOKENS,
            "max_context": CONTEXT,
            "max_sequences": 7,
            "max_tick_tokens": self.budget,
            "max_drawn_rows": self.most_drawn,
            "recompute_cost": (1.0, self.random.choice((0.3, 1.0, 15.0))),
            "prefix_cache": prefix_cache,
            "eager_admission": True,
            "background": (seed % 4, 3 * (seed % 3)),
            "lane_policy": ("latency", "throughput", "weighted", "auto")[seed % 4],
            "gather": seed % 3,
            "hold_ticks": 5,
            "automatic_from": 3,
            "tick_cost": (1.0, 6.0),
            "delimiters": [b"\n\n", b"c."],
            "token_bytes": TOKEN_BYTES,
        }
        self.scheduler = Scheduler(**(settings | changes))
        self.plans = [self.scheduler.buffers(lane) for lane in (SMALL, LARGE)]
        self.prompts: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}  # max_tokens
        self.more: dict[str, int] = {}  # arguments of every request
        self.drafts: tuple[int, ...] = (0,)  # draft_tokens of requests
        self.sources: tuple[str, ...] = ("small",)  # draft_source of requests
        self.readers: tuple[int, ...] = (NOBODY, SMALL, SMALL, LARGE)
        self.speculation: Counter[str] = Counter()
        self.alive: list[int] = []
        self.undecided: list[int] = []
        self.truncations: Counter[int] = Counter()
        self.planned = np.zeros((2, 2), np.int64)  # by model: rows, keys
        self.booked = np.zeros((2, 2), np.int64)
        self.restored = 0
        self.seen: Counter[str] = Counter()
        self.operations = 0

    # -- operations

    def add(self) -> None:
        if len(self.alive) >= 10:
            return
        random = self.random
        prompt = [random.randrange(7) for _ in range(random.randint(1, 14))]
        if self.prefix_cache:  # three families of prompts that share beginnings
            family = Random(random.randrange(3))
            prompt = [family.randrange(7) for _ in range(12)][: random.randint(1, 12)] + prompt[:2]
        reader = random.choice(self.readers)
        max_tokens = random.randint(1, CONTEXT - len(prompt))
        trials = (0, 0, WHOLE, 1, 2, min(5, max_tokens)) if reader != NOBODY else (0,)
        samples = min(random.choice((1, 1, 1, 2, 3)), self.most_samples)
        think_end = random.choice(([], [], MARKER))
        first = self.scheduler.add(
            prompt,
            max_tokens=max_tokens,
            stop_ids=[STOP_ID],
            reader=reader,
            priority=random.choice((0, 0, 0, -1, 1)),
            settle_at_once=random.random() < 0.5,
            trial_tokens=min(random.choice(trials), max_tokens),
            think_end=think_end,
            max_think_tokens=random.choice((0, 3, 9)) if think_end else 0,
            max_repeats=random.choice((0, 0, 9)),
            samples=samples,
            draft_tokens=random.choice(self.drafts) if len(self.drafts) > 1 else self.drafts[0],
            draft_source=random.choice(self.sources) if len(self.sources) > 1 else self.sources[0],
            **self.more,
        )
        for id in range(first, first + samples):
            self.limits[id] = max_tokens
            self.prompts[id] = prompt
            self.alive.append(id)

    def lane(self, lane: int) -> int:
        """Commit what is in flight, else plan."""
        if self.plans[lane].in_flight:
            self.commit(lane)
            return 1
        count = self.scheduler.plan(lane)
        assert count == self.plans[lane].sequences
        self.seen["short"] += self.plans[lane].short_of_memory
        if count:
            self.look(lane, self.plans[lane], planned=True)
        return count

    def commit(self, lane: int) -> None:
        tokens = self.look(lane, self.plans[lane], planned=False)
        self.scheduler.commit(lane, np.array(tokens, np.int32))

    def look(self, lane: int, plan: Plan, planned: bool) -> list[int]:
        """Compare a plan with the texts and the shadow, run it, and draw its tokens."""
        if planned:
            self.copy(lane, plan)
        drawn = []
        for i in range(plan.sequences):
            sequence = self.scheduler.sequence(int(plan.ids[i]))
            rows = slice(int(plan.starts[i]), int(plan.starts[i + 1]))
            context = int(plan.contexts[i])
            hashes = digest(known(sequence))
            self.check_rows(lane, plan, i, rows, sequence)
            present = sequence.computed[lane] if planned else context
            self.check_context(lane, plan.blocks[i].tolist(), present, hashes)
            for slot, position in zip(
                plan.slots[rows].tolist(), plan.positions[rows].tolist(), strict=True
            ):
                self.arena.write(lane, slot, hash((hashes[position + 1], lane)))
            if planned:
                first = context - (rows.stop - rows.start)
                self.planned[lane] += (context - first, sum(range(first + 1, context + 1)))
            drawn += self.draw(lane, plan, i, hashes)
        assert len(drawn) == plan.draws
        return drawn

    def draw(self, lane: int, plan: Plan, i: int, hashes: list[int]) -> list[int]:
        """The draws of a sequence of a plan; something that is ignored where there are none."""
        draws, context = int(plan.samples[i]), int(plan.contexts[i])
        if plan.guesses[i]:
            return [virtual_guess(hashes[context], plan.tick)]
        if draws == 0:
            return [-1]
        return [virtual_model(lane, hashes[n]) for n in range(context - draws + 1, context + 1)]

    def route(self) -> None:
        if not self.undecided:
            return
        id = self.undecided.pop(self.random.randrange(len(self.undecided)))
        if id not in self.prompts:
            return
        before = self.scheduler.sequence(id)
        if not before.awaits_route:
            return
        unread = self.random.random() < 0.1
        self.scheduler.route(id, self.random.choice((SMALL, LARGE)), unread=unread)
        if before.trial_from >= 0:
            after = self.scheduler.sequence(id)
            kept = after.attempt == before.attempt
            assert (
                after.tokens.tolist()[: before.trial_from]
                == before.tokens.tolist()[: before.trial_from]
            )
            assert after.length >= before.length if kept else after.length == before.trial_from
            self.seen["trial kept" if kept else "trial rolled back"] += 1

    def truncate(self) -> None:
        """A few times a sequence, so that it comes to an end."""
        sequence = self.pick()
        if sequence is None or self.truncations[sequence.id] >= 4:
            return
        length = self.random.randint(sequence.settled, sequence.length)
        if length == sequence.length:
            return
        self.truncations[sequence.id] += 1
        self.seen["truncated in flight" if sum(sequence.in_flight) else "truncated"] += 1
        self.scheduler.truncate(sequence.id, length)

    def settle(self) -> None:
        """Half of what is open; where a truncation is pending that may be too much."""
        sequence = self.pick()
        if sequence is None:
            return
        try:
            self.scheduler.settle(sequence.id, (sequence.settled + sequence.length) // 2)
        except ValueError:
            on_trial = sequence.trial_from >= 0
            assert on_trial or (sum(sequence.in_flight) and self.truncations[sequence.id])
            self.seen["settled too late"] += 1

    def preempt(self) -> None:
        if sequence := self.pick():
            self.scheduler.preempt(sequence.id)

    def abort(self) -> None:
        if sequence := self.pick():
            self.seen["aborted in flight"] += sum(sequence.in_flight) > 0
            self.scheduler.abort(sequence.id)

    def pick(self) -> Sequence | None:
        return self.scheduler.sequence(self.random.choice(self.alive)) if self.alive else None

    # -- after every operation

    def after(self) -> None:
        self.operations += 1
        self.scheduler.check_integrity()
        for kind, id, row in self.scheduler.take_events():
            if kind == DECIDE:
                self.undecided.append(id)
                continue
            assert row == NOBODY
            self.finish(self.scheduler.sequence(id))

    def finish(self, sequence: Sequence) -> None:
        """A finished text is what the models that wrote its steps write, to its very end."""
        self.scheduler.forget(sequence.id)
        self.alive.remove(sequence.id)
        self.booked += sequence.rows.sum(axis=1)
        self.check_speculation(sequence)
        self.restored += sequence.restored
        prompt, tokens = self.prompts.pop(sequence.id), sequence.tokens.tolist()
        hashes, length = digest(tokens), len(prompt)
        assert tokens[:length] == prompt
        forced = sequence.forced
        self.seen["forced"] += len(forced)
        steps = [*sequence.steps, (len(tokens), NOBODY)]
        for (start, model), (end, _) in pairwise(steps):
            self.written(sequence, start, end, model, hashes)
        assert sequence.finish in (STOP, LENGTH, ABORT, REPETITION)
        if sequence.finish == STOP:
            assert tokens.index(STOP_ID) == len(tokens) - 1
        else:  # a trial that has stopped may be aborted before the answer
            assert STOP_ID not in tokens[: -1 if sequence.finish == ABORT else None]
        self.seen[f"finish {sequence.finish}"] += 1

    def written(self, s: Sequence, start: int, end: int, model: int, hashes: list[int]) -> None:
        """The step in [start, end) is what its model writes."""
        tokens = s.tokens.tolist()
        for i in range(start, end):
            assert tokens[i] == virtual_model(model, hashes[i]) or i in s.forced

    def check_speculation(self, sequence: Sequence) -> None:
        """What it counts is what its rows say."""
        counts, rows = dict(sequence.speculation), sequence.rows[:, :, 0]
        there = counts["looked_up"] + counts["reused"]  # guesses without a row
        assert sum(counts.pop("accepted_at")) == counts["accepted"]
        assert rows[SMALL, DRAFTED] <= counts["accepted"] <= rows[SMALL, DRAFTED] + there
        assert counts["accepted"] <= counts["compared"] <= counts["drafted"] + there
        assert counts["drafted"] <= rows[SMALL, DRAFTED] + rows[SMALL, REJECTED]
        assert counts["rounds"] <= counts["passes"] <= counts["tokens"]
        assert not rows[LARGE, [DRAFTED, REJECTED]].any()
        self.speculation.update(counts)

    def run(self) -> None:
        """Random operations, then everything to its end."""
        lanes = [lambda: self.lane(SMALL), lambda: self.lane(LARGE)]
        others = [self.truncate, self.settle, self.preempt, self.abort]
        operations = [self.add, self.route, *lanes, *others]
        # One lane is slow in some stretches and quick in others.
        for stretch in range(OPERATIONS // 100):
            quick = stretch % 3
            weights = [6, 14, (3, 12, 12)[quick], (12, 3, 12)[quick], 4, 1, 0.3, 0.15]
            for operation in self.random.choices(operations, weights, k=100):
                operation()
                self.after()
        self.drain()

    def drain(self) -> None:
        """Both lanes in turn; a lane may wait for the other once, never both for long."""
        idle = 0
        while self.alive:
            progressed = bool(self.undecided)
            while self.undecided:
                self.route()
                self.after()
            for lane in (SMALL, LARGE):
                progressed |= self.lane(lane) > 0
                self.after()
            idle = 0 if progressed else idle + 1
            assert idle < 3, "no lane can move"
            assert self.operations < 2 * OPERATIONS, "the sequences do not come to an end"
