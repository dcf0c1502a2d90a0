"""The scheduler's whole public face against a slow, obvious model of it.

A hypothesis state machine calls the core in any order, both lanes in flight at once, and compares
after every call everything that can be seen with what the model says (model_*.py beside this file).
A call that makes no sense must fail as documented and change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import chain

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from .drawn_shapes import Dice, dice, draw_request
from .kinds import ABORT, DEADLINE, LARGE, OVER, SMALL
from .model_plan import Judge
from .model_plan_state import View
from .model_scheduler import Span
from .model_sequence import SequenceModel
from .model_text import PADDING
from .wrong_calls import WrongCalls

EXAMPLES = int(os.environ.get("STEER_MACHINE_EXAMPLES", "500"))
SHRINK = bool(os.environ.get("STEER_MACHINE_SHRINK"))
RULES = 100  # of an example, at most
OPERATIONS = 200  # of an example on average, at least: 100,000 in all
WORDS = (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, PADDING, 0, 1, 3, 4)
ALIVE = 9  # sequences at once
LANES = st.sampled_from((SMALL, LARGE))


class Machine(WrongCalls):
    # -- requests

    @rule(dice=dice(41))
    def add(self, dice: Dice) -> None:
        self.add_one(dice)

    def add_one(self, dice: Dice) -> None:
        request, samples = draw_request(dice, self.shape), dice.pick(1, 1, 1, 2, 3)
        if self.model.cache is None:
            samples = 1  # see let_go()
        queued, limit = len(self.model.waiting) + samples, self.shape.queue
        if len(self.alive()) + samples > ALIVE:
            return
        with self.operation("add"):
            if samples <= limit < queued:
                self.refused(OverflowError, "the queue is full", self.send, request, samples)
            else:
                first = self.send(request, samples)
                assert first == self.model.add(request, samples)[0].id

    # -- lanes

    @rule(dice=dice(12))
    def lane(self, dice: Dice) -> None:
        """A plan, or what became of the last one."""
        self.move(dice.below(2), dice)

    @rule(dice=dice(64))
    def ticks(self, dice: Dice) -> None:
        """Some time passes: lanes in any order, questions answered, new requests."""
        if len(self.alive()) < 2:
            self.add_one(dice)
        for _ in range(1 + dice.below(12)):
            what = dice.below(8)
            if what < 5 and not self.idle[what % 2]:
                self.move(what % 2, dice)
            elif what < 7:
                self.answer_one(dice)
            else:
                self.listen()

    @rule(dice=dice(64))
    def more_ticks(self, dice: Dice) -> None:
        """As likely again: the rest hits what is under way."""
        self.ticks(dice)

    def move(self, lane: int, dice: Dice) -> None:
        flying = len(self.model.flights[lane])
        if flying == 0 or (flying == 1 and self.eager and dice.below(self.eager)):
            self.let_go()
            if self.plan(lane) or not flying:
                return
        self.commit(lane, dice)

    def plan(self, lane: int) -> int:
        core, model, pool = self.core, self.model, self.core.pool
        ahead, buffer = bool(model.flights[lane]), int(core.buffers(lane, 0).in_flight)
        empty = [pool.available(m) for m in (SMALL, LARGE)]
        free = [empty[m] + pool.reclaimable(m) for m in (SMALL, LARGE)]
        with self.operation("plan"):
            count, after = core.plan(lane, ahead), self.look()
            idle = [self.idle[m] or (m == lane and not ahead) for m in (0, 1)]
            self.idle = [False, False] if count else idle
            model.admit(free, core.limit, after)
            model.open_rounds()
            if model.holds(lane):
                assert count == core.buffers(lane, buffer).sequences == 0
                return count
            view = View(core, lane, buffer, after)
            assert count == len(view.ids)
            dropped = core.counters()["evictions"] != self.counters["evictions"]
            Judge(model, lane, view, (free[lane], empty[lane]), dropped).judge()
            self.seen["short of memory"] += view.short
        return count

    def commit(self, lane: int, dice: Dice) -> None:
        flight = self.model.flights[lane][0]
        draws = [self.draws(lane, span, dice) for span in flight.spans]
        with self.operation("commit"):
            self.core.commit(lane, np.array([*chain(*draws)], np.int32))
            self.model.commit(lane, draws, self.look())

    def draws(self, lane: int, span: Span, dice: Dice) -> list[int]:
        """What was guessed, as a rule, else anything. Guesses are unusable more often."""
        s, samples = span.sequence, span.samples
        if samples and s.active != lane and dice.below(16) == 0:
            return [-1]
        drawn = [self.draw(s, samples > 0, dice) for _ in range(max(1, samples))]
        for i in range(min(samples, len(s.draft)) if lane == LARGE else 0):
            if dice.below(8) > 1:
                drawn[i] = s.draft[i]
        self.seen["verified"] += samples > 1
        return drawn

    def draw(self, s: SequenceModel, samples: bool, dice: Dice) -> int:
        """Any token, now and then unusable logits; some texts tend to go round in circles."""
        byte, piece = dice.below(256), 1 + s.id % 3
        if not samples:
            return byte % 3 - 1  # it is ignored
        if byte > 253:
            return -1
        if s.request.max_repeats and byte < 250 and len(s.written) >= piece:
            return s.tokens[-piece]
        return WORDS[byte % len(WORDS)]

    @rule(lane=LANES, luck=st.integers(0, 3))
    def fail(self, lane: int, luck: int) -> None:
        if not self.model.flights[lane] or luck:
            return
        with self.operation("fail"):
            self.core.fail(lane)
            self.model.fail(lane, self.look())

    # -- one sequence

    @rule(dice=dice(3))
    def answer(self, dice: Dice) -> None:
        self.answer_one(dice)

    def answer_one(self, dice: Dice) -> None:
        asking = [s for s in self.alive() if s.awaits_route]
        if asking:
            self.route(dice.pick(*asking), dice.below(2), dice.below(8) == 7)

    def route(self, s: SequenceModel, model: int, rest: bool) -> None:
        on_trial = s.trial_from >= 0
        self.seen["trial kept"] += on_trial and model == s.request.reader
        self.seen["trial taken back"] += on_trial and model != s.request.reader
        with self.operation("route"):
            self.core.route(s.id, model, rest)
            s.route(model, rest)

    def pick(
        self, dice: Dice, worth: Callable[[SequenceModel], bool] = lambda s: True
    ) -> SequenceModel | None:
        """Rather one in flight."""
        some = [s for s in self.alive() if worth(s)] or self.alive()
        busy = [s for s in some if s.busy]
        some = busy if busy and dice.below(3) else some
        return dice.pick(*some) if some else None

    @rule(dice=dice(3))
    def truncate(self, dice: Dice) -> None:
        s = self.pick(dice, lambda s: s.length > s.settled)
        if s is None:
            return
        length = s.length - dice.below(s.length - s.settled + 1)
        if length < s.length:
            self.seen["truncated in flight" if s.busy else "truncated"] += 1
        with self.operation("truncate"):
            self.core.truncate(s.id, length)
            s.truncate(length)

    @rule(dice=dice(3))
    def settle(self, dice: Dice) -> None:
        if (s := self.pick(dice)) is None or s.stands < s.settled:
            return
        length = s.settled + dice.below(s.stands - s.settled + 1)
        with self.operation("settle"):
            self.core.settle(s.id, length)
            s.settle(length)

    @rule(dice=dice(2))
    def preempt(self, dice: Dice) -> None:
        if (s := self.pick(dice)) is None:
            return
        self.seen["preempted in flight"] += s.busy
        with self.operation("preempt"):
            self.core.preempt(s.id)
            self.model.turns.changed()
            for model in (SMALL, LARGE):
                s.give_up(model)

    @rule(dice=dice(3), luck=st.integers(0, 3))
    def abort(self, dice: Dice, luck: int) -> None:
        if (s := self.pick(dice)) is not None and luck == 0:
            self.end(s, dice.pick(False, True))

    def end(self, s: SequenceModel, deadline: bool) -> None:
        self.seen["aborted in flight"] += s.busy
        with self.operation("abort"):
            self.core.abort(s.id, deadline=deadline)
            s.end(DEADLINE if deadline else ABORT)

    @rule(dice=dice(1))
    def forget(self, dice: Dice) -> None:
        over = [s for s in self.model.sequences.values() if s.phase == OVER]
        if over:
            self.drop(dice.pick(*over))

    def drop(self, s: SequenceModel) -> None:
        with self.operation("forget"):
            self.core.forget(s.id)
            del self.model.sequences[s.id]
            self.seen[f"finish {s.finish}"] += 1
            self.seen["forced"] += -1 in s.drawn
            self.seen.update({name: n for name, n in s.guessed.items() if n})
            self.seen["given up"] += s.off
            self.seen["replaced"] += len(s.replaced)
            self.seen["stood"] += s.guessed["accepted"] * s.request.verified
            for lane in (SMALL, LARGE):
                for i in range(2):
                    self.booked[lane][i] += sum(kind[i] for kind in s.rows[lane])

    @rule()
    def events(self) -> None:
        self.listen()

    def listen(self) -> None:
        with self.operation("events"):
            assert self.core.take_events() == self.model.events
            self.model.events = []

    def let_go(self) -> None:
        """Samples take rows from the cache and from each other. Once only the core knows what is
        cached the model cannot tell which: it goes on without samples."""
        for s in self.alive():
            if self.model.cache is None and s.samples > 1:
                self.end(s, False)

    # -- the end

    def teardown(self) -> None:
        """Everything comes to its end, nothing is left, every row is booked once."""
        if not getattr(self, "sound", False):
            return
        self.drain()
        for s in list(self.model.sequences.values()):
            self.drop(s)
        self.listen()
        core = self.core
        assert (core.running, core.waiting) == (0, 0)
        assert [core.pool.live(m) for m in (SMALL, LARGE)] == [0, 0]
        held = sum(core.pool.cached(m) for m in (SMALL, LARGE))
        assert held == 0 or self.shape.prefix_cache
        assert core.pool.free_slabs == self.shape.slabs or held
        assert self.booked == self.model.planned
        self.seen.update({name: int(np.sum(n)) for name, n in core.counters().items()})

    def drain(self) -> None:
        """Both lanes in turn. No bound here but a generous one: see test_progress.py."""
        luck = Dice(bytes(range(0, 250, 7)))
        for _ in range(10_000):
            if not self.alive():
                return
            for s in self.alive():
                if s.awaits_route:
                    self.route(s, luck.below(2), False)
            for lane in (SMALL, LARGE):
                if not self.idle[lane] or self.idle[1 - lane]:
                    self.move(lane, luck)
        raise AssertionError("the sequences do not come to an end")


def test_the_core_is_as_the_model_says() -> None:
    """The same examples wherever the same modules are loaded: Hypothesis draws constants of theirs
    too. Their number grows with STEER_MACHINE_EXAMPLES.

    What the run is meant to exercise did happen: looked at here, as another test may be run by
    another process.
    """
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=RULES,
            derandomize=True,
            database=None,
            deadline=None,
            # Making a failure small takes minutes: only where it is asked for.
            phases=[Phase.generate, *([Phase.shrink] if SHRINK else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
    check_the_machine_went_everywhere()


def check_the_machine_went_everywhere() -> None:
    """The run was as long as it is meant to be, and came to all that it is meant to exercise."""
    assert Machine.operations >= OPERATIONS * EXAMPLES
    events = (
        *("fail", "finish 1", "finish 2", "finish 3", "finish 4", "finish 5", "finish 6"),
        *("forced", "aborted in flight", "preempted in flight", "truncated"),
        *("truncated in flight", "trial kept", "trial taken back", "short of memory"),
        *("lent_slabs", "preemptions", "hits", "evictions", "shared", "copied"),
        *("background", "held", "ahead", "voided", "verified", "accepted", "looked_up"),
        *("reused", "given up", "replaced", "stood"),
    )
    assert {name: n for name in events if (n := Machine.seen[name]) < EXAMPLES // 20} == {}
