"""Guesses that are found in the text: one behaviour a test."""

from __future__ import annotations

import pytest

from engine._core import DRAFT_SOURCES, Scheduler

from .conftest import TOKEN_BYTES
from .kinds import DISCARDED, LARGE, PROMPT, SAMPLED, SMALL
from .steps import BOTH, A, B, C, D, E, F, Make, commit, keys, kinds, planned_draft, spans, write


def large(scheduler: Scheduler, prompt: list[int], **request: object) -> int:
    """A request that the large model writes to its end."""
    settings = {"max_tokens": 16, "draft_tokens": 4, "draft_source": "lookup"} | request
    id = scheduler.add(prompt, **settings)  # type: ignore[arg-type]
    scheduler.route(id, LARGE, rest=True)
    scheduler.take_events()
    return id


def test_names() -> None:
    assert DRAFT_SOURCES == ("small", "lookup", "both")


@pytest.mark.parametrize(
    ("text", "guesses"),
    [
        ([A, B, C, D, E, F, A, B], [C, D, E, F]),  # what followed the last two
        ([A, B, C, D, E, B], []),  # one is not enough
        ([A, B, C, A, B, D, E, A, B], [D, E, A, B]),  # of equal matches the last
        ([C, A, B, D, E, F, A, B, F, F, C, A, B], [D, E, F, A]),  # rather the longest
        ([A, B, C, A, B, C], [A, B, C, A]),  # a text that repeats itself goes on so
        ([A, A, A], [A, A, A, A]),
        ([A, A], []),
        ([B, A, A, A, A, A, C, F, A, A, A, A, A, D, B, A, A, A, A, A], [D, B, A, A]),  # five do
    ],
)
def test_what_is_found(make_scheduler: Make, text: list[int], guesses: list[int]) -> None:
    scheduler = make_scheduler()
    id = large(scheduler, text)
    assert planned_draft(scheduler, id) == guesses
    assert scheduler.plan(SMALL) == 0
    counts = scheduler.sequence(id).speculation
    assert (counts["looked_up"], counts["drafted"], counts["reused"]) == (len(guesses), 0, 0)


def test_a_round_of_what_was_found(make_scheduler: Make) -> None:
    """It is verified in the pass that reads the prompt; none of its rows is the small model's."""
    scheduler = make_scheduler()
    id = large(scheduler, [A, B, C, D, E, A, B])
    assert planned_draft(scheduler, id) == [C, D, E, A]
    assert spans(scheduler.buffers(LARGE)) == {id: list(range(11))}
    commit(scheduler, LARGE, C, D, F, A, A)
    seen = scheduler.sequence(id)
    assert seen.tokens.tolist()[7:] == [C, D, F]
    assert (seen.draft, seen.computed) == ([], [0, 9])
    assert kinds(seen, SMALL) == {}
    assert kinds(seen, LARGE) == {
        PROMPT: (6, keys(0, 6)),
        SAMPLED: (3, keys(6, 9)),
        DISCARDED: (2, keys(9, 11)),
    }
    counts = seen.speculation
    assert counts.pop("accepted_at")[:3] == [1, 1, 0]
    assert counts == {
        **{"passes": 1, "tokens": 3, "rounds": 1},
        **{"drafted": 0, "looked_up": 4, "reused": 0, "compared": 3, "accepted": 2},
    }
    assert planned_draft(scheduler, id) == []  # nothing ends with these
    commit(scheduler, LARGE, A)
    assert scheduler.sequence(id).speculation["passes"] == 2


