"""Which sequences get memory when the scheduler has too little of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine._core import Scheduler

from .kinds import DECIDE, LARGE, LENGTH, NOBODY, OVER, RUNNING, SMALL
from .steps import BOTH, A, B, Make, commit, spans, start, tick, write


def test_a_sequence_may_take_its_own_idle_memory(make_scheduler: Make) -> None:
    """The KV of the model that it left makes room for the one that it runs."""
    scheduler = make_scheduler(slabs=2)
    id = start(scheduler, 5, SMALL, max_tokens=3)
    write(scheduler, SMALL, A, BOTH)
    scheduler.route(id, LARGE)  # its two large blocks are the whole arena
    write(scheduler, LARGE, B)
    assert scheduler.sequence(id).finish == LENGTH
    assert scheduler.counters()["lost_rows"] == [6, 0]


def test_later_sequences_give_way(make_scheduler: Make) -> None:
    """The newest is stopped for an earlier one, and loses no more than that needs."""
    scheduler = make_scheduler(slabs=4)
    first, second = (start(scheduler, 7, LARGE, max_tokens=9) for _ in range(2))
    tick(scheduler, LARGE, B, B)
    tick(scheduler, LARGE, B, B)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]  # needs its third block
    assert scheduler.sequence(second).suspended and not scheduler.sequence(first).suspended
    assert scheduler.sequence(first).computed == [0, 9]
    assert scheduler.sequence(second).computed == [0, 4]
    counters = scheduler.counters()
    assert (counters["preemptions"], counters["lost_rows"]) == (1, [0, 4])


def test_earlier_sequences_keep_what_they_run_on(make_scheduler: Make) -> None:
    """A later one gets no memory from them: it waits."""
    scheduler = make_scheduler(slabs=4)
    first, second = (start(scheduler, n, LARGE, max_tokens=6) for n in (10, 3))
    tick(scheduler, LARGE, B, B)
    tick(scheduler, LARGE, B, B)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]  # the second needs a second block
    assert scheduler.buffers(LARGE).short_of_memory
    assert scheduler.sequence(first).computed == [0, 12]
    assert scheduler.sequence(second).computed == [0, 4]


def test_the_leader_takes_idle_memory(make_scheduler: Make) -> None:
    """KV of a model that no lane works on goes to the first in the order, its own included."""
    scheduler = make_scheduler(slabs=2)
    first, second = (start(scheduler, n, SMALL, max_tokens=5) for n in (3, 2))
    for token in (A, BOTH):
        tick(scheduler, SMALL, token, token)
    for id in (first, second):
        scheduler.route(id, LARGE)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]  # needs both slabs
    assert scheduler.sequence(first).computed == [0, 5]
    assert scheduler.sequence(second).suspended
    assert scheduler.counters()["lent_slabs"] == 1
    assert scheduler.counters()["lost_rows"] == [4 + 3, 0]


def test_others_leave_idle_memory_alone(make_scheduler: Make) -> None:
    """It is wanted again at the next handoff: who is not the first waits."""
    scheduler = make_scheduler(slabs=3)
    first, second = (start(scheduler, n, SMALL, max_tokens=6) for n in (3, 2))
    for token in (A, BOTH):
        tick(scheduler, SMALL, token, token)
    for id in (first, second):
        scheduler.route(id, LARGE)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]
    assert scheduler.buffers(LARGE).short_of_memory
    assert scheduler.sequence(second).computed == [3, 0]
    assert scheduler.counters()["lost_rows"] == [0, 0]


@pytest.mark.parametrize("rest", [True, False])
def test_what_is_never_wanted_again_goes_first(make_scheduler: Make, rest: bool) -> None:
    """KV of the model that a decision for the rest has left, before anybody is stopped."""
    scheduler = make_scheduler(slabs=3)
    first, second, third = (scheduler.add([A] * 2, max_tokens=9) for _ in range(3))
    scheduler.route(second, SMALL)
    for token in (A, BOTH):
        tick(scheduler, SMALL, token)
    for id in (first, second, third):
        scheduler.route(id, LARGE, rest)
    scheduler.plan(LARGE)
    assert list(spans(scheduler.buffers(LARGE))) == [first, second, third][: 3 if rest else 2]
    assert scheduler.counters()["lost_rows"] == [3 if rest else 0, 0]


def test_memory_in_flight_is_awaited(make_scheduler: Make) -> None:
    """The lane plans nothing until the other commits; what comes free is then kept for it."""
    scheduler = make_scheduler(slabs=4)
    first = start(scheduler, 3, SMALL, max_tokens=5)
    second = start(scheduler, 10, LARGE, max_tokens=5)
    for _ in range(3):
        tick(scheduler, LARGE, B)
    assert scheduler.plan(LARGE) == 1  # takes every slab
    assert scheduler.plan(SMALL) == 0
    assert scheduler.buffers(SMALL).short_of_memory
    commit(scheduler, LARGE, B)
    assert scheduler.sequence(second).computed == [0, 12]
    assert scheduler.plan(LARGE) == 0  # the slab is promised to the other lane
    assert list(spans(tick(scheduler, SMALL, B))) == [first]
    assert scheduler.counters()["lent_slabs"] == 1


def test_a_promise_to_nobody_is_dropped(make_scheduler: Make) -> None:
    """If whom memory was kept for is gone, its lane's next plan gives the memory back."""
    scheduler = make_scheduler(slabs=4)
    first = start(scheduler, 3, SMALL, max_tokens=5)
    second = start(scheduler, 10, LARGE, max_tokens=5)
    for _ in range(3):
        tick(scheduler, LARGE, B)
    assert (scheduler.plan(LARGE), scheduler.plan(SMALL)) == (1, 0)
    scheduler.abort(first)
    commit(scheduler, LARGE, B)
    assert scheduler.plan(LARGE) == 0
    assert scheduler.plan(SMALL) == 0
    assert list(spans(tick(scheduler, LARGE, B))) == [second]


