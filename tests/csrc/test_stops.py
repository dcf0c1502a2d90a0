"""Stop strings, minimum lengths, forced boundaries, decisions for the rest, the bounded queue."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._core import Scheduler

from .kinds import DEADLINE, DECIDE, LARGE, LENGTH, OVER, SMALL, STOP

Make = Callable[..., Scheduler]


def build(token_bytes: list[bytes], **changes: object) -> Scheduler:
    settings: dict[str, object] = {
        "slabs": 16,
        "slots": (9, 1),
        "block_tokens": 4,
        "max_context": 64,
        "max_sequences": 8,
        "max_tick_tokens": 64,
        "delimiters": [b"\n\n"],
        "token_bytes": token_bytes,
    }
    return Scheduler(**(settings | changes))  # type: ignore[arg-type]


def start(scheduler: Scheduler, rest: bool = True, **request: object) -> int:
    id = scheduler.add([0], **({"max_tokens": 40} | request))  # type: ignore[arg-type]
    scheduler.take_events()
    scheduler.route(id, SMALL, rest)
    return id


def feed(scheduler: Scheduler, id: int, token: int) -> bool:
    """One token; True when the sequence is over."""
    if scheduler.sequence(id).awaits_route:
        scheduler.take_events()
        scheduler.route(id, SMALL)
    assert scheduler.plan(SMALL) == 1
    scheduler.commit(SMALL, np.array([token], np.int32))
    scheduler.check_integrity()
    return scheduler.sequence(id).phase == OVER


PIECE = st.binary(min_size=1, max_size=4).map(lambda b: bytes(b"ab\n"[x % 3] for x in b))


@given(
    vocabulary=st.lists(PIECE, min_size=1, max_size=5),
    stops=st.lists(PIECE, min_size=1, max_size=3),
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=30),
)
def test_stop_strings_against_a_plain_search(vocabulary, stops, tokens):
    """The first match ends the text, which is cut before it; nothing settled is ever cut."""
    scheduler = build(vocabulary)
    id = start(scheduler, max_tokens=len(tokens), stop_strings=stops)
    text = b""
    for token in tokens:
        token %= len(vocabulary)
        over = feed(scheduler, id, token)
        text += vocabulary[token]
        found = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
        held = scheduler.sequence(id)
        if found:  # the earliest end; of those that end there the longest
            assert over and held.finish == STOP
            assert len(text) - held.cut_bytes == min(found)[1]
            return
        assert held.cut_bytes == 0
        if not over:
            settled = b"".join(vocabulary[t] for t in held.tokens[1 : held.settled])
            open_text = text[len(settled) :]
            longest = max(n for s in stops for n in range(len(s)) if text.endswith(s[:n]))
            assert len(open_text) >= longest, "text that may belong to a stop string was settled"
    assert scheduler.sequence(id).finish == LENGTH


def test_text_is_held_back_no_longer_than_needed():
    """Once it cannot become a stop string any more it is settled."""
    scheduler = build([b"a", b"b", b"c"])
    id = start(scheduler, stop_strings=[b"abc"])
    settled = []
    for token in (0, 1, 0, 1, 1):
        feed(scheduler, id, token)
        settled.append(scheduler.sequence(id).settled)
    assert settled == [1, 1, 3, 3, 6]


def test_truncation_restores_the_search():
    """The half of a stop string that was taken back does not count."""
    scheduler = build([b"a", b"b", b"c"])
    id = start(scheduler, stop_strings=[b"abc"], settle_at_once=False)
    for token in (2, 0, 1):
        feed(scheduler, id, token)
    scheduler.truncate(id, 3)
    assert not feed(scheduler, id, 2)
    for token in (0, 1):
        assert not feed(scheduler, id, token)
    assert feed(scheduler, id, 2)
    assert scheduler.sequence(id).cut_bytes == 3


@pytest.mark.parametrize("stop", [{"stop_ids": [1]}, {"stop_strings": [b"b"]}])
def test_min_tokens_come_before_any_stop(stop: dict[str, object]):
    scheduler = build([b"a", b"b"])
    id = start(scheduler, min_tokens=3, **stop)
    assert [feed(scheduler, id, 1) for _ in range(4)] == [False, False, False, True]
    assert scheduler.sequence(id).finish == STOP


def test_a_long_step_is_closed():
    """After three tokens a boundary is forced; a delimiter starts the count anew."""
    scheduler = build([b"a", b"\n\n"])
    id = start(scheduler, rest=False, max_step_tokens=3)
    for token in (0, 0, 0, 0, 1, 0, 0, 0, 0):
        feed(scheduler, id, token)
    assert [s for s, _ in scheduler.sequence(id).steps] == [1, 4, 6, 9]


def test_a_decision_for_the_rest_asks_no_more():
    """Boundaries still open steps, but none is read and no event asks about them."""
    scheduler = build([b"a", b"\n\n"])
    id = scheduler.add([0], max_tokens=40, reader=SMALL)
    assert scheduler.plan(SMALL) == 1
    scheduler.commit(SMALL, np.array([0], np.int32))
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    scheduler.route(id, LARGE, rest=True)
    for token in (0, 1, 0, 1, 0):
        assert scheduler.plan(SMALL) == 0
        assert scheduler.plan(LARGE) == 1
        scheduler.commit(LARGE, np.array([token], np.int32))
        assert scheduler.take_events() == []
    assert scheduler.sequence(id).steps == [(1, LARGE), (3, LARGE), (5, LARGE)]


def test_a_truncation_past_it_takes_the_decision_back():
    scheduler = build([b"a", b"\n\n"])
    id = start(scheduler, rest=True, settle_at_once=False)
    for token in (0, 1, 0):
        feed(scheduler, id, token)
    scheduler.truncate(id, 3)  # after the delimiter: the decision for the rest still stands
    assert not scheduler.sequence(id).awaits_route
    scheduler.truncate(id, 1)  # to where it was taken
    assert scheduler.sequence(id).awaits_route


def test_a_full_queue_refuses():
    scheduler = build([b"a"], max_waiting=2)
    for _ in range(2):
        scheduler.add([0], max_tokens=4)
    with pytest.raises(OverflowError, match="the queue is full: 2 requests wait"):
        scheduler.add([0], max_tokens=4)
    scheduler.plan(SMALL)  # admits both
    scheduler.add([0], max_tokens=4)


def test_a_deadline_is_a_reason_of_its_own():
    """In flight it takes effect when the batch retires."""
    scheduler = build([b"a"])
    idle, flying = start(scheduler), start(scheduler)
    scheduler.abort(idle, deadline=True)
    assert scheduler.sequence(idle).finish == DEADLINE
    scheduler.plan(SMALL)
    scheduler.abort(flying, deadline=True)
    assert scheduler.sequence(flying).phase != OVER
    scheduler.commit(SMALL, np.zeros(1, np.int32))
    assert scheduler.sequence(flying).finish == DEADLINE


def test_bad_requests():
    scheduler = build([b"a"])
    for wrong in ({"stop_strings": [b""]}, {"min_tokens": -1}, {"max_step_tokens": -1}):
        with pytest.raises(ValueError):
            scheduler.add([0], max_tokens=4, **wrong)


def test_an_ignored_match_does_not_hide_the_next_one():
    """The rest of the token is searched on."""
    scheduler = build([b"aSTO", b"P", b"x"])
    id = start(scheduler, stop_strings=[b"a", b"STOP"], min_tokens=1)
    assert [feed(scheduler, id, token) for token in (0, 1)] == [False, True]
    assert scheduler.sequence(id).cut_bytes == 4


def test_a_stop_token_is_cut_from_the_text():
    scheduler = build([b"a", b"end"])
    id = start(scheduler, stop_ids=[1])
    assert not feed(scheduler, id, 0) and feed(scheduler, id, 1)
    assert scheduler.sequence(id).cut_bytes == 3
