"""The scheduler's whole public face against a slow, obvious model of it.

A hypothesis state machine calls the core in any order, both lanes in flight at once, and compares
after every call everything that can be seen with what the model says (model_*.py beside this file).
A call that makes no sense must fail as documented and change nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from engine._core import Scheduler, Sequence

from .model_plan import Judge, View
from .model_scheduler import SchedulerModel, Shape
from .model_sequence import LARGE, NOBODY, OVER, SMALL, SequenceModel
from .model_text import ABORT, DEADLINE, DELIMITERS, PADDING, TOKEN_BYTES, WHOLE, Request
from .model_turns import Lanes

EXAMPLES = int(os.environ.get("STEER_MACHINE_EXAMPLES", "500"))
SHRINK = bool(os.environ.get("STEER_MACHINE_SHRINK"))
RULES = 100  # of an example, at most
OPERATIONS = 200  # of an example on average, at least: 100,000 in all
WORDS = (0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, PADDING, 0, 1, 3, 4)
ALIVE = 9  # sequences at once
UNKNOWN = 10**6  # an id that no sequence has
LANES = st.sampled_from((SMALL, LARGE))


class Dice:
    """Choices from bytes: zeros give the simplest of everything, and bytes shrink well."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def below(self, limit: int) -> int:
        byte = self.data[self.at % len(self.data)]
        self.at += 1
        return byte % limit

    def pick(self, *options):
        return options[self.below(len(options))]


def dice(size: int) -> st.SearchStrategy[Dice]:
    return st.binary(min_size=size, max_size=size).map(Dice)