@pytest.mark.parametrize("costs", [(1.0, 1000.0), (1000.0, 1.0)])
def test_the_newest_is_stopped_first(make_scheduler: Make, costs: tuple[float, float]) -> None:
    """Whatever its rows cost: who came first is finished first."""
    scheduler = make_scheduler(slabs=3, slots=(2, 1), recompute_cost=costs)
    first, second, third = (
        start(scheduler, n, model, max_tokens=5)
        for n, model in ((7, SMALL), (3, LARGE), (7, SMALL))
    )
    assert (scheduler.plan(SMALL), scheduler.plan(LARGE)) == (2, 1)
    commit(scheduler, SMALL, B, B), commit(scheduler, LARGE, B)
    tick(scheduler, SMALL, B, B)
    scheduler.plan(SMALL)  # the first needs its third block
    assert [scheduler.sequence(id).suspended for id in (first, second, third)] == [0, 0, 1]
    assert [rows > 0 for rows in scheduler.counters()["lost_rows"]] == [True, False]


def drain(scheduler: Scheduler, ids: list[int], watch: Callable[[], None]) -> None:
    """Alternate lanes and models until every sequence is finished."""
    turns = dict.fromkeys(ids, 0)
    for _ in range(2000):
        progressed = False
        for lane in (SMALL, LARGE):
            for kind, id, _ in scheduler.take_events():
                if kind == DECIDE:
                    scheduler.route(id, (turns[id] + id) % 2)
                    turns[id] += 1
            if count := scheduler.plan(lane):
                tokens = [BOTH if length % 3 == 0 else A for length in _lengths(scheduler, lane)]
                commit(scheduler, lane, *tokens[:count])
                progressed = True
            scheduler.check_integrity()
            watch()
        if all(scheduler.sequence(id).phase == OVER for id in ids):
            return
        assert progressed, "no lane can move"
    raise AssertionError("the sequences do not come to an end")


def _lengths(scheduler: Scheduler, lane: int) -> list[int]:
    plan = scheduler.buffers(lane)
    return plan.contexts[: plan.sequences].tolist()


@pytest.mark.parametrize("slots", [(9, 1), (7, 2), (1, 1)])
@pytest.mark.parametrize("reader", [NOBODY, SMALL])
def test_an_arena_for_one_serves_many(
    make_scheduler: Make, slots: tuple[int, int], reader: int
) -> None:
    """Every request as long as the arena allows: all finish, one way or the other."""
    scheduler = make_scheduler(slabs=4, slots=slots)
    holds = 16 * min(slots)
    ids = [scheduler.add([A] * (3 + i), max_tokens=holds - 3 - i, reader=reader) for i in range(6)]
    drain(scheduler, ids, lambda: None)
    assert [scheduler.sequence(id).finish for id in ids] == [LENGTH] * 6
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 0)
    assert scheduler.pool.free_slabs == 4


def test_the_first_sequence_never_loses_what_it_runs_on(make_scheduler: Make) -> None:
    """Under constant pressure its computed count on its active model only grows."""
    scheduler = make_scheduler(slabs=6)
    ids = [scheduler.add([A] * (2 + i % 3), max_tokens=18, reader=SMALL) for i in range(8)]
    last: dict[int, tuple[int, int]] = {}

    def watch() -> None:
        live = [id for id in ids if scheduler.sequence(id).phase == RUNNING]
        if not live:
            return
        first = scheduler.sequence(live[0])
        active, computed = first.active, first.computed[first.active]
        before = last.get(first.id)
        if before is not None and before[0] == active:
            assert computed >= before[1]
        last.clear()
        last[first.id] = (active, computed)

    drain(scheduler, ids, watch)
    counters = scheduler.counters()
    assert counters["preemptions"] > 0
    assert counters["lent_slabs"] > 0
