"""What the small model wrote and was taken back is the large one's first draft."""

from __future__ import annotations

import pytest

from engine._core import Scheduler

from .kinds import CATCHUP, DECIDE, DISCARDED, LARGE, NOBODY, PROMPT, SAMPLED, SMALL, STOP, WHOLE
from .steps import (
    BOTH,
    A,
    B,
    C,
    D,
    E,
    F,
    Make,
    commit,
    keys,
    kinds,
    planned_draft,
    read,
    spans,
    tick,
    write,
)


def on_trial(scheduler: Scheduler, *tokens: int, **request: object) -> int:
    """The small model has written these, and the question is out."""
    settings = {"trial_tokens": len(tokens), "draft_tokens": 3} | request
    id = read(scheduler, 2, **settings)
    write(scheduler, SMALL, *tokens)
    assert scheduler.take_events()[-1] == (DECIDE, id, NOBODY)
    return id


def test_a_trial_that_is_taken_back_is_the_first_draft(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = on_trial(scheduler, B, C, D, E)
    rows = kinds(scheduler.sequence(id), SMALL)[SAMPLED]
    scheduler.route(id, LARGE)
    assert planned_draft(scheduler, id) == [B, C, D]
    assert spans(scheduler.buffers(LARGE)) == {id: [0, 1, 2, 3, 4]}
    assert scheduler.sequence(id).computed == [2, 0]
    commit(scheduler, LARGE, B, C, A, A)
    seen = scheduler.sequence(id)
    assert seen.tokens.tolist() == [A, A, B, C, A]
    assert kinds(seen, SMALL)[DISCARDED] == rows  # right or wrong, they were rows of the trial
    assert kinds(seen, LARGE) == {PROMPT: (1, 1), SAMPLED: (3, 2 + 3 + 4), DISCARDED: (1, 5)}
    counts = seen.speculation
    assert (counts["reused"], counts["drafted"], counts["looked_up"]) == (3, 0, 0)
    assert (counts["compared"], counts["accepted"]) == (3, 2)
    assert scheduler.plan(SMALL) == 1  # from then on it guesses
    assert scheduler.sequence(id).drafting
    commit(scheduler, SMALL, B)
    assert kinds(scheduler.sequence(id), SMALL)[CATCHUP] == (2, keys(2, 4))


def test_a_whole_answer_goes_on_past_boundaries_if_none_asks(make_scheduler: Make) -> None:
    for rest, guesses in ((True, [B, BOTH, C]), (False, [B, BOTH])):
        scheduler = make_scheduler()
        id = on_trial(scheduler, B, BOTH, C, D, trial_tokens=WHOLE, max_tokens=4)
        scheduler.route(id, LARGE, rest=rest)
        assert planned_draft(scheduler, id) == guesses


def test_a_draft_of_a_trial_ends_where_the_text_would(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = on_trial(scheduler, B, C, trial_tokens=WHOLE, stop_ids=[C])
    scheduler.route(id, LARGE)
    assert planned_draft(scheduler, id) == [B, C]
    commit(scheduler, LARGE, B, C, A)
    assert scheduler.sequence(id).finish == STOP


def test_a_rollback_is_the_first_draft(make_scheduler: Make) -> None:
    """Of what the small model wrote from there on, up to what the large one did."""
    scheduler = make_scheduler()
    request = {"settle_at_once": False, "draft_tokens": 7, "max_tokens": 16}
    id = scheduler.add([A], **request)  # type: ignore[arg-type]
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, B, BOTH)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, C, D, BOTH)
    scheduler.route(id, LARGE)
    tick(scheduler, LARGE, E)
    scheduler.truncate(id, 3)
    scheduler.route(id, LARGE, rest=True)
    assert planned_draft(scheduler, id) == [C, D, BOTH]
    commit(scheduler, LARGE, C, D, BOTH, F)
    seen = scheduler.sequence(id)
    assert seen.tokens.tolist() == [A, B, BOTH, C, D, BOTH, F]
    assert seen.attempt == 1


@pytest.mark.parametrize("token", [B, C])
def test_a_rollback_to_a_boundary_that_the_large_model_reads(
    make_scheduler: Make, token: int
) -> None:
    """It has drawn its first token there: the rest is a draft if that one was right."""
    scheduler = make_scheduler()
    id = read(scheduler, 2, reader=LARGE, draft_tokens=3, settle_at_once=False)
    tick(scheduler, LARGE, A)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, B, C, D, E)
    scheduler.truncate(id, 2)
    scheduler.plan(LARGE)
    commit(scheduler, LARGE, token)
    scheduler.route(id, LARGE)
    if token == B:
        assert planned_draft(scheduler, id) == [C, D]
    else:  # the small model guesses anew
        assert scheduler.plan(LARGE) == 0 and scheduler.sequence(id).drafting
    scheduler.check_integrity()


def test_a_rollback_of_large_steps_is_none(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = scheduler.add([A], max_tokens=16, settle_at_once=False, draft_tokens=3)
    scheduler.route(id, LARGE)
    scheduler.plan(SMALL)
    commit(scheduler, SMALL, -1)
    write(scheduler, LARGE, B, C)
    scheduler.truncate(id, 1)
    scheduler.route(id, LARGE)
    assert planned_draft(scheduler, id) == []


def test_it_is_forgotten_if_the_small_model_goes_on(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = scheduler.add([A], max_tokens=16, settle_at_once=False, draft_tokens=3)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, B, BOTH)
    scheduler.truncate(id, 1)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, C, BOTH)
    scheduler.route(id, LARGE)
    assert scheduler.plan(SMALL) == 1  # it guesses afresh
    assert scheduler.sequence(id).draft == []
    assert scheduler.sequence(id).speculation["reused"] == 0


@pytest.mark.parametrize("request_", [{"draft_tokens": 0}, {"draft_source": "lookup"}])
def test_it_is_not_kept_where_the_small_model_may_not_guess(
    make_scheduler: Make, request_: dict
) -> None:
    scheduler = make_scheduler()
    id = on_trial(scheduler, B, C, **request_)
    scheduler.route(id, LARGE)
    assert planned_draft(scheduler, id) == []


def test_with_both_it_goes_before_what_is_found(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    settings = {"max_tokens": 16, "reader": SMALL, "trial_tokens": 2}
    id = scheduler.add(
        [A, B, C, D, A, B, C],
        **settings,  # type: ignore[arg-type]
        draft_tokens=2,
        draft_source="both",
    )
    write(scheduler, SMALL, E, F)
    scheduler.route(id, LARGE)
    assert planned_draft(scheduler, id) == [E, F]
