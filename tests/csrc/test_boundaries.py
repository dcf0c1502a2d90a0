"""The scheduler at boundaries: which model is asked, which reads, and what an answer does."""

from __future__ import annotations

import pytest

from engine._core import Scheduler

from .kinds import (
    CATCHUP,
    DECIDE,
    DISCARDED,
    FINISHED,
    LARGE,
    LENGTH,
    OVER,
    PROMPT,
    SAMPLED,
    SMALL,
    STOP,
)
from .steps import (
    BOTH,
    NEWLINE,
    SPECIAL,
    A,
    B,
    C,
    Make,
    commit,
    kinds,
    read,
    spans,
    start,
    tick,
    write,
)


def test_the_prompt_is_boundary_zero(make_scheduler: Make) -> None:
    """Without a reader it is asked about at once, before anything is computed."""
    scheduler = make_scheduler()
    id = scheduler.add([A, BOTH], max_tokens=4)
    assert scheduler.take_events() == [(DECIDE, id, -1)]
    assert scheduler.take_events() == []
    assert scheduler.sequence(id).awaits_route


def test_the_detector_starts_empty_at_the_prompt(make_scheduler: Make) -> None:
    """A newline at the prompt's end and one in the text are no delimiter."""
    scheduler = make_scheduler()
    id = scheduler.add([A, NEWLINE], max_tokens=8)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, NEWLINE, A, NEWLINE)
    assert not scheduler.sequence(id).awaits_route
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.sequence(id).awaits_route


def test_a_kept_candidate_is_the_next_token(make_scheduler: Make) -> None:
    """The reader's boundary row decides and, if it keeps the pen, gives the token: no extra row."""
    scheduler = make_scheduler()
    id = read(scheduler, 3)
    assert scheduler.take_events() == []
    tick(scheduler, SMALL, C)
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    assert (scheduler.sequence(id).candidate, scheduler.sequence(id).length) == (C, 3)
    scheduler.route(id, SMALL)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.candidate) == ([A, A, A, C], -1)
    assert kinds(after, SMALL) == {PROMPT: (2, 3), SAMPLED: (1, 3)}
    assert spans(tick(scheduler, SMALL, B)) == {id: [3]}


def test_a_dropped_candidate_is_counted(make_scheduler: Make) -> None:
    """If the other model takes over, the reader's token is dropped and its row discarded."""
    scheduler = make_scheduler()
    id = read(scheduler, 3)
    tick(scheduler, SMALL, C)
    scheduler.route(id, LARGE)
    assert spans(tick(scheduler, LARGE, B)) == {id: [0, 1, 2]}
    after = scheduler.sequence(id)
    assert after.tokens.tolist() == [A, A, A, B]
    assert kinds(after, SMALL) == {PROMPT: (2, 3), DISCARDED: (1, 3)}


def test_the_reader_reads_a_step_of_the_other(make_scheduler: Make) -> None:
    """After a large step the small model catches up before the decision."""
    scheduler = make_scheduler()
    id = read(scheduler, 3)
    tick(scheduler, SMALL, C)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B, BOTH)
    scheduler.take_events()
    assert scheduler.sequence(id).reading
    assert scheduler.plan(LARGE) == 0
    assert spans(tick(scheduler, SMALL, C)) == {id: [3, 4]}
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    scheduler.route(id, SMALL)
    after = scheduler.sequence(id)
    assert after.tokens.tolist() == [A, A, A, B, BOTH, C]
    assert after.steps == [(3, LARGE), (5, SMALL)]
    assert kinds(after, SMALL)[CATCHUP] == (1, 4)


def test_the_event_names_the_row_of_the_plan(make_scheduler: Make) -> None:
    """With several sequences in a tick the row tells whose logits to look at."""
    scheduler = make_scheduler()
    start(scheduler, 2, SMALL)
    second, third = read(scheduler, 2), read(scheduler, 3)
    tick(scheduler, SMALL, B, B, B)
    assert scheduler.take_events() == [(DECIDE, second, 1), (DECIDE, third, 2)]


def test_a_kept_candidate_may_end_the_sequence(make_scheduler: Make) -> None:
    """A candidate that is a stop token finishes it on route()."""
    scheduler = make_scheduler()
    id = read(scheduler, 3, stop_ids=[SPECIAL])
    tick(scheduler, SMALL, SPECIAL)
    scheduler.take_events()
    scheduler.route(id, SMALL)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert scheduler.sequence(id).finish == STOP


def test_a_candidate_outlives_its_memory(make_scheduler: Make) -> None:
    """KV lost while the decision is pending costs recomputation, not the candidate."""
    scheduler = make_scheduler()
    id = read(scheduler, 3)
    tick(scheduler, SMALL, C)
    scheduler.preempt(id)
    scheduler.route(id, SMALL)
    assert spans(tick(scheduler, SMALL, B)) == {id: [0, 1, 2, 3]}
    assert scheduler.sequence(id).tokens.tolist() == [A, A, A, C, B]


