"""Tokens of the scheduler's sequences that are taken back, and those that are settled."""

from __future__ import annotations

import pytest

from .kinds import CATCHUP, DECIDE, DISCARDED, LARGE, NOBODY, PROMPT, SAMPLED, SMALL
from .steps import BOTH, NEWLINE, A, B, C, Make, commit, kinds, read, spans, start, tick, write


def test_truncation_takes_tokens_back(make_scheduler: Make) -> None:
    """The row of the last kept token is computed again; the draws that follow are new ones."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    scheduler.truncate(id, 4)
    assert scheduler.sequence(id).attempt == 1
    assert scheduler.plan(SMALL) == 1
    plan = scheduler.buffers(SMALL)
    assert (spans(plan), plan.attempts[0]) == ({id: [3]}, 1)
    commit(scheduler, SMALL, C)
    assert scheduler.sequence(id).tokens.tolist() == [A, A, A, A, C]


def test_truncation_to_the_length_changes_nothing(make_scheduler: Make) -> None:
    """An idle sequence has nothing to take back."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A)
    scheduler.truncate(id, 4)
    assert (scheduler.sequence(id).attempt, scheduler.sequence(id).computed) == (0, [3, 0])


def test_rows_of_tokens_taken_back_are_discarded(make_scheduler: Make) -> None:
    """Each model's books show what it sampled in vain, also across steps."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, BOTH)  # sampled at 3 and 4 keys
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B, C)  # at 5 and 6
    scheduler.truncate(id, 4)
    after = scheduler.sequence(id)
    assert kinds(after, SMALL) == {PROMPT: (2, 3), SAMPLED: (1, 3), DISCARDED: (1, 4)}
    assert kinds(after, LARGE) == {PROMPT: (3, 6), CATCHUP: (1, 4), DISCARDED: (2, 5 + 6)}


def test_truncation_restores_the_detector(make_scheduler: Make) -> None:
    """A newline that was taken back is forgotten, one that was kept is not."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, NEWLINE)
    scheduler.truncate(id, 3)
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.take_events() == []
    write(scheduler, SMALL, A)
    scheduler.truncate(id, 4)
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.take_events() == [(DECIDE, id, -1)]


def test_truncation_forgets_what_the_step_held(make_scheduler: Make) -> None:
    """Text that was taken back does not make a step of delimiters a boundary."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, settle_at_once=False)
    write(scheduler, SMALL, NEWLINE, A)
    scheduler.truncate(id, 3)
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.take_events() == []


def test_truncation_into_an_earlier_step(make_scheduler: Make) -> None:
    """The model that wrote that step goes on with it."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B)
    scheduler.truncate(id, 3)
    after = scheduler.sequence(id)
    assert (after.active, after.steps, after.awaits_route) == (SMALL, [(2, SMALL)], False)
    assert spans(tick(scheduler, SMALL, BOTH)) == {id: [2]}
    assert scheduler.sequence(id).awaits_route


@pytest.mark.parametrize("reader", [NOBODY, SMALL])
def test_truncation_to_a_step_asks_again(make_scheduler: Make, reader: int) -> None:
    """Where the step began the reader, if any, reads again; then the sequence awaits a route."""
    scheduler = make_scheduler()
    id = scheduler.add([A, A], max_tokens=9, reader=reader, settle_at_once=False)
    if reader == SMALL:
        tick(scheduler, SMALL, A)
    scheduler.route(id, SMALL)
    while scheduler.sequence(id).length < 5:
        tick(scheduler, SMALL, B)
    scheduler.take_events()
    scheduler.truncate(id, 2)
    if reader == SMALL:
        assert scheduler.take_events() == []
        tick(scheduler, SMALL, A)
    assert scheduler.take_events() == [(DECIDE, id, -1 if reader == NOBODY else 0)]
    assert scheduler.sequence(id).candidate == (-1 if reader == NOBODY else A)
    assert scheduler.sequence(id).steps == []
    scheduler.route(id, LARGE)
    tick(scheduler, LARGE, C)
    assert scheduler.sequence(id).tokens.tolist() == [A, A, C]


def test_truncation_drops_a_candidate(make_scheduler: Make) -> None:
    """A decision that is pending at a boundary past the cut is off."""
    scheduler = make_scheduler()
    id = read(scheduler, 2, settle_at_once=False)
    tick(scheduler, SMALL, A)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, BOTH, C)
    assert scheduler.sequence(id).candidate == C
    scheduler.truncate(id, 3)
    after = scheduler.sequence(id)
    assert (after.awaits_route, after.candidate) == (False, -1)
    assert kinds(after, SMALL)[DISCARDED] == (2, 3 + 4)  # the boundary token and the candidate


