"""What is copied of a sequence: facts of a fixed size, and new tails."""

from __future__ import annotations

import pytest

from engine._core import LARGE, SMALL

from .steps import BOTH, A, B, C, Make, start, write


def test_a_view_follows_its_sequence(make_scheduler: Make) -> None:
    """It agrees with a copy made now, and outlives neither its sequence nor a wrong id."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    view = scheduler.view(id)
    write(scheduler, SMALL, A, BOTH)
    copy = scheduler.sequence(id)
    facts = [name for name in dir(copy) if not name.startswith("_")]
    whole = {"tokens", "steps", "forced"}
    assert whole < set(facts)
    for name in set(facts) - whole:
        seen, copied = getattr(view, name), getattr(copy, name)
        same = seen == copied
        assert same if isinstance(same, bool) else same.all(), name
    assert (view.length, view.step_start) == (5, 3)
    scheduler.abort(id)
    scheduler.forget(id)
    with pytest.raises(IndexError, match="unknown sequence"):
        _ = view.length
    with pytest.raises(IndexError, match="unknown sequence"):
        scheduler.view(id)


def test_a_view_keeps_its_scheduler(make_scheduler: Make) -> None:
    scheduler = make_scheduler()
    view = scheduler.view(start(scheduler, 3, SMALL))
    del scheduler
    assert view.prompt_length == 3


def test_tails(make_scheduler: Make) -> None:
    """Copies: what happens later does not show in them. Past the end there is nothing."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, B, C, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, C)
    tail = scheduler.tokens_since(id, 3)
    assert tail.tolist() == [B, C, BOTH, C]
    assert scheduler.tokens_since(id, 4, 2).tolist() == [C, BOTH]
    assert (
        scheduler.tokens_since(id, 4, 0).tolist() == scheduler.tokens_since(id, 99).tolist() == []
    )
    assert scheduler.steps_since(id, 0) == [(3, SMALL), (6, LARGE)]
    assert scheduler.steps_since(id, 1) == [(6, LARGE)] and scheduler.steps_since(id, 2) == []
    scheduler.truncate(id, 4)
    assert tail.tolist() == [B, C, BOTH, C] and scheduler.tokens_since(id, 3).tolist() == [B]
    with pytest.raises(ValueError, match="position must be at least 0"):
        scheduler.tokens_since(id, -1)


def test_news(make_scheduler: Make) -> None:
    """Settled tokens since a position, and the steps that begin among them."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, B, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, C, A)
    for settled, since, tokens, steps in (
        (3, 0, [], []),
        (5, 0, [B, BOTH], [(3, SMALL)]),
        (6, 0, [B, BOTH, C], [(3, SMALL), (5, LARGE)]),
        (7, 5, [C, A], [(5, LARGE)]),
        (7, 6, [A], []),
        (7, 7, [], []),
    ):
        scheduler.settle(id, settled)
        news = scheduler.news(id, since)
        assert (news.start, news.settled) == (max(since, 3), settled)
        assert (news.tokens.tolist(), news.steps) == (tokens, steps)


def test_what_truncations_kept(make_scheduler: Make) -> None:
    """Tokens before the lowest cut since then are those of then."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    view = scheduler.view(id)
    assert view.kept_since(0) == 6
    scheduler.truncate(id, 4)
    write(scheduler, SMALL, C, C)
    scheduler.truncate(id, 5)
    write(scheduler, SMALL, A, A)
    assert [view.kept_since(attempt) for attempt in range(3)] == [4, 5, 7] and view.attempt == 2