def test_a_step_of_delimiters_triggers_no_decision(make_scheduler: Make) -> None:
    """The step goes on until it holds text."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL)
    write(scheduler, SMALL, BOTH, BOTH)
    assert scheduler.take_events() == []
    write(scheduler, SMALL, A, BOTH)
    assert scheduler.take_events() == [(DECIDE, id, -1)]


def test_each_step_counts_for_itself(make_scheduler: Make) -> None:
    """Text of the step before does not make a step of delimiters a boundary."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL)
    write(scheduler, SMALL, A, BOTH)
    scheduler.take_events()
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, BOTH)
    assert scheduler.take_events() == []


def test_a_delimiter_may_straddle_tokens(make_scheduler: Make) -> None:
    """Two newline tokens are one delimiter."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL)
    write(scheduler, SMALL, A, NEWLINE)
    assert scheduler.take_events() == []
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.take_events() == [(DECIDE, id, -1)]


def test_a_stop_beats_a_delimiter(make_scheduler: Make) -> None:
    """A token that is both ends the sequence and asks nothing."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, stop_ids=[BOTH])
    write(scheduler, SMALL, A, BOTH)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert scheduler.sequence(id).tokens.tolist() == [A, A, A, BOTH]


@pytest.mark.parametrize(
    ("tokens", "finish"),
    [((A, SPECIAL), STOP), ((A, B, C), LENGTH), ((A, B, BOTH), LENGTH), ((A, B, SPECIAL), STOP)],
)
def test_ends(make_scheduler: Make, tokens: tuple[int, ...], finish: int) -> None:
    """Stop ids and max_tokens end the text without a boundary; a stop beats the length."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, stop_ids=[SPECIAL], max_tokens=3)
    write(scheduler, SMALL, *tokens)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    after = scheduler.sequence(id)
    assert (after.phase, after.finish, after.settled) == (OVER, finish, after.length)
    assert (scheduler.pool.live(SMALL), scheduler.running) == (0, 0)


def test_thinking_that_has_half_ended_is_ended(make_scheduler: Make) -> None:
    """Only what is missing is written, and a boundary follows as always."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, think_end=[C, C], max_think_tokens=2)
    write(scheduler, SMALL, B, C)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.forced) == ([A, A, B, C, C], [4])
    assert (after.thinking, after.awaits_route) == (False, True)
    assert scheduler.take_events() == [(DECIDE, id, -1)]


@pytest.mark.parametrize("model", [-1, 2])
def test_routes_that_make_no_sense(make_scheduler: Make, model: int) -> None:
    """There are two models, and the sequence must await a route."""
    scheduler = make_scheduler()
    id = scheduler.add([A], max_tokens=2)
    with pytest.raises(ValueError, match="model"):
        scheduler.route(id, model)
    scheduler.route(id, SMALL)
    with pytest.raises(RuntimeError, match="does not await"):
        scheduler.route(id, SMALL)


def asked_at_the_end(make_scheduler: Make) -> tuple[Scheduler, int]:
    """A text of the small model whose end the large one has just read: a question is out."""
    scheduler = make_scheduler()
    id = scheduler.add(
        [A, A, A], max_tokens=8, stop_ids=[C], reader=LARGE, settle_at_once=False, ask_at_end=True
    )
    scheduler.plan(LARGE)
    commit(scheduler, LARGE, B)  # it reads the prompt's end
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, A, B, C)
    assert scheduler.take_events() == [] and scheduler.sequence(id).closing
    assert scheduler.plan(SMALL) == 0 and scheduler.plan(LARGE) == 1
    assert spans(scheduler.buffers(LARGE)) == {id: [3, 4, 5]}
    commit(scheduler, LARGE, A)
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    return scheduler, id


def test_any_answer_lets_the_end_stand(make_scheduler: Make) -> None:
    """What the reader drew after it is dropped, and the text ends as it would have."""
    scheduler, id = asked_at_the_end(make_scheduler)
    scheduler.route(id, LARGE)
    done = scheduler.sequence(id)
    assert done.tokens.tolist() == [A, A, A, A, B, C] and done.cut_bytes == 1
    assert (done.finish, scheduler.take_events()) == (STOP, [(FINISHED, id, -1)])
    assert kinds(done, LARGE)[DISCARDED] == (2, 3 + 6)


def test_an_end_that_is_taken_back_is_none(make_scheduler: Make) -> None:
    """The question is void; the reader writes instead, and its own end asks nothing."""
    scheduler, id = asked_at_the_end(make_scheduler)
    scheduler.truncate(id, 3)
    assert not scheduler.sequence(id).closing
    scheduler.plan(LARGE)
    commit(scheduler, LARGE, B)
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, C)
    done = scheduler.sequence(id)
    assert done.tokens.tolist() == [A, A, A, B, C] and done.finish == STOP