@pytest.mark.parametrize("length", [2, 4, 7])
def test_settled_tokens_stay(make_scheduler: Make, length: int) -> None:
    """Neither the prompt nor what was settled is taken back, nor more than there is."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    assert scheduler.sequence(id).settled == 3
    scheduler.settle(id, 5)
    with pytest.raises(ValueError, match="cannot truncate"):
        scheduler.truncate(id, length)
    scheduler.truncate(id, 5)


@pytest.mark.parametrize("length", [3, 7])
def test_settled_grows_within_the_text(make_scheduler: Make, length: int) -> None:
    """It neither shrinks nor runs ahead."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    scheduler.settle(id, 4)
    with pytest.raises(ValueError, match="settled"):
        scheduler.settle(id, length)


def test_tokens_settle_at_once_by_default(make_scheduler: Make) -> None:
    """Without the wish to take back there is nothing that could be."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    write(scheduler, SMALL, A, B)
    assert scheduler.sequence(id).settled == 5
    with pytest.raises(ValueError, match="settled"):
        scheduler.truncate(id, 4)


def test_truncation_in_flight_waits_for_the_commit(make_scheduler: Make) -> None:
    """The batch retires, its token is dropped, then the text is cut; the shortest cut wins."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    scheduler.plan(SMALL)
    for length in (5, 4, 5):
        scheduler.truncate(id, length)
    assert scheduler.sequence(id).length == 6
    commit(scheduler, SMALL, C)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.attempt) == ([A, A, A, A], 1)
    assert kinds(after, SMALL)[DISCARDED] == (3, 4 + 5 + 6)
    assert spans(tick(scheduler, SMALL, B)) == {id: [3]}


def test_truncation_in_flight_to_the_length_changes_nothing(make_scheduler: Make) -> None:
    """There is no token to take back yet: the one in flight arrives."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 4)
    commit(scheduler, SMALL, B)
    assert spans(tick(scheduler, SMALL, C)) == {id: [4]}
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.attempt) == ([A, A, A, A, B, C], 0)


def test_truncation_in_flight_to_the_boundary_being_read(make_scheduler: Make) -> None:
    """The batch samples a candidate, not a token: there is nothing to take back."""
    scheduler = make_scheduler()
    id = read(scheduler, 3, settle_at_once=False)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 3)
    commit(scheduler, SMALL, B)
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    assert (scheduler.sequence(id).candidate, scheduler.sequence(id).attempt) == (B, 0)


def test_truncation_in_flight_of_a_prefill_chunk(make_scheduler: Make) -> None:
    """A batch that samples nothing for the sequence has nothing to take back."""
    scheduler = make_scheduler(max_tick_tokens=9)
    id = start(scheduler, 20, SMALL, settle_at_once=False)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 20)
    commit(scheduler, SMALL, B)
    assert (scheduler.sequence(id).computed, scheduler.sequence(id).awaits_route) == ([9, 0], False)


def test_what_is_to_be_cut_does_not_settle(make_scheduler: Make) -> None:
    """A truncation in flight bounds settle() as if it had happened."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 4)
    with pytest.raises(ValueError, match="settled"):
        scheduler.settle(id, 5)
    scheduler.settle(id, 4)
    commit(scheduler, SMALL, C)
    assert (scheduler.sequence(id).settled, scheduler.sequence(id).length) == (4, 4)


@pytest.mark.parametrize("settle_at_once", [False, True])
@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_truncation_in_flight_voids_the_question(
    make_scheduler: Make, settle_at_once: bool, model: int
) -> None:
    """A trial has ended while the other lane reads the prompt along: who answers about tokens that
    are to go, settling or taking back more than they, comes too late."""
    scheduler = make_scheduler(background=(0, 1))
    id = read(scheduler, 6, trial_tokens=3, settle_at_once=settle_at_once)
    write(scheduler, SMALL, B, B)
    assert scheduler.plan(LARGE) == 1
    write(scheduler, SMALL, B)
    assert scheduler.sequence(id).awaits_route
    scheduler.truncate(id, 7)
    with pytest.raises(RuntimeError, match="does not await"):
        scheduler.route(id, model)
    commit(scheduler, LARGE, -1)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.settled, after.trial_from) == ([A] * 6 + [B], 6, 6)
    write(scheduler, SMALL, C, C)
    assert scheduler.take_events() == [(DECIDE, id, -1)]
    scheduler.route(id, model)
    wanted = [A] * 6 + [B, C, C] if model == SMALL else [A] * 6
    assert scheduler.sequence(id).tokens.tolist() == wanted
