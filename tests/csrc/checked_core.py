"""A core beside its model, and everything that can be seen of both compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize

from engine._core import Scheduler, Sequence

from .drawn_shapes import Dice, dice, draw_shape
from .kinds import LARGE, OVER, SMALL
from .model_scheduler import SchedulerModel
from .model_sequence import SequenceModel
from .model_text import DELIMITERS, TOKEN_BYTES, Request


class CheckedCore(RuleBasedStateMachine):
    """A core and its model, built alike; after every call they are compared."""

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
            max_drawn_rows=shape.drawn,
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

    def alive(self) -> list[SequenceModel]:
        return [s for s in self.model.sequences.values() if s.phase != OVER]

    def look(self) -> dict[int, Sequence]:
        return {id: self.core.sequence(id) for id in self.model.sequences}

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """One call of the core; after it everything that can be seen is as the model says."""
        self.sound = False  # until it has come to a good end
        CheckedCore.operations += 1
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
        assert self.counters["lost_rows"] == model.lost, (self.counters["lost_rows"], model.lost)

    def send(self, request: Request, samples: int = 1) -> int:
        arguments = dict(vars(request))
        return self.core.add(arguments.pop("prompt"), **arguments, samples=samples)

    def refused(self, error: type[Exception], message: str, call: Callable, *arguments) -> None:
        with pytest.raises(error, match=message):
            call(*arguments)
