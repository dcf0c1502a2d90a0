"""Which requests the scheduler refuses, and what the others wait for."""

from __future__ import annotations

import pytest

from .kinds import LARGE, LENGTH, SMALL
from .steps import A, B, Make, commit, spans, start, tick


@pytest.mark.parametrize(
    ("prompt", "request_", "message"),
    [
        (0, {}, "prompt is empty"),
        (3, {"max_tokens": 0}, "max_tokens"),
        (3, {"reader": 2}, "reader"),
        (3, {"reader": -2}, "reader"),
        (60, {"max_tokens": 5}, "context of 64"),
        (20, {"max_tokens": 13}, "arena holds 32"),
    ],
)
def test_requests_that_can_never_run(
    make_scheduler: Make, prompt: int, request_: dict[str, int], message: str
) -> None:
    """They are refused at once, with what is wrong."""
    scheduler = make_scheduler(slabs=8)
    with pytest.raises(ValueError, match=message):
        start(scheduler, prompt, SMALL, **request_)
    assert (scheduler.waiting, scheduler.take_events()) == (0, [])


def test_a_refused_request_holds_no_lane(make_scheduler: Make) -> None:
    """Nothing has come that the other lane might do: no plan is put off for it."""
    scheduler = make_scheduler(lane_policy="throughput")
    scheduler.plan(SMALL)
    with pytest.raises(ValueError, match="must not be empty"):
        scheduler.add([A], max_tokens=2, stop_strings=[b""])
    scheduler.plan(LARGE)
    assert scheduler.counters()["held"] == [0, 0]


@pytest.mark.parametrize("policy", ["latency", "weighted", "throughput", "auto"])
@pytest.mark.parametrize("order", [(SMALL, LARGE), (LARGE, SMALL)])
@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_what_arrives_holds_up_nobody(
    make_scheduler: Make, policy: str, order: tuple[int, int], model: int
) -> None:
    """Requests that come in every round bring the other lane no work yet: no lane waits for it."""
    scheduler = make_scheduler(lane_policy=policy, automatic_from=0, max_sequences=2)
    ids = [start(scheduler, 3, model, max_tokens=20) for _ in range(2)]
    for _ in range(2 * 20):
        scheduler.add([A], max_tokens=2)
        for lane in order:
            if count := scheduler.plan(lane):
                commit(scheduler, lane, *[B] * count)
    assert [scheduler.sequence(id).finish for id in ids] == [LENGTH] * 2


def test_what_is_impossible_is_not_put_off(make_scheduler: Make) -> None:
    """A full queue asks to try again later; a request that can never run is told so at once."""
    scheduler = make_scheduler(max_waiting=1)
    start(scheduler, 2, SMALL)
    with pytest.raises(ValueError, match="must not be empty"):
        scheduler.add([A], max_tokens=2, stop_strings=[b""])


@pytest.mark.parametrize(
    "change",
    [
        {"block_tokens": 0},
        {"max_context": 1},
        {"max_sequences": 0},
        {"max_tick_tokens": 8},
        {"slabs": 0},
        {"slots": (0, 1)},
        {"delimiters": []},
    ],
)
def test_impossible_settings(make_scheduler: Make, change: dict[str, object]) -> None:
    """The constructor says what would be right; a tick must hold more than every decode."""
    with pytest.raises(ValueError):
        make_scheduler(**change)


def test_newcomers_push_nobody_out(make_scheduler: Make) -> None:
    """A request waits until free memory holds its prompt, whatever its priority."""
    scheduler = make_scheduler(slabs=4)
    first = start(scheduler, 11, LARGE, max_tokens=5)
    tick(scheduler, LARGE, B)
    second = start(scheduler, 7, LARGE, max_tokens=2, priority=-1)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]
    assert scheduler.waiting == 1
    scheduler.abort(first)
    assert list(spans(tick(scheduler, LARGE, B))) == [second]
