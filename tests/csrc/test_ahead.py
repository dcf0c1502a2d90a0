"""Plans that are made while the last one is in flight: one behaviour a test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine._core import Plan, Scheduler

from .kinds import DECIDE, DISCARDED, FINISHED, LARGE, SMALL

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
    assert scheduler.plan(SMALL, ahead=True) == 0  # it may not go past its own token
    commit(scheduler, SMALL, B)
    assert scheduler.sequence(id).rows[SMALL, :, 0].tolist() == [24, 0, 1, *[0] * 4]


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
    """The small model reads a boundary that a model has written, a row after its last one is
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
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    return id


@pytest.mark.parametrize("writer", [SMALL, LARGE])
@pytest.mark.parametrize("answer", [SMALL, LARGE])
def test_who_goes_on_finds_its_row(make_scheduler: Make, writer: int, answer: int) -> None:
    """The candidate's row, if the reader goes on; that after the delimiter, if its writer does."""
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
    other lane only after the fence."""
    scheduler = make_scheduler(slabs=1, slots=(2, 2), max_context=8)
    id = start(scheduler, SMALL, prompt=3, max_tokens=5, stop_ids=[5])
    for _ in range(2):
        assert scheduler.plan(SMALL, ahead=True) == 1
    commit(scheduler, SMALL, 5)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert scheduler.sequence(id).rows[SMALL, DISCARDED].tolist() == [1, 4]
    scheduler.forget(id)
    assert scheduler.pool.live(SMALL) == 0
    start(scheduler, LARGE, max_tokens=5)
    assert scheduler.plan(LARGE) == 0
    commit(scheduler, SMALL, B)
    assert scheduler.plan(LARGE) == 1


def test_what_a_void_row_keeps_from_the_other_lane_stays_cached(make_scheduler: Make) -> None:
    """Dropped now it would bring no block: the lane has no use for it before that row retires."""
    scheduler = make_scheduler(slabs=3, slots=(1, 1), max_context=8, prefix_cache=True)
    first = start(scheduler, SMALL, prompt=4, max_tokens=4)
    scheduler.plan(SMALL)
    commit(scheduler, SMALL, B)
    second = start(scheduler, LARGE, prompt=4, max_tokens=4, stop_ids=[5])
    for _ in range(2):
        assert scheduler.plan(LARGE, ahead=True) == 1
    commit(scheduler, LARGE, 5)
    assert scheduler.sequence(second).ahead == [0, 0]
    assert scheduler.pool.cached(LARGE) == 1
    assert [scheduler.pool.reclaimable(lane) for lane in (SMALL, LARGE)] == [0, 1]
    assert scheduler.plan(SMALL) == 0
    assert scheduler.buffers(SMALL).short_of_memory
    commit(scheduler, LARGE, B)
    assert scheduler.plan(SMALL) == 1
    assert scheduler.sequence(first).in_flight == [1, 0]
    assert scheduler.pool.cached(LARGE) == 1
    assert scheduler.counters()["evictions"] == [0, 0]


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
    assert scheduler.take_events() == [(FINISHED, one, -1)]
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
