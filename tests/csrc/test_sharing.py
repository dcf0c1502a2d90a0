"""Samples of one prompt, reading along, and lane policies, one rule a test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine._core import Scheduler

from .kinds import FINISHED, LARGE, LENGTH, SMALL

A, B, DELIMITER = 0, 1, 7
Make = Callable[..., Scheduler]


def samples(scheduler: Scheduler, prompt: int, count: int, model: int = SMALL) -> range:
    """``count`` answers to one prompt, all routed to a model for good."""
    first = scheduler.add([A] * prompt, max_tokens=8, samples=count)
    scheduler.take_events()
    for id in range(first, first + count):
        scheduler.route(id, model, rest=True)
    return range(first, first + count)


def tick(scheduler: Scheduler, lane: int, token: int = B) -> dict[int, int]:
    """Plan and commit; rows by sequence."""
    count = scheduler.plan(lane)
    plan = scheduler.buffers(lane)
    rows = np.diff(plan.starts[: count + 1]).tolist()
    found = dict(zip(plan.ids[:count].tolist(), rows, strict=True))
    if count:
        scheduler.commit(lane, np.full(count, token, np.int32))
    return found


def test_later_samples_wait_and_then_share(make_scheduler: Make):
    """Blocks of 4: of a prompt of 11 two are shared, the third is copied, one row is left."""
    scheduler = make_scheduler(max_tick_tokens=9, max_sequences=8)
    ids = samples(scheduler, 11, 3)
    assert tick(scheduler, SMALL) == {ids[0]: 9}  # the others do not compute the same rows
    assert tick(scheduler, SMALL) == {ids[0]: 2}
    assert tick(scheduler, SMALL) == dict.fromkeys(ids, 1)
    assert scheduler.pool.live(SMALL) == 2 + 3
    for id in ids[1:]:
        sequence = scheduler.sequence(id)
        assert sequence.cached[SMALL] == 10
        assert sequence.rows[SMALL, 0, 0] == 0  # none of the kind prompt
    counters = scheduler.counters()
    assert (counters["shared"], counters["copied"]) == ([4, 0], [2, 0])


def test_a_copy_is_listed_and_its_source_held(make_scheduler: Make):
    """The first sample ends while the copy of its block is in flight: the block stays."""
    scheduler = make_scheduler()
    ids = samples(scheduler, 6, 2)
    assert tick(scheduler, SMALL) == {ids[0]: 6}
    source = int(scheduler.buffers(SMALL).blocks[0][1])
    assert scheduler.plan(SMALL) == 2
    plan = scheduler.buffers(SMALL)
    target = int(plan.blocks[1][1])
    assert plan.copies[: plan.copied].tolist() == [[source, target]]
    assert scheduler.pool.references(SMALL, source) == 2
    scheduler.abort(ids[0])
    scheduler.preempt(ids[1])
    assert scheduler.pool.references(SMALL, source) == 2
    scheduler.commit(SMALL, np.array([B, B], np.int32))
    assert scheduler.pool.references(SMALL, source) == 0


def copies(scheduler: Scheduler, lane: int) -> list[list[int]]:
    """What the plan at hand copies: all at once, so nothing that is written may be read."""
    plan = scheduler.buffers(lane)
    found = plan.copies[: plan.copied].tolist()
    assert not {source for source, _ in found} & {target for _, target in found}
    return found


def test_who_stands_behind_two_copies_reads_what_the_first_copy_read(make_scheduler: Make):
    """The others join the second sample, which alone has computed the prompt."""
    scheduler = make_scheduler(max_tick_tokens=9, max_sequences=8)
    first = scheduler.add([A] * 10, max_tokens=8, samples=4)
    scheduler.take_events()
    scheduler.route(first + 1, SMALL, rest=True)
    assert tick(scheduler, SMALL) == {first + 1: 9}
    source = int(scheduler.buffers(SMALL).blocks[0][2])
    for id in (first, first + 2, first + 3):
        scheduler.route(id, SMALL, rest=True)
    assert scheduler.plan(SMALL) == 4
    found = copies(scheduler, SMALL)
    assert [pair[0] for pair in found] == [source] * 3
    assert scheduler.pool.references(SMALL, source) == 1 + 3
    scheduler.commit(SMALL, np.full(4, B, np.int32))
    assert scheduler.pool.references(SMALL, source) == 1
    scheduler.check_integrity()


def test_who_lost_its_blocks_reads_what_the_first_copy_read(make_scheduler: Make):
    """A sample that was cut to its prompt has its last block; two others have lost theirs."""
    scheduler = make_scheduler(max_tick_tokens=64, max_sequences=8)
    first = scheduler.add([A] * 6, max_tokens=8, samples=3, settle_at_once=False)
    scheduler.take_events()
    for id in range(first, first + 3):
        scheduler.route(id, SMALL, rest=True)
    tick(scheduler, SMALL)
    tick(scheduler, SMALL)
    scheduler.truncate(first + 2, 6)
    scheduler.take_events()
    for id in (first, first + 1):
        scheduler.preempt(id)
    tick(scheduler, SMALL)
    assert len(copies(scheduler, SMALL)) == 2
    scheduler.check_integrity()


def test_nobody_waits_for_a_sample_that_is_stopped(make_scheduler: Make):
    """The first takes the block of the second; the third asks for one itself, and there is none."""
    scheduler = make_scheduler(slabs=3, slots=(1, 1), max_context=12)
    ids = samples(scheduler, 3, 3)
    assert tick(scheduler, SMALL) == {ids[0]: 3}
    assert tick(scheduler, SMALL) == dict.fromkeys(ids, 1)
    scheduler.preempt(ids[2])
    assert tick(scheduler, SMALL) == dict.fromkeys(ids[:2], 1)
    for _ in range(4):
        assert tick(scheduler, SMALL) == {ids[0]: 1}
    assert [scheduler.sequence(id).suspended for id in ids] == [False, True, False]
    assert scheduler.sequence(ids[1]).computed == [0, 0]
    assert scheduler.buffers(SMALL).short_of_memory


def test_admission_counts_a_shared_prompt_once(make_scheduler: Make):
    """Four blocks of a prompt and one more for each sample: room for three, not for one only."""
    scheduler = make_scheduler(slabs=8, slots=(1, 1), max_context=32)
    ids = samples(scheduler, 17, 3, LARGE)
    tick(scheduler, LARGE)
    assert scheduler.running == 3
    assert set(tick(scheduler, LARGE)) == set(ids)
    assert scheduler.pool.live(LARGE) == 4 + 3
    assert scheduler.counters()["preemptions"] == 0


@pytest.mark.parametrize("count", [0, -1])
def test_samples_are_counted_from_one(make_scheduler: Make, count: int):
    with pytest.raises(ValueError, match="samples must be at least 1"):
        make_scheduler().add([A], max_tokens=1, samples=count)


def test_reading_along_stops_before_the_last_settled_token(make_scheduler: Make):
    scheduler = make_scheduler(background=(0, 3))
    id = scheduler.add([A] * 6, max_tokens=20, reader=SMALL)
    assert tick(scheduler, LARGE) == {id: 5}  # a prompt is settled at once
    tick(scheduler, SMALL)
    scheduler.take_events()
    scheduler.route(id, SMALL)
    assert tick(scheduler, LARGE) == {}
    for _ in range(2):
        tick(scheduler, SMALL)
    assert scheduler.sequence(id).length == 9
    assert tick(scheduler, LARGE) == {id: 3}
    assert scheduler.sequence(id).computed[LARGE] == 8
    assert scheduler.counters()["background"] == [0, 8]


def test_reading_along_takes_nothing_from_anyone(make_scheduler: Make):
    """Not a cached block, not what a sequence holds; and what was lost is not read along again."""
    scheduler = make_scheduler(slabs=2, slots=(2, 1), max_context=8, background=(0, 1))
    id = scheduler.add([A] * 6, max_tokens=2, reader=SMALL)
    assert scheduler.plan(SMALL) == 1
    assert tick(scheduler, LARGE) == {id: 4}  # the one free slab holds a block of four
    scheduler.commit(SMALL, np.array([B], np.int32))
    assert tick(scheduler, LARGE) == {}
    scheduler.preempt(id)
    assert tick(scheduler, LARGE) == {}


def test_a_step_that_ends_in_flight_elsewhere_ends_later(make_scheduler: Make):
    """The small model stops while the large one reads along: the end waits for that tick."""
    scheduler = make_scheduler(background=(0, 1))
    id = scheduler.add([A] * 6, max_tokens=1, reader=SMALL)
    scheduler.plan(LARGE)
    tick(scheduler, SMALL)
    scheduler.take_events()
    scheduler.route(id, SMALL)
    sequence = scheduler.sequence(id)
    assert (sequence.phase, sequence.length) == (1, 7)
    assert scheduler.plan(SMALL) == 0
    scheduler.commit(LARGE, np.zeros(1, np.int32))
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert scheduler.sequence(id).finish == LENGTH


def running(scheduler: Scheduler, small: int, large: int) -> None:
    """So many decoding sequences on each lane."""
    for model, count in ((SMALL, small), (LARGE, large)):
        for _ in range(count):
            id = scheduler.add([A] * 2, max_tokens=40)
            scheduler.take_events()
            scheduler.route(id, model, rest=True)


def lanes(scheduler: Scheduler, rounds: int) -> str:
    """Which lane ran, in order: s and l; each is asked in turn."""
    ran = ""
    for _ in range(rounds):
        for lane, name in ((SMALL, "s"), (LARGE, "l")):
            if tick(scheduler, lane):
                ran += name
    return ran


def test_latency_runs_both(make_scheduler: Make):
    scheduler = make_scheduler()
    running(scheduler, 2, 2)
    assert lanes(scheduler, 4) == "slslslsl"


def test_weighted_shares_the_time(make_scheduler: Make):
    """A large tick of four units is paid for by four small ones."""
    scheduler = make_scheduler(lane_policy="weighted", tick_cost=(1.0, 4.0))
    running(scheduler, 2, 2)
    assert lanes(scheduler, 20).count("s") == pytest.approx(16, abs=4)
    favoured = make_scheduler(lane_policy="weighted", tick_cost=(1.0, 4.0), lane_weight=(1.0, 4.0))
    running(favoured, 2, 2)
    ran = lanes(favoured, 20)
    assert abs(ran.count("s") - ran.count("l")) <= 1


def test_throughput_waits_for_enough(make_scheduler: Make):
    """Below ``gather`` the small lane runs, until a large step has been held for long enough."""
    scheduler = make_scheduler(lane_policy="throughput", gather=3, hold_ticks=4)
    running(scheduler, 2, 2)
    assert lanes(scheduler, 15).startswith("sssslssssl")
    running(scheduler, 0, 1)
    assert "l" * 4 + "s" + "l" * 4 in lanes(scheduler, 20)  # and no lane starves


def test_a_lane_alone_is_never_held(make_scheduler: Make):
    for policy in ("weighted", "throughput", "auto"):
        for small, large in ((3, 0), (0, 1)):
            scheduler = make_scheduler(lane_policy=policy, gather=3, tick_cost=(1.0, 50.0))
            running(scheduler, small, large)
            assert len(lanes(scheduler, 6)) >= 5


def test_auto_gathers_above_a_load(make_scheduler: Make):
    scheduler = make_scheduler(lane_policy="auto", automatic_from=4, gather=4)
    running(scheduler, 2, 2)
    assert lanes(scheduler, 3) == "slslsl"
    running(scheduler, 1, 0)
    assert lanes(scheduler, 6) == "s" * 6


def test_what_is_enough_follows_the_work(make_scheduler: Make):
    """Costly large ticks are shared by more sequences than cheap ones."""
    shares = []
    for cost in (1.0, 30.0):
        scheduler = make_scheduler(
            lane_policy="throughput", tick_cost=(1.0, cost), max_sequences=16, hold_ticks=1000
        )
        running(scheduler, 8, 8)
        ran = lanes(scheduler, 12)
        shares.append(ran.count("l") / len(ran))
    assert shares[0] > shares[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lane_policy": "fair"}, "unknown lane policy 'fair'; known: latency, weighted"),
        ({"gather": -1}, "gather and automatic_from must be 0 or more"),
        ({"hold_ticks": 0}, "hold_ticks at least 1"),
        ({"tick_cost": (0.0, 1.0)}, "must be above 0"),
        ({"lane_weight": (1.0, float("nan"))}, "must be above 0"),
        ({"background": (-1, 0)}, "background must be 0"),
    ],
)
def test_bad_settings(make_scheduler: Make, settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        make_scheduler(**settings)