def draw_shape(dice: Dice) -> Shape:
    size, slots = dice.pick(4, 4, 3, 1, 8), dice.pick((9, 1), (7, 2))
    context, sequences = dice.pick(48, 24, 64), dice.pick(7, 4, 2, 1)
    one = -(-context // (size * min(slots)))  # slabs that hold one request of full length
    ample = 2 * (sequences + 1) * -(-context // size)
    return Shape(
        slabs=dice.pick(ample, one, one + 1, one + 3, max(1, one - 2)),
        slots=slots,
        size=size,
        context=context,
        sequences=sequences,
        queue=dice.pick(0, 0, 4),
        budget=sequences + dice.pick(57, 1, 9),
        prefix_cache=dice.pick(False, True),
        background=dice.pick((0, 0), (1, 0), (0, 1), (2, 5), (1, 1)),
        lanes=Lanes(
            lane_policy=dice.pick("latency", "weighted", "throughput", "auto"),
            gather=dice.pick(0, 1, 3),
            hold_ticks=dice.pick(32, 1, 4),
            automatic_from=dice.pick(3, 0, 1),
            tick_cost=dice.pick((1.0, 1.0), (1.0, 6.0)),
            lane_weight=dice.pick((1.0, 1.0), (1.0, 3.0)),
        ),
    )


def draw_request(dice: Dice, shape: Shape) -> Request:
    longest = min(shape.context, shape.holds)
    prompt = [dice.pick(0, 0, 1, 2, 3, 4) for _ in range(1 + dice.below(min(12, longest - 1)))]
    if shape.prefix_cache and dice.below(4):  # beginnings in common
        prompt = ([1, 1, 2, 0, 3, 1, 2, 2] * 2)[: len(prompt)]
    room = longest - len(prompt)
    max_tokens = dice.pick(min(6, room), room, 1 + dice.below(room), 1 + dice.below(room))
    reader = dice.pick(NOBODY, SMALL, SMALL, LARGE)
    trial = min(dice.pick(0, 0, 1, 2, 5, WHOLE), max_tokens) if reader != NOBODY else 0
    think_end = dice.pick([], [], [0, 1], [0, 0], [4], [2, 3, 7])
    return Request(
        prompt=prompt,
        max_tokens=max_tokens,
        stop_ids=dice.pick([], [7], [7, 5]),
        reader=reader,
        priority=dice.pick(0, 0, 0, -1, 1),
        settle_at_once=dice.pick(True, False),
        stop_strings=dice.pick((), (), (b"ab\n",), (b"cc", b"bab"), (b"\n\nb", b"a\n")),
        min_tokens=dice.pick(0, 0, 1, 4, 9),
        max_step_tokens=dice.pick(0, 0, 1, 3, 5),
        trial_tokens=trial,
        think_end=think_end,
        think_closed=dice.pick(False, False, False, True),
        max_think_tokens=dice.pick(0, 1, 3, 9) if think_end else 0,
        max_repeats=dice.pick(0, 0, 2, 9),
        ahead=dice.pick(True, True, True, False),
    )


def nonsense(shape: Shape, prompt: int) -> list[tuple[dict, str]]:
    """Fields that make a request with so long a prompt impossible, and what is said to them."""
    too_long = "exceed the context" if shape.context <= shape.holds else "the arena holds"
    over = min(shape.context, shape.holds) - prompt + 1
    never = [({"samples": shape.queue + 1}, "can never be queued")] if shape.queue else []
    return [
        ({"prompt": []}, "prompt is empty"),
        ({"max_tokens": 0, "trial_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": over}, too_long),
        ({"reader": 2}, "reader must be"),
        ({"reader": -2}, "reader must be"),
        ({"min_tokens": -1}, "must be 0 or more"),
        ({"max_step_tokens": -1}, "must be 0 or more"),
        ({"max_think_tokens": -1}, "must be 0 or more"),
        ({"max_think_tokens": 3, "think_end": []}, "needs the tokens"),
        ({"max_repeats": 1}, "at least 2"),
        ({"max_repeats": -1}, "at least 2"),
        ({"max_tokens": 1, "reader": SMALL, "trial_tokens": 2}, "a trial must be"),
        ({"reader": SMALL, "trial_tokens": -2}, "a trial must be"),
        ({"reader": NOBODY, "trial_tokens": 1}, "needs a reader"),
        ({"samples": 0}, "samples must be"),
        ({"stop_strings": [b"a", b""]}, "must not be empty"),
        *never,
    ]


class Machine(RuleBasedStateMachine):
    operations = 0  # of all examples
    seen: ClassVar[Counter[str]] = Counter()

    @initialize(dice=dice(24))
    def build(self, dice: Dice) -> None:
        self.shape = shape = draw_shape(dice)
        self.core = Scheduler(
            slabs=shape.slabs,
            slots=shape.slots,
            block_tokens=shape.size,
            max_context=shape.context,
            max_sequences=shape.sequences,
            max_waiting=shape.queue,
            max_tick_tokens=shape.budget,
            recompute_cost=dice.pick((1.0, 15.0), (1.0, 1.0), (1.0, 0.1)),
            prefix_cache=shape.prefix_cache,
            eager_admission=dice.pick(True, False),
            background=shape.background,
            delimiters=DELIMITERS,
            token_bytes=TOKEN_BYTES,
            **vars(shape.lanes),
        )
        self.model = SchedulerModel(shape)
        self.counters = self.core.counters()
        self.booked = [[0, 0], [0, 0]]  # rows and keys of forgotten sequences, by lane
        self.idle = [False, False]  # lanes that had nothing to plan, and nothing has happened since
        self.sound = True
        self.eager = dice.pick(0, 2, 4)  # how often a lane plans ahead where it can

    # -- requests

    @rule(dice=dice(40))
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

    def send(self, request: Request, samples: int = 1) -> int:
        arguments = dict(vars(request))
        return self.core.add(arguments.pop("prompt"), **arguments, samples=samples)

    @rule(dice=dice(41))
    def add_nonsense(self, dice: Dice) -> None:
        """One field of a good request is wrong; nothing is queued."""
        fields = dict(vars(draw_request(dice, self.shape)), max_repeats=0, trial_tokens=0)
        wrong, message = dice.pick(*nonsense(self.shape, len(fields["prompt"])))
        samples = wrong.pop("samples", 1)
        with self.operation("nonsense"):
            self.refused(ValueError, message, self.send, Request(**(fields | wrong)), samples)

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
        tokens = [self.draw(span.sequence, span.samples, dice) for span in flight.spans]
        with self.operation("commit"):
            self.core.commit(lane, np.array(tokens, np.int32))
            self.model.commit(lane, tokens, self.look())

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
            self.model.fail(lane)

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

    # -- calls that make no sense

    @rule(dice=dice(5))
    def wrong_call(self, dice: Dice) -> None:
        everyone = list(self.model.sequences.values())
        kinds = [self.wrong_ids, self.wrong_lanes]
        kinds += [lambda dice: self.wrong_about(dice.pick(*everyone))] if everyone else []
        error, message, call, arguments = dice.pick(*dice.pick(*kinds)(dice))
        with self.operation("wrong call"):
            self.refused(error, message, call, *arguments)

    def refused(self, error: type[Exception], message: str, call: Callable, *arguments) -> None:
        with pytest.raises(error, match=message):
            call(*arguments)

    def wrong_ids(self, dice: Dice) -> list[tuple]:
        core, gone = self.core, dice.pick(-1, 0, UNKNOWN)
        return [
            (IndexError, "unknown sequence", call, (gone, *arguments))
            for call, *arguments in (
                (core.sequence,),
                (core.forget,),
                (core.abort,),
                (core.preempt,),
                (core.route, SMALL),
                (core.truncate, 1),
                (core.settle, 1),
            )
        ]

    def wrong_lanes(self, dice: Dice) -> list[tuple]:
        core, lane, one = self.core, dice.below(2), np.zeros(1, np.int32)
        calls = [(IndexError, "at", call, (2,)) for call in (core.plan, core.fail, core.buffers)]
        calls.append((IndexError, "at", core.commit, (-1, one)))
        flights = self.model.flights[lane]
        if not flights:
            calls.append((RuntimeError, "no plan in flight", core.fail, (lane,)))
            calls.append((RuntimeError, "no plan in flight", core.commit, (lane, one)))
        else:
            more = np.zeros(len(flights[0].spans) + 1, np.int32)
            calls.append((RuntimeError, "commit first", core.plan, (lane, len(flights) == 2)))
            calls.append((ValueError, "one token a sequence", core.commit, (lane, more)))
            calls.append((ValueError, "one dimension", core.commit, (lane, more[None])))
        return calls

    def wrong_about(self, s: SequenceModel) -> list[tuple]:
        core = self.core
        calls = [
            (ValueError, "model must be", core.route, (s.id, 2)),
            (ValueError, "model must be", core.route, (s.id, -1)),
            (ValueError, "settled must grow", core.settle, (s.id, s.settled - 1)),
            (ValueError, "settled must grow", core.settle, (s.id, s.stands + 1)),
        ]
        if not s.awaits_route:
            calls.append((RuntimeError, "does not await", core.route, (s.id, SMALL)))
        if s.phase == OVER:
            calls.append((RuntimeError, "is finished", core.truncate, (s.id, s.length)))
        else:
            calls.append((RuntimeError, "not finished", core.forget, (s.id,)))
            for length in (s.settled - 1, s.length + 1):
                calls.append((ValueError, "cannot truncate", core.truncate, (s.id, length)))
        return calls

    # -- after every call

    def alive(self) -> list[SequenceModel]:
        return [s for s in self.model.sequences.values() if s.phase != OVER]

    def look(self) -> dict[int, Sequence]:
        return {id: self.core.sequence(id) for id in self.model.sequences}

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """One call of the core; after it everything that can be seen is as the model says."""
        self.sound = False  # until it has come to a good end
        Machine.operations += 1
        self.seen[name] += 1
        if name != "plan":
            self.idle = [False, False]
        yield
        self.check()
        self.sound = True

    def check(self) -> None:
        core, model = self.core, self.model
        core.check_integrity()
        for id, seen in self.look().items():
            wrong = model.sequences[id].differences(seen)
            assert not wrong, f"sequence {id} (the core, the model): {wrong}"
        assert (core.running, core.waiting) == (len(model.running), len(model.waiting))
        self.check_counters()
        for lane in (SMALL, LARGE):
            flying = [core.buffers(lane, i).in_flight for i in (0, 1)]
            assert sum(flying) == len(model.flights[lane])
            known, unknown = model.live(lane)
            assert len(known) <= core.pool.live(lane) <= len(known) + unknown
            if model.cache is not None:
                cached = set(model.cache[lane].values()) - known
                assert core.pool.cached(lane) == len(cached)

    def check_counters(self) -> None:
        self.counters, model = self.core.counters(), self.model
        if model.may_have_lost:
            model.lost, model.may_have_lost = self.counters["lost_rows"], False
        names = (
            "admitted",
            "ticks",
            "held",
            "hits",
            "shared",
            "copied",
            "background",
            "ahead",
            "voided",
        )
        wrong = {n: self.counters[n] for n in names if self.counters[n] != getattr(model, n)}
        assert not wrong, wrong
        assert self.counters["lost_rows"] == model.lost

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
        for _ in range(2000):
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
    """Always the same examples; their number grows with STEER_MACHINE_EXAMPLES.

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
        "fail",
        "finish 1",
        "finish 2",
        "finish 3",
        "finish 4",
        "finish 5",
        "finish 6",
        "forced",
        "aborted in flight",
        "preempted in flight",
        "truncated",
        "truncated in flight",
        "trial kept",
        "trial taken back",
        "short of memory",
        "lent_slabs",
        "preemptions",
        "hits",
        "evictions",
        "shared",
        "copied",
        "background",
        "held",
        "ahead",
        "voided",
    )
    assert {name: n for name in events if (n := Machine.seen[name]) < EXAMPLES // 10} == {}
