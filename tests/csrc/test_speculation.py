"""The small model guesses and the large one verifies: one behaviour a test."""

from __future__ import annotations

import numpy as np
import pytest

from engine._core import Scheduler

from .kinds import (
    CATCHUP,
    DECIDE,
    DISCARDED,
    DRAFTED,
    ERROR,
    LARGE,
    LENGTH,
    PROMPT,
    REJECTED,
    SAMPLED,
    SMALL,
    STOP,
)
from .steps import (
    BOTH,
    NEWLINE,
    A,
    B,
    C,
    Make,
    commit,
    keys,
    kinds,
    read,
    spans,
    start,
    tick,
    write,
)


def draft(scheduler: Scheduler, id: int, *guesses: int) -> None:
    """The small model writes these guesses, a tick each."""
    for guess in guesses:
        assert scheduler.plan(SMALL) == 1
        plan = scheduler.buffers(SMALL)
        assert (plan.ids[0], plan.guesses[0], plan.samples[0]) == (id, 1, 1)
        commit(scheduler, SMALL, guess)


def verify(scheduler: Scheduler, *tokens: int) -> None:
    """A tick of the large lane that draws so many tokens."""
    assert scheduler.plan(LARGE) == 1
    assert scheduler.buffers(LARGE).samples[0] == scheduler.buffers(LARGE).draws == len(tokens)
    commit(scheduler, LARGE, *tokens)


