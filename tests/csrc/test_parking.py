"""KV of the large model in host memory: what is saved, what comes back, and when not.

That blocks hold what they should is checked by test_random.py and test_ahead_random.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine._core import Plan, Scheduler

from .kinds import ERROR, LARGE, RECOMPUTE, SMALL

Make = Callable[..., Scheduler]

A, B, DELIMITER = 0, 1, 8  # text and then one: see conftest.TOKEN_BYTES


def add(scheduler: Scheduler, token: int, length: int = 9, **more: int) -> int:
    return scheduler.add([token] * length, **({"max_tokens": 3} | more))


def start(scheduler: Scheduler, token: int) -> int:
    id = add(scheduler, token)
    scheduler.route(id, LARGE)
    return id


def plan(scheduler: Scheduler, lane: int) -> Plan:
    scheduler.plan(lane)
    scheduler.check_integrity()
    return scheduler.buffers(lane)


def commit(scheduler: Scheduler, lane: int, *tokens: int) -> None:
    """One token a sequence; text for those that get none."""
    count = scheduler.buffers(lane).sequences
    drawn = [*tokens, *[A] * (count - len(tokens))]
    scheduler.commit(lane, np.array(drawn, np.int32))
    scheduler.check_integrity()


def finish(scheduler: Scheduler, id: int) -> None:
    scheduler.abort(id)
    scheduler.take_events()
    scheduler.forget(id)


def saves(plan: Plan) -> list[list[int]]:
    return plan.saves[: plan.saved].tolist()


def restores(plan: Plan) -> list[list[int]]:
    return plan.restores[: plan.restored].tolist()


def robbed(make_scheduler: Make, host_blocks: int) -> tuple[Scheduler, int, int, Plan]:
    """Two full blocks and a part that the first sequence has left on the large model have just been
    taken by the second one, whose tick is planned. An arena of four large blocks."""
    scheduler = make_scheduler(slabs=4, prefix_cache=True, host_blocks=host_blocks)
    first, second = add(scheduler, A), add(scheduler, B)  # both run before memory is short
    scheduler.route(first, LARGE)
    plan(scheduler, LARGE)
    commit(scheduler, LARGE, DELIMITER)
    scheduler.route(first, SMALL)
    plan(scheduler, SMALL)
    commit(scheduler, SMALL, DELIMITER)
    scheduler.route(second, LARGE)
    return scheduler, first, second, plan(scheduler, LARGE)


def back_again(make_scheduler: Make, host_blocks: int) -> tuple[Scheduler, int, Plan]:
    """The second one is over, and the first one is planned on the large model again."""
    scheduler, first, second, _ = robbed(make_scheduler, host_blocks)
    commit(scheduler, LARGE)
    finish(scheduler, second)
    scheduler.route(first, LARGE)
    return scheduler, first, plan(scheduler, LARGE)


def test_what_the_large_lane_takes_is_saved_and_comes_back(make_scheduler: Make):
    scheduler, first, second, taking = robbed(make_scheduler, 8)
    # The last block first: it is the first to go. The part of a block after it is not kept.
    (last, slot_of_last), (front, slot_of_front) = saves(taking)
    assert {last, front} < set(taking.blocks[0, :3].tolist())
    assert scheduler.sequence(first).computed[LARGE] == 0
    commit(scheduler, LARGE)
    finish(scheduler, second)
    scheduler.route(first, LARGE)
    back = plan(scheduler, LARGE)
    table = back.blocks[0].tolist()
    assert restores(back) == [[slot_of_front, table[0]], [slot_of_last, table[1]]]
    assert back.positions[: back.rows].tolist() == [8, 9, 10]
    # The other one's blocks give way in turn, before what comes back is written over them.
    assert {block for block, _ in saves(back)} <= set(table[:3]) and back.saved > 0
    commit(scheduler, LARGE)
    held = scheduler.sequence(first)
    assert held.restored == 8
    assert held.rows[LARGE, RECOMPUTE, 0] == 1  # of the part of a block
    assert held.cached == [0, 0]
    counters = scheduler.counters()
    assert counters["restored"] == 2
    assert counters["saved"] == scheduler.host_used == 2 + back.saved


def test_what_the_small_lane_takes_is_saved_and_comes_back(make_scheduler: Make):
    """A slab of the large model goes to the other lane, in the tick that copies it out."""
    scheduler = make_scheduler(slabs=4, slots=(2, 1), prefix_cache=True, host_blocks=8)
    first = add(scheduler, A, length=13)
    scheduler.route(first, LARGE)
    plan(scheduler, LARGE)
    commit(scheduler, LARGE, DELIMITER)
    scheduler.route(first, SMALL)
    taking = plan(scheduler, SMALL)  # 14 rows: four blocks, two slabs
    ((block, slot),) = saves(taking)  # the other one held a part of a block
    assert block in {small // 2 for small in taking.blocks[0, :4].tolist()}
    assert scheduler.sequence(first).computed == [0, 8]
    commit(scheduler, SMALL, DELIMITER)
    scheduler.route(first, LARGE)
    back = plan(scheduler, LARGE)
    assert restores(back) == [[slot, int(back.blocks[0, 2])]]
    assert back.positions[: back.rows].tolist() == [12, 13, 14]


def test_what_lies_behind_a_saved_block_is_found_again(make_scheduler: Make):
    """The first slab of a sequence goes to the other lane; the second one also holds a block of
    a sequence that may not be robbed, so what the sequence had there stays cached. It is not
    evicted for what comes back before it, though another block was used later."""
    scheduler = make_scheduler(slabs=3, slots=(4, 2), prefix_cache=True, host_blocks=8)
    robbed, thief = add(scheduler, A, length=11, max_tokens=6), add(scheduler, B, length=3)
    spared = add(scheduler, B + 1, length=3, priority=-1)
    scheduler.route(robbed, LARGE)
    plan(scheduler, LARGE)
    commit(scheduler, LARGE)
    scheduler.route(spared, LARGE)
    plan(scheduler, LARGE)
    commit(scheduler, LARGE, DELIMITER, DELIMITER)
    table = scheduler.buffers(LARGE).blocks[1, :3].tolist()
    scheduler.route(robbed, SMALL)
    plan(scheduler, SMALL)
    commit(scheduler, SMALL, DELIMITER)
    scheduler.route(thief, SMALL)
    assert [block for block, _ in saves(plan(scheduler, SMALL))] == table[:2]
    commit(scheduler, SMALL)
    scheduler.route(spared, LARGE)
    plan(scheduler, LARGE)
    commit(scheduler, LARGE)
    finish(scheduler, thief)
    finish(scheduler, spared)
    assert scheduler.pool.cached(LARGE) == 2
    scheduler.route(robbed, LARGE)
    back = plan(scheduler, LARGE)
    assert (back.sequences, back.restored, int(back.blocks[0, 2])) == (1, 2, table[2])
    held = scheduler.sequence(robbed)
    assert (held.restored, held.cached[LARGE], held.computed[LARGE]) == (8, 4, 12)


def test_nothing_is_saved_twice(make_scheduler: Make):
    """The copy stays when its block is back: evicted once more, that is only forgotten."""
    scheduler, first, _ = back_again(make_scheduler, 8)
    commit(scheduler, LARGE)
    finish(scheduler, first)
    saved = scheduler.counters()["saved"]
    other = start(scheduler, B + 1)
    assert plan(scheduler, LARGE).sequences == 1
    assert scheduler.counters()["evictions"][LARGE] > 2
    assert scheduler.counters()["saved"] == saved
    commit(scheduler, LARGE)
    finish(scheduler, other)
    start(scheduler, A)
    assert plan(scheduler, LARGE).restored > 0


def test_a_full_tier_gives_up_what_was_used_longest_ago(make_scheduler: Make):
    """While a tick writes the only slot, it cannot be had; afterwards it can."""
    scheduler, first, second, taking = robbed(make_scheduler, 1)
    assert (taking.saved, scheduler.host_used) == (1, 1)
    commit(scheduler, LARGE)
    finish(scheduler, second)
    scheduler.route(first, LARGE)
    back = plan(scheduler, LARGE)
    # The block before it is gone, so it cannot be found; the slot goes to the second one's.
    assert (back.restored, back.saved, scheduler.host_used) == (0, 1, 1)
    commit(scheduler, LARGE)
    assert scheduler.sequence(first).restored == 0
    assert scheduler.sequence(first).rows[LARGE, RECOMPUTE, 0] == 9


def test_a_tick_that_fails_has_saved_nothing(make_scheduler: Make):
    scheduler, _, second, taking = robbed(make_scheduler, 8)
    assert (taking.saved, scheduler.host_used) == (2, 2)
    scheduler.fail(LARGE)
    scheduler.check_integrity()
    assert scheduler.sequence(second).finish == ERROR
    assert scheduler.host_used == 0


def test_a_tick_that_fails_brings_nothing_back(make_scheduler: Make):
    """What it should have written is not found on the device, but once more in host memory."""
    scheduler, first, failing = back_again(make_scheduler, 8)
    assert failing.restored == 2
    scheduler.fail(LARGE)
    scheduler.check_integrity()
    assert scheduler.sequence(first).finish == ERROR
    again = start(scheduler, A)
    back = plan(scheduler, LARGE)
    assert (back.restored, back.rows) == (2, 1)
    assert scheduler.sequence(again).cached == [0, 0]


def test_what_gave_unusable_logits_is_kept_nowhere(make_scheduler: Make):
    scheduler, _, back = back_again(make_scheduler, 8)
    assert back.restored == 2
    commit(scheduler, LARGE, -1)
    start(scheduler, A)
    again = plan(scheduler, LARGE)
    assert (again.restored, again.rows) == (0, 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host_blocks": 4}, "host_blocks needs prefix_cache"),
        ({"host_blocks": -1, "prefix_cache": True}, "host_blocks must be 0 .off. or more"),
    ],
)
def test_bad_settings(make_scheduler: Make, settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        make_scheduler(**settings)
