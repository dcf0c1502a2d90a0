"""A relayed sequence and its shadow, the same text in the large model's tokens."""

from __future__ import annotations

import pytest

from engine._core import Scheduler

from .conftest import TOKEN_BYTES
from .kinds import ABORT, DECIDE, FINISHED, LARGE, RUNNING, SMALL
from .steps import BOTH, A, B, C, Make, spans, tick, write


def relayed(scheduler: Scheduler, **request: object) -> int:
    """A request of two tokens whose shadow writes the first step."""
    id = scheduler.add([A, B], max_tokens=16, relay=True, **request)  # type: ignore[arg-type]
    assert scheduler.plan(SMALL) == 0  # it is let in, and asks
    ((kind, sequence, row),) = scheduler.take_events()
    assert (kind, sequence, row) == (DECIDE, id, -1)
    return id


@pytest.fixture
def scheduler(make_scheduler: Make) -> Scheduler:
    return make_scheduler(large_token_bytes=TOKEN_BYTES)


def test_a_shadow_is_known_by_its_flag(scheduler: Scheduler) -> None:
    """The core names both; ids of requests do not shift because of shadows."""
    id = relayed(scheduler)
    assert scheduler.shadow_of(id) is None
    shadow = scheduler.add_shadow(id, prompt=[C, A, B])
    assert scheduler.shadow_of(id) == shadow != id and scheduler.shadow_of(shadow) is None
    assert scheduler.sequence(shadow).id == shadow
    assert (scheduler.sequence(id).shadow, scheduler.sequence(shadow).shadow) == (False, True)
    assert scheduler.add([A], max_tokens=1) == id + 1


def test_events_about_a_shadow_carry_its_request(scheduler: Scheduler) -> None:
    """The sequence's own id and a flag, which no unpacking and no comparison sees."""
    id = relayed(scheduler)
    shadow = scheduler.add_shadow(id, prompt=[C, A, B])
    scheduler.cross(id, [])
    write(scheduler, LARGE, C, BOTH)
    (event,) = scheduler.take_events()
    assert event == (DECIDE, id, -1) and event.shadow
    assert (event.kind, event.sequence, event.row) == (DECIDE, id, -1)
    scheduler.cross_back(id, [C, BOTH])
    (event,) = scheduler.take_events()
    assert event == (DECIDE, id, -1) and not event.shadow
    scheduler.abort(id)
    ends = [(*event, event.shadow) for event in scheduler.take_events()]
    assert ends == [(FINISHED, id, -1, False), (FINISHED, id, -1, True)]
    assert scheduler.sequence(shadow).finish == ABORT
    scheduler.forget(shadow)
    assert scheduler.shadow_of(id) is None
    scheduler.forget(id)
    assert scheduler.shadow_of(id) is None


def test_a_shadow_comes_right_after_its_sequence(scheduler: Scheduler) -> None:
    """In the order of a plan, before requests that arrived later."""
    first, second = relayed(scheduler), relayed(scheduler)
    shadows = [scheduler.add_shadow(id, prompt=[C, A, B]) for id in (second, first)]
    for id in (first, second):
        scheduler.cross(id, [])
    assert list(spans(tick(scheduler, LARGE, C, C))) == shadows[::-1]
    assert all(scheduler.sequence(id).phase == RUNNING for id in shadows)


def test_a_boundary_is_read_again_if_a_step_comes_back_without_text(scheduler: Scheduler) -> None:
    """Its logits are gone, though the reader has computed all."""
    id = scheduler.add([A, B], max_tokens=16, relay=True, reader=SMALL)
    tick(scheduler, SMALL, A)
    scheduler.add_shadow(id, prompt=[C, A, B])
    scheduler.cross(id, [])
    write(scheduler, LARGE, C, BOTH)
    assert scheduler.sequence(id).computed == [2, 0]
    scheduler.cross_back(id, [])
    assert spans(tick(scheduler, SMALL, B)) == {id: [1]}
    assert scheduler.take_events()[-1] == (DECIDE, id, 0)


def test_a_sequence_has_one_shadow(scheduler: Scheduler) -> None:
    id, plain = relayed(scheduler), scheduler.add([A], max_tokens=1)
    shadow = scheduler.add_shadow(id, prompt=[C])
    for wrong in (id, shadow, plain):
        with pytest.raises(RuntimeError, match="must be relayed, running and without a shadow"):
            scheduler.add_shadow(wrong, prompt=[C])