def test_a_round(make_scheduler: Make) -> None:
    """Guesses follow the text without being text; the pass that verifies them holds what the large
    model lacks and the guesses, and its draws are the text."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, LARGE, draft_tokens=2)
    assert scheduler.plan(LARGE) == 1  # the prompt, but for its last token
    assert spans(scheduler.buffers(LARGE)) == {id: [0, 1]}
    assert scheduler.buffers(LARGE).samples[0] == 0
    assert scheduler.plan(SMALL) == 1
    assert spans(scheduler.buffers(SMALL)) == {id: [0, 1, 2]}
    commit(scheduler, SMALL, B)
    draft(scheduler, id, C)
    seen = scheduler.sequence(id)
    assert (seen.draft, seen.drafting, seen.length, seen.computed) == ([B, C], False, 3, [4, 0])
    commit(scheduler, LARGE, 0)
    verify(scheduler, B, A, B)
    seen = scheduler.sequence(id)
    assert seen.tokens.tolist() == [A, A, A, B, A]  # the draw after a wrong guess is dropped
    assert (seen.draft, seen.computed, seen.attempt) == ([], [4, 4], 0)
    assert kinds(seen, SMALL) == {PROMPT: (2, 3), DRAFTED: (1, 3), REJECTED: (1, 4)}
    assert kinds(seen, LARGE) == {PROMPT: (2, 3), SAMPLED: (2, 3 + 4), DISCARDED: (1, 5)}
    counts = seen.speculation
    assert counts.pop("accepted_at")[:3] == [1, 0, 0]
    assert counts == {
        **{"passes": 1, "tokens": 2, "rounds": 1},
        **{"drafted": 2, "looked_up": 0, "reused": 0, "compared": 2, "accepted": 1},
    }


def test_all_right(make_scheduler: Make) -> None:
    """The last draw is one more than was guessed; then both models lack the tokens that they have
    not seen: the small one two, the large one one."""
    scheduler = make_scheduler()
    id = start(scheduler, 1, LARGE, draft_tokens=2)
    draft(scheduler, id, B, C)
    verify(scheduler, B, C, A)
    seen = scheduler.sequence(id)
    assert (seen.tokens.tolist(), seen.computed) == ([A, B, C, A], [2, 3])
    draft(scheduler, id, B)
    assert spans(scheduler.buffers(SMALL)) == {id: [2, 3]}
    assert kinds(scheduler.sequence(id), SMALL)[CATCHUP] == (1, keys(2, 3))


def test_guesses_are_planned_after_guesses(make_scheduler: Make) -> None:
    """A lane that plans ahead writes a draft without waiting for the host."""
    scheduler = make_scheduler()
    id = start(scheduler, 1, LARGE, draft_tokens=3)
    plans = [scheduler.buffers(SMALL, i) for i in range(2)]
    assert [scheduler.plan(SMALL, ahead=True) for _ in range(2)] == [1, 1]
    assert plans[1].tokens[0] == -1 and plans[1].guesses[0] == 1
    commit(scheduler, SMALL, B)
    assert scheduler.sequence(id).in_flight == [1, 0]
    assert scheduler.plan(SMALL, ahead=True) == 1
    commit(scheduler, SMALL, C)
    assert scheduler.plan(SMALL, ahead=True) == 0  # the third guess is in flight
    commit(scheduler, SMALL, A)
    verify(scheduler, B, C, A, A)
    assert scheduler.counters()["voided"] == [0, 0]


@pytest.mark.parametrize(
    ("request_", "guesses", "end"),
    [
        ({"stop_ids": [B]}, (A, B), STOP),
        ({"stop_strings": ["cb"]}, (C, B), STOP),
        ({"max_tokens": 3}, (A, A), LENGTH),  # two guesses and the draw after them
    ],
)
def test_a_draft_ends_where_the_text_would(
    make_scheduler: Make, request_: dict, guesses: tuple, end: int
) -> None:
    scheduler = make_scheduler()
    id = start(scheduler, 2, LARGE, draft_tokens=7, **request_)
    draft(scheduler, id, *guesses)
    assert not scheduler.sequence(id).drafting
    verify(scheduler, *guesses, A)
    assert scheduler.sequence(id).finish == end
    assert scheduler.sequence(id).speculation["accepted"] == len(guesses)
    assert scheduler.pool.live(SMALL) == scheduler.pool.live(LARGE) == 0


@pytest.mark.parametrize("rest", [False, True])
def test_a_boundary_pauses_a_draft_only_if_it_is_asked_about(
    make_scheduler: Make, rest: bool
) -> None:
    scheduler = make_scheduler()
    id = read(scheduler, 2, draft_tokens=3)
    tick(scheduler, SMALL, A)
    scheduler.route(id, LARGE, rest)
    draft(scheduler, id, C, BOTH)
    assert scheduler.sequence(id).drafting == rest
    if rest:
        draft(scheduler, id, B)
        verify(scheduler, C, BOTH, B, A)
        assert scheduler.sequence(id).steps == [(2, LARGE), (4, LARGE)]
    else:
        verify(scheduler, C, BOTH, A)
        seen = scheduler.sequence(id)
        assert (seen.tokens.tolist(), seen.reading, seen.active) == ([A, A, C, BOTH], True, SMALL)
        assert seen.decision_wait == 0  # the small model lacks but the boundary's own row
        tick(scheduler, SMALL, B)
        assert scheduler.take_events()[-1][0] == DECIDE


def test_a_boundary_that_was_not_guessed_ends_the_run(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = read(scheduler, 2, draft_tokens=3)
    tick(scheduler, SMALL, A)
    scheduler.route(id, LARGE)
    draft(scheduler, id, B, NEWLINE, C)
    verify(scheduler, B, BOTH, C, C)
    seen = scheduler.sequence(id)
    assert (seen.tokens.tolist(), seen.reading) == ([A, A, B, BOTH], True)
    assert seen.computed == [3, 3]


def test_forced_tokens_end_the_run(make_scheduler: Make) -> None:
    """What is guessed after the last token of thinking is not what is written there."""
    scheduler = make_scheduler()
    id = start(scheduler, 1, LARGE, draft_tokens=7, think_end=[C, C], max_think_tokens=2)
    draft(scheduler, id, A)
    assert scheduler.sequence(id).drafting
    draft(scheduler, id, B)
    verify(scheduler, A, B, C)
    seen = scheduler.sequence(id)
    assert (seen.tokens.tolist(), seen.forced) == ([A, A, B, C, C], [3, 4])
    assert seen.computed[LARGE] == 2


def test_none_waits_for_guesses_that_do_not_come(make_scheduler: Make) -> None:
    """A plan of the small lane without a row for them closes a draft as it is."""
    scheduler = make_scheduler(max_tick_tokens=9)
    id = start(scheduler, 1, LARGE, draft_tokens=5)
    draft(scheduler, id, B)
    assert scheduler.plan(LARGE) == 0
    start(scheduler, 20, SMALL)
    assert scheduler.plan(SMALL) == 1  # all its rows are the other's
    assert (scheduler.sequence(id).draft, scheduler.sequence(id).drafting) == ([B], False)
    verify(scheduler, B, C)


def test_a_draft_takes_no_memory(make_scheduler: Make) -> None:
    """The small model gets no block while the large one's sequences hold all slabs."""
    scheduler = make_scheduler(slabs=2, max_context=8)
    for _ in range(2):
        start(scheduler, 3, LARGE, max_tokens=5)
    assert scheduler.plan(LARGE) == 2
    commit(scheduler, LARGE, A, A)
    id = start(scheduler, 2, LARGE, draft_tokens=3, max_tokens=4)
    assert scheduler.plan(SMALL) == 0
    assert not scheduler.buffers(SMALL).short_of_memory
    assert not scheduler.sequence(id).drafting
    assert scheduler.counters()["preemptions"] == 0


