"""Who may run where the arena does not hold all; what is learned, and where that was wrong."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine._core import Scheduler

from .kinds import LARGE, SMALL

TEXT, DELIMITER, END = 0, 7, 9
Make = Callable[..., Scheduler]


class Load:
    """Requests that are alike: each end brings the next. Every ``step``-th token ends a step."""

    def __init__(self, scheduler: Scheduler, length: int, large: bool = False, step: int = 4):
        self.scheduler, self.length, self.large, self.step = scheduler, length, large, step
        self.ended = self.most = self.before = 0

    def add(self, count: int, prompt: int = 4, max_tokens: int = 56) -> None:
        for _ in range(count):
            self.scheduler.add([TEXT] * prompt, max_tokens=max_tokens, stop_ids=[END], reader=SMALL)

    def run(self, ends: int) -> None:
        """Until so many more have ended. ``most``: sequences in a tick since then."""
        until, self.most = self.ended + ends, 0
        while self.ended < until:
            moved = [self.tick(lane) for lane in (SMALL, LARGE)]
            self.most = max(self.most, *moved)
            assert any(moved), "nobody can move"

    def tick(self, lane: int) -> int:
        count = self.scheduler.plan(lane)
        if count:
            ids = self.scheduler.buffers(lane).ids[:count].tolist()
            self.scheduler.commit(lane, np.array([self.token(id) for id in ids], np.int32))
        for kind, id, _ in self.scheduler.take_events():
            if kind == 0:
                self.scheduler.route(id, LARGE if self.large else SMALL)
            else:
                self.scheduler.forget(id)
                self.ended += 1
                self.add(1)
        return count

    def token(self, id: int) -> int:
        written = self.scheduler.sequence(id).length - 4 + 1
        return END if written >= self.length else TEXT if written % self.step else DELIMITER


@pytest.fixture
def load(make_scheduler: Make) -> Callable[..., Load]:
    """An arena for ten requests of full length on the large model, or little more on both."""

    def make(length: int, large: bool = False, **changes: object) -> Load:
        shape = {"slabs": 160, "max_sequences": 64, "max_tick_tokens": 256, "max_context": 64}
        shape |= {"eager_admission": False} | changes
        made = Load(make_scheduler(**shape), length, large)
        made.add(60)
        return made

    return make


def test_lengths_are_learned(load: Callable[..., Load]) -> None:
    """Nothing is known at first but what requests ask for: 56 tokens. They write 8."""
    short = load(8, large=True)
    short.run(5)
    first = short.most
    short.run(200)
    short.run(50)
    assert short.most > 1.5 * first
    assert short.scheduler.counters()["suspended"] == 0


def test_what_was_learned_is_forgotten(load: Callable[..., Load]) -> None:
    """Answers get five times as long: fewer run at once, and little is computed twice."""
    learned, blind = load(8, large=True), load(8, large=True, eager_admission=True)
    for made in (learned, blind):
        made.run(250)
        made.before = made.most
        made.length = 40
        made.run(200)
        made.run(60)
    assert learned.most < 0.7 * learned.before
    twice = [sum(made.scheduler.counters()["recomputed"]) for made in (learned, blind)]
    assert twice[0] < twice[1] / 2


def test_handoffs_are_learned(load: Callable[..., Load]) -> None:
    """A request that is never handed over needs a tenth of the memory."""
    alone, both = load(40), load(40, large=True)
    for made in (alone, both):
        made.run(150)
        made.run(30)
    assert alone.most > 2 * both.most


def test_the_forecast_can_be_left_out(load: Callable[..., Load]) -> None:
    """Then all come in as soon as their prompts fit, and more of them are stopped on the way."""
    learned, blind = load(40, large=True), load(40, large=True, eager_admission=True)
    for made in (learned, blind):
        made.run(100)
    stopped = [made.scheduler.counters()["suspended"] for made in (learned, blind)]
    assert stopped[0] < stopped[1] / 3


def test_a_suspended_sequence_keeps_what_nobody_needs(make_scheduler: Make) -> None:
    """It stops, and goes on where it was once there is room: one block of it was needed."""
    scheduler = make_scheduler(slabs=6, slots=(9, 1), eager_admission=True)
    first, second = (scheduler.add([TEXT] * n, max_tokens=12) for n in (11, 8))
    for id in (first, second):
        scheduler.route(id, LARGE)
    for _ in range(2):
        assert scheduler.plan(LARGE) == 2  # three blocks each
        scheduler.commit(LARGE, np.array([TEXT, TEXT], np.int32))
    assert scheduler.plan(LARGE) == 1  # the first needs a fourth
    assert scheduler.sequence(second).suspended
    assert scheduler.sequence(second).computed == [0, 8]
    scheduler.commit(LARGE, np.array([TEXT], np.int32))
    scheduler.abort(first)
    assert scheduler.plan(LARGE) == 1
    assert not scheduler.sequence(second).suspended
    scheduler.commit(LARGE, np.array([TEXT], np.int32))
    assert scheduler.sequence(second).rows[LARGE, 4].tolist() == [1, 9]  # again: rows and keys
    counters = scheduler.counters()
    assert (counters["suspended"], counters["lost_rows"]) == (1, [0, 1])


def test_the_guard_lets_fewer_run_until_little_is_lost(make_scheduler: Make) -> None:
    """Eager admission has more run than the arena holds. Answers that fit bring the limit back."""
    scheduler = make_scheduler(
        slabs=120, max_sequences=64, max_tick_tokens=512, max_context=64, block_tokens=4
    )
    load = Load(scheduler, 52, large=True)
    load.add(60)
    while scheduler.limit == 64 and load.ended < 4000:
        load.run(20)
    assert scheduler.limit < 64 and scheduler.counters()["guarded"] > 0
    load.length = 2
    while scheduler.limit < 64 and load.ended < 200_000:
        load.run(500)
    assert scheduler.limit == 64