def test_what_was_written_is_found_too(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = large(scheduler, [A])
    for token in (B, C, D, B):
        assert planned_draft(scheduler, id) == []
        commit(scheduler, LARGE, token)
    assert planned_draft(scheduler, id) == []
    commit(scheduler, LARGE, C)
    assert planned_draft(scheduler, id) == [D, B, C, D]


def test_the_small_model_may_lag(make_scheduler: Make) -> None:
    """It reads nothing, however much it lacks."""
    scheduler = make_scheduler(max_context=128, slabs=40, max_tick_tokens=128)
    id = large(scheduler, [A, B, *[C] * 70, A, B])
    assert planned_draft(scheduler, id) == [C, C, C, C]
    assert scheduler.plan(SMALL) == 0


def test_with_both_a_short_match_is_the_small_models(make_scheduler: Make) -> None:
    """Two tokens in a row do not do where it can guess; where it cannot, they do again."""
    scheduler = make_scheduler()
    id = large(scheduler, [A, B, C, D, A, B], draft_source="both")
    assert scheduler.plan(SMALL) == 1
    assert scheduler.sequence(id).drafting
    commit(scheduler, SMALL, -1)  # there is no trusting it
    assert planned_draft(scheduler, id) == []
    commit(scheduler, LARGE, C)
    assert planned_draft(scheduler, id) == [D, A, B, C]


def test_with_both_a_long_match_comes_first(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    id = large(scheduler, [A, B, C, D, A, B, C], draft_source="both")
    assert planned_draft(scheduler, id) == [D, A, B, C]
    assert scheduler.plan(SMALL) == 0
    commit(scheduler, LARGE, E, A, A, A, A)
    assert scheduler.plan(SMALL) == 1  # no token like the last one stood there before
    assert scheduler.sequence(id).drafting


@pytest.mark.parametrize(
    ("request_", "guesses"),
    [
        ({"stop_ids": [D]}, [C, D]),
        ({"stop_strings": ["cd"]}, [C, D]),
        ({"max_tokens": 3}, [C, D]),  # the pass draws one more
        ({"max_tokens": 1}, []),
        ({"think_end": [F], "max_think_tokens": 2}, [C, D]),
        ({"think_end": [F], "max_think_tokens": 1}, []),
        ({"max_step_tokens": 2}, [C, D, E, A]),  # nothing is asked there
    ],
)
def test_a_draft_ends_where_the_text_would(
    make_scheduler: Make, request_: dict, guesses: list[int]
) -> None:
    scheduler = make_scheduler()
    id = large(scheduler, [A, B, C, D, E, A, B], **request_)
    assert planned_draft(scheduler, id) == guesses


def test_a_draft_ends_where_a_question_comes(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    request = {"draft_tokens": 4, "draft_source": "lookup"}
    id = scheduler.add([A, B, C, BOTH, E, A, B], max_tokens=16, **request)  # type: ignore[arg-type]
    scheduler.route(id, LARGE)
    assert planned_draft(scheduler, id) == [C, BOTH]


def test_what_a_pass_has_no_row_for_is_dropped(make_scheduler: Make) -> None:
    scheduler = make_scheduler(max_tick_tokens=9)
    id = large(scheduler, [A, B, C, D, E, A, B])
    assert planned_draft(scheduler, id) == [C, D]
    commit(scheduler, LARGE, C, D, E)
    assert scheduler.sequence(id).speculation["looked_up"] == 4
    assert scheduler.sequence(id).speculation["compared"] == 2


def test_another_text_is_searched_anew(make_scheduler: Make) -> None:
    """Also one as long as the text before a rollback, in which nothing was found."""
    scheduler = make_scheduler()
    settings = {"max_tokens": 16, "draft_tokens": 1, "draft_source": "lookup"}
    id = scheduler.add([A, BOTH, C], settle_at_once=False, **settings)  # type: ignore[arg-type]
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, D, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, E)
    scheduler.truncate(id, 3)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, A, BOTH)
    scheduler.route(id, LARGE)
    assert planned_draft(scheduler, id) == [C]


@pytest.mark.parametrize("what", ["abort", "truncate", "preempt"])
def test_what_comes_in_between(make_scheduler: Make, what: str) -> None:
    scheduler = make_scheduler()
    id = large(scheduler, [A, B, C, D, A, B], settle_at_once=False)
    assert planned_draft(scheduler, id) == [C, D, A, B]
    commit(scheduler, LARGE, C, F, *[A] * 3)
    write(scheduler, LARGE, A, B)
    assert planned_draft(scheduler, id) == [C, F, A, B]
    if what == "truncate":
        scheduler.truncate(id, 8)
    else:
        (scheduler.abort if what == "abort" else scheduler.preempt)(id)
    scheduler.check_integrity()
    commit(scheduler, LARGE, *[A] * 5)
    scheduler.check_integrity()
    seen = scheduler.sequence(id)
    length = {"abort": 10, "truncate": 8, "preempt": 11}[what]
    assert (seen.length, seen.draft) == (length, [])


# -- the same text


@pytest.mark.parametrize("source", DRAFT_SOURCES)
@pytest.mark.parametrize("guesses", [1, 5, 15])
def test_the_text_is_that_without_guesses(make_scheduler: Make, source: str, guesses: int) -> None:
    """Whatever the source: one draw of the large model at each place."""
    texts, passes = [], []
    script = [C, D, E, A, B, C, D, E, F, A, B, C, D, E, F, A, B, D, D, D, D, D, D, BOTH, C, D, E, A]
    for most in (0, guesses):
        scheduler = make_scheduler()
        id = large(
            scheduler, [A, B], max_tokens=len(script), draft_tokens=most, draft_source=source
        )
        while scheduler.running or scheduler.waiting:
            if scheduler.plan(SMALL):
                seen = scheduler.sequence(id)
                commit(scheduler, SMALL, script[seen.length - 2 + len(seen.draft)])
            if scheduler.plan(LARGE):
                first, draws = scheduler.sequence(id).length - 2, scheduler.buffers(LARGE).draws
                commit(scheduler, LARGE, *([*script, A])[first : first + draws])
        texts.append(scheduler.sequence(id).tokens.tolist()[2:])
        passes.append(scheduler.sequence(id).speculation["passes"])
    assert texts == [script, script]
    assert passes[0] == 0 < passes[1] < len(script)


# -- two tokenizers


def test_a_shadow_looks_up_in_its_own_text(make_scheduler: Make) -> None:
    """In the large model's tokens, for no longer than its step; and again after the next."""
    scheduler = make_scheduler(large_token_bytes=TOKEN_BYTES)
    request = {"relay": True, "draft_tokens": 4, "draft_source": "lookup"}
    id = scheduler.add([F, E, F, E], max_tokens=16, **request)  # type: ignore[arg-type]
    assert scheduler.plan(SMALL) == 0
    shadow = scheduler.add_shadow(id, prompt=[C, D, E, BOTH, A, C, D])
    scheduler.cross(id, [])
    assert planned_draft(scheduler, shadow) == [E, BOTH]
    assert scheduler.sequence(id).draft == []
    commit(scheduler, LARGE, E, BOTH, A)
    assert scheduler.sequence(shadow).tokens.tolist()[7:] == [E, BOTH]
    scheduler.cross_back(id, [D, BOTH])
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, A, BOTH)
    scheduler.cross(id, [A, C, D])
    scheduler.check_integrity()
    assert planned_draft(scheduler, shadow) == [E, BOTH]  # what followed A, C, D
    commit(scheduler, LARGE, E, A, A)
    counts = scheduler.sequence(shadow).speculation
    assert (counts["passes"], counts["looked_up"], counts["accepted"]) == (2, 4, 3)
    assert scheduler.sequence(id).speculation["passes"] == 0
    scheduler.abort(id)
    scheduler.check_integrity()