def test_guesses_leave_prefills_their_rows(make_scheduler: Make) -> None:
    """A pass verifies as many guesses as the rows allow; the rest is dropped, and a prefill goes
    on."""
    scheduler = make_scheduler(max_tick_tokens=9)
    id = start(scheduler, 1, LARGE, draft_tokens=7)
    draft(scheduler, id, *[B] * 7)
    other = start(scheduler, 20, LARGE)
    assert scheduler.plan(LARGE) == 2
    rows = {i: len(span) for i, span in spans(scheduler.buffers(LARGE)).items()}
    assert rows == {id: 5, other: 4}  # a block of four for the prefill
    assert scheduler.sequence(id).draft == [B] * 4
    assert scheduler.sequence(id).computed[SMALL] == 5
    commit(scheduler, LARGE, *[B] * 5, 0)
    seen = scheduler.sequence(id)
    assert seen.speculation["compared"] == seen.speculation["accepted"] == 4
    assert kinds(seen, SMALL)[REJECTED][0] == 3


def test_no_more_is_guessed_than_a_pass_verifies(make_scheduler: Make) -> None:
    """Two rows are for the sequences, the first gets what is left; the other writes on."""
    scheduler = make_scheduler(max_sequences=2, max_drawn_rows=4)
    first, second = (start(scheduler, 2, LARGE, draft_tokens=3) for _ in range(2))
    assert scheduler.plan(LARGE) == 2
    scheduler.commit(LARGE, np.array([A, A], np.int32))
    assert [scheduler.sequence(id).drafting for id in (first, second)] == [True, False]
    write(scheduler, SMALL, B, C)
    assert not scheduler.sequence(first).drafting and scheduler.plan(SMALL) == 0
    assert scheduler.plan(LARGE) == 2
    plan = scheduler.buffers(LARGE)
    assert dict(zip(plan.ids[:2].tolist(), plan.samples[:2].tolist(), strict=True)) == {
        first: 3,
        second: 1,
    }


