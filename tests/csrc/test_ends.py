"""How the scheduler's sequences lose their place or end: preemption, abort, errors."""

from __future__ import annotations

import pytest

from .kinds import ABORT, DEADLINE, DISCARDED, ERROR, FINISHED, LARGE, NOBODY, SMALL
from .steps import BOTH, A, B, C, Make, commit, kinds, read, start, tick, write


def test_preemption_frees_everything(make_scheduler: Make) -> None:
    """An idle sequence gives up the KV of both models at once, and its loss is counted."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    write(scheduler, SMALL, A, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B)
    scheduler.preempt(id)
    assert scheduler.sequence(id).computed == [0, 0]
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 0)
    assert scheduler.counters()["lost_rows"] == [6, 7]
    write(scheduler, LARGE, C)
    assert scheduler.sequence(id).tokens.tolist()[5:] == [A, BOTH, B, C]


def test_preemption_in_flight_keeps_the_token(make_scheduler: Make) -> None:
    """The batch retires as planned; then the KV goes."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    scheduler.plan(SMALL)
    scheduler.preempt(id)
    assert scheduler.pool.live(SMALL) == 2
    commit(scheduler, SMALL, C)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist()[5:], after.computed) == ([C], [0, 0])
    assert scheduler.pool.live(SMALL) == 0


@pytest.mark.parametrize("routed", [False, True])
def test_abort_before_the_first_tick(make_scheduler: Make, routed: bool) -> None:
    """A waiting sequence leaves the queue."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL) if routed else scheduler.add([A], max_tokens=3)
    scheduler.take_events()
    scheduler.abort(id)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert (scheduler.sequence(id).finish, scheduler.waiting) == (ABORT, 0)
    assert scheduler.plan(SMALL) == 0


def test_abort_between_ticks(make_scheduler: Make) -> None:
    """An idle running sequence ends at once; a second abort is left alone."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    write(scheduler, SMALL, A)
    scheduler.abort(id)
    scheduler.abort(id)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert (scheduler.running, scheduler.pool.live(SMALL)) == (0, 0)


def test_abort_in_flight_waits_for_the_commit(make_scheduler: Make) -> None:
    """The memory stays until the batch retires, and the sampled token is dropped."""
    scheduler = make_scheduler()
    id, other = start(scheduler, 3, SMALL), start(scheduler, 3, SMALL)
    scheduler.plan(SMALL)
    scheduler.abort(id)
    assert scheduler.pool.live(SMALL) == 2
    assert scheduler.take_events() == []
    commit(scheduler, SMALL, B, C)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    after = scheduler.sequence(id)
    assert (after.length, after.finish, kinds(after, SMALL)[DISCARDED]) == (3, ABORT, (1, 3))
    assert scheduler.sequence(other).tokens.tolist() == [A, A, A, C]


@pytest.mark.parametrize(("deadline", "reason"), [(False, ABORT), (True, DEADLINE)])
def test_an_abort_goes_before_a_failure(make_scheduler: Make, deadline: bool, reason: int) -> None:
    """What ended a sequence first is why it ended, whatever becomes of the batch in flight."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    scheduler.plan(SMALL)
    scheduler.abort(id, deadline=deadline)
    scheduler.fail(SMALL)
    assert scheduler.sequence(id).finish == reason
    scheduler.check_integrity()


def test_a_failure_frees_what_was_not_written(make_scheduler: Make) -> None:
    """The sequence lives on while the other lane reads it along; blocks without rows do not."""
    scheduler = make_scheduler(background=(0, 1))
    id = start(scheduler, 9, SMALL)
    assert (scheduler.plan(SMALL), scheduler.plan(LARGE)) == (1, 1)
    scheduler.fail(SMALL)
    scheduler.check_integrity()
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 2)
    commit(scheduler, LARGE, -1)
    assert scheduler.sequence(id).finish == ERROR


def test_abort_while_a_route_is_awaited(make_scheduler: Make) -> None:
    """The candidate is counted as discarded, and a late route is refused."""
    scheduler = make_scheduler()
    id = read(scheduler, 3)
    tick(scheduler, SMALL, B)
    scheduler.abort(id)
    assert kinds(scheduler.sequence(id), SMALL)[DISCARDED] == (1, 3)
    with pytest.raises(RuntimeError, match="does not await"):
        scheduler.route(id, SMALL)


def test_forget(make_scheduler: Make) -> None:
    """Only finished sequences can be forgotten; then the id is dead."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    with pytest.raises(RuntimeError, match="not finished"):
        scheduler.forget(id)
    scheduler.abort(id)
    scheduler.forget(id)
    for call in (scheduler.sequence, scheduler.forget, scheduler.abort, scheduler.preempt):
        with pytest.raises(IndexError, match="unknown sequence"):
            call(id)
    assert start(scheduler, 3, SMALL) != id


def test_a_copy_outlives_forget(make_scheduler: Make) -> None:
    """What sequence() returned is the caller's."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    scheduler.abort(id)
    copy = scheduler.sequence(id)
    scheduler.forget(id)
    assert (copy.length, copy.finish) == (3, ABORT)


def test_finished_sequences_are_not_truncated(make_scheduler: Make) -> None:
    """The end is final."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    scheduler.abort(id)
    with pytest.raises(RuntimeError, match="finished"):
        scheduler.truncate(id, 3)


@pytest.mark.parametrize("reader", [NOBODY, SMALL])
def test_unusable_logits_end_one_request(make_scheduler: Make, reader: int) -> None:
    """Its neighbours do not notice."""
    scheduler = make_scheduler()
    one = start(scheduler, 3, SMALL) if reader == NOBODY else read(scheduler, 3)
    two = start(scheduler, 3, SMALL)
    scheduler.take_events()
    tick(scheduler, SMALL, -1, C)
    assert scheduler.take_events() == [(FINISHED, one, -1)]
    assert scheduler.sequence(one).finish == ERROR
    assert kinds(scheduler.sequence(one), SMALL)[DISCARDED] == (1, 3)
    assert scheduler.sequence(two).tokens.tolist() == [A, A, A, C]


def test_tokens_of_unsampled_rows_are_ignored(make_scheduler: Make) -> None:
    """A prefill chunk samples nothing: whatever stands in its place does not matter."""
    scheduler = make_scheduler(max_tick_tokens=9)
    id = start(scheduler, 12, SMALL)
    tick(scheduler, SMALL, -1)
    tick(scheduler, SMALL, B)
    assert scheduler.sequence(id).tokens.tolist() == [A] * 12 + [B]