def test_unusable_guesses_end_guessing_and_nothing_else(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = start(scheduler, 1, LARGE, draft_tokens=3)
    draft(scheduler, id, B, -1)
    verify(scheduler, B, C)
    write(scheduler, LARGE, A)
    seen = scheduler.sequence(id)
    assert (seen.tokens.tolist(), seen.drafting) == ([A, B, C, A], False)
    assert scheduler.plan(SMALL) == 0


def test_what_stands_before_unusable_logits_is_kept(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = start(scheduler, 1, LARGE, draft_tokens=3)
    draft(scheduler, id, B, C, A)
    verify(scheduler, B, C, -1, A)
    seen = scheduler.sequence(id)
    assert (seen.tokens.tolist(), seen.finish) == ([A, B, C], ERROR)
    assert kinds(seen, LARGE) == {SAMPLED: (2, 1 + 2), DISCARDED: (2, 3 + 4)}


def test_a_failed_tick_of_guesses_ends_no_request(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = start(scheduler, 1, LARGE, draft_tokens=3)
    draft(scheduler, id, B)
    scheduler.plan(SMALL)
    scheduler.fail(SMALL)
    verify(scheduler, B, C)
    assert scheduler.sequence(id).tokens.tolist() == [A, B, C]


@pytest.mark.parametrize("while_", ["drafting", "closed", "verifying"])
@pytest.mark.parametrize("what", ["abort", "truncate", "preempt"])
def test_what_comes_in_between(make_scheduler: Make, what: str, while_: str) -> None:
    scheduler = make_scheduler()
    id = start(scheduler, 2, LARGE, draft_tokens=2, settle_at_once=False)
    draft(scheduler, id, B, C)
    verify(scheduler, B, C, A)
    if while_ == "drafting":
        assert scheduler.plan(SMALL) == 1
    else:
        draft(scheduler, id, B, C)
    if while_ == "verifying":
        assert scheduler.plan(LARGE) == 1
    if what == "truncate":
        scheduler.truncate(id, 4)
    else:
        (scheduler.abort if what == "abort" else scheduler.preempt)(id)
    scheduler.check_integrity()
    if while_ == "drafting":
        commit(scheduler, SMALL, B)
    if while_ == "verifying":
        commit(scheduler, LARGE, B, C, C)
    scheduler.check_integrity()
    seen = scheduler.sequence(id)
    if what == "abort":
        assert (seen.tokens.tolist(), seen.draft) == ([A, A, B, C, A], [])
    elif what == "truncate":
        assert (seen.tokens.tolist(), seen.draft, seen.attempt) == ([A, A, B, C], [], 1)
        draft(scheduler, id, A, A)
        verify(scheduler, A, A, B)
    else:
        assert seen.computed == [0, 0]
        if while_ == "drafting":
            draft(scheduler, id, C)
        if while_ != "verifying":
            verify(scheduler, B, C, C)
        text = scheduler.sequence(id).tokens.tolist()
        assert text == [A, A, B, C, A, B, C, C]


def test_a_small_model_far_behind_reads_first(make_scheduler: Make) -> None:
    """With rows and blocks that no sequence needs; the large model writes on without it."""
    scheduler = make_scheduler(max_context=128, slabs=40, max_tick_tokens=128)
    id = start(scheduler, 70, LARGE, draft_tokens=2)
    tick(scheduler, LARGE, 0)
    assert scheduler.plan(SMALL) == 1
    assert scheduler.buffers(SMALL).samples[0] == 0
    assert scheduler.plan(LARGE) == 1  # it does not wait for that
    commit(scheduler, LARGE, B)
    commit(scheduler, SMALL, 0)
    draft(scheduler, id, B, C)
    verify(scheduler, B, C, A)
    assert scheduler.sequence(id).tokens.tolist()[70:] == [A, B, B, C, A]


def test_refused(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    for wrong in (-1, 16):
        with pytest.raises(ValueError, match="draft_tokens must be 0"):
            scheduler.add([A], max_tokens=2, draft_tokens=wrong)
    for wrong in ("small", "both"):
        with pytest.raises(ValueError, match="the small model's tokens are not the large model's"):
            scheduler.add([A], max_tokens=2, draft_tokens=1, draft_source=wrong, relay=True)
    with pytest.raises(ValueError, match="'no'; known: small, lookup, both"):
        scheduler.add([A], max_tokens=2, draft_tokens=1, draft_source="no")
