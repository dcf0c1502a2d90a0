"""The scheduler's plans: batches, buffers, and what a handoff costs. One behaviour a test."""

from __future__ import annotations

import numpy as np
import pytest

from engine._core import Scheduler

from .kinds import CATCHUP, DECIDE, LARGE, PROMPT, RECOMPUTE, SAMPLED, SMALL, WAITING
from .steps import BOTH, A, B, C, Make, commit, keys, kinds, spans, start, tick, write

# -- batching


def test_prefill_is_chunked(make_scheduler: Make) -> None:
    """A long prompt takes several ticks; only the last row of the last one is sampled."""
    scheduler = make_scheduler(max_tick_tokens=9)
    id = start(scheduler, 20, SMALL)
    for first, last in [(0, 9), (9, 18), (18, 20)]:
        plan = tick(scheduler, SMALL, B)
        assert spans(plan) == {id: list(range(first, last))}
        assert (plan.samples[0], plan.contexts[0]) == (last == 20, last)
    assert scheduler.sequence(id).tokens.tolist() == [A] * 20 + [B]


def test_decodes_come_before_prefills(make_scheduler: Make) -> None:
    """A prefill gets the rows that decodes leave, even where it stands before them."""
    scheduler = make_scheduler(max_tick_tokens=9)
    decode = start(scheduler, 4, SMALL)
    tick(scheduler, SMALL, B)
    prefill = start(scheduler, 30, SMALL, priority=-1)
    assert scheduler.plan(SMALL) == 2
    plan = scheduler.buffers(SMALL)
    assert spans(plan) == {prefill: list(range(8)), decode: [4]}
    assert plan.samples[:2].tolist() == [0, 1]


def test_order_is_priority_then_arrival(make_scheduler: Make) -> None:
    """Lower priority numbers go first; equal ones in order of arrival."""
    scheduler = make_scheduler()
    ids = [start(scheduler, 2, SMALL, priority=p) for p in (1, 0, 1, -3)]
    assert scheduler.plan(SMALL) == 4
    assert scheduler.buffers(SMALL).ids[:4].tolist() == [ids[3], ids[1], ids[0], ids[2]]


def test_sequences_join_and_leave_between_ticks(make_scheduler: Make) -> None:
    """Batching is continuous: no request waits for the batch to end."""
    scheduler = make_scheduler()
    one = start(scheduler, 3, SMALL, max_tokens=2)
    tick(scheduler, SMALL, B)
    two = start(scheduler, 3, SMALL)
    assert spans(tick(scheduler, SMALL, B, B)) == {one: [3], two: [0, 1, 2]}
    assert spans(tick(scheduler, SMALL, B)) == {two: [3]}


def test_only_so_many_run_at_once(make_scheduler: Make) -> None:
    """The rest waits and is admitted as others finish."""
    scheduler = make_scheduler(max_sequences=2)
    ids = [start(scheduler, 2, SMALL, max_tokens=1 + i) for i in range(3)]
    tick(scheduler, SMALL, B, B)
    assert scheduler.sequence(ids[2]).phase == WAITING
    assert sorted(spans(tick(scheduler, SMALL, B, B))) == ids[1:]


def test_lanes_have_their_own_clocks(make_scheduler: Make) -> None:
    """One lane stays in flight while the other goes on; each plans only its own sequences."""
    scheduler = make_scheduler()
    small, large = start(scheduler, 2, SMALL), start(scheduler, 2, LARGE)
    assert scheduler.plan(LARGE) == 1
    for _ in range(3):
        assert list(spans(tick(scheduler, SMALL, B))) == [small]
    commit(scheduler, LARGE, C)
    assert scheduler.sequence(large).tokens.tolist() == [A, A, C]
    assert scheduler.counters()["ticks"] == [3, 1]


def test_a_sequence_is_not_planned_twice(make_scheduler: Make) -> None:
    """What awaits a route or has no row to compute is in no plan."""
    scheduler = make_scheduler()
    scheduler.add([A], max_tokens=4)
    assert (scheduler.plan(SMALL), scheduler.plan(LARGE)) == (0, 0)


# -- plans


def test_planning_in_flight_is_an_error(make_scheduler: Make) -> None:
    """A lane has one plan in flight; the failed call changes nothing."""
    scheduler = make_scheduler()
    start(scheduler, 2, SMALL)
    scheduler.plan(SMALL)
    with pytest.raises(RuntimeError, match="commit first"):
        scheduler.plan(SMALL)
    commit(scheduler, SMALL, B)


def test_commit_without_a_plan(make_scheduler: Make) -> None:
    """There must be something in flight."""
    with pytest.raises(RuntimeError, match="no plan in flight"):
        commit(make_scheduler(), SMALL)


@pytest.mark.parametrize("tokens", [(), (B, B)])
def test_commit_of_a_wrong_count(make_scheduler: Make, tokens: tuple[int, ...]) -> None:
    """One token a sequence; after the error the plan is still in flight."""
    scheduler = make_scheduler()
    start(scheduler, 2, SMALL)
    scheduler.plan(SMALL)
    with pytest.raises(ValueError, match="expected 1"):
        commit(scheduler, SMALL, *tokens)
    assert scheduler.buffers(SMALL).in_flight
    commit(scheduler, SMALL, B)


def test_buffers_are_views(make_scheduler: Make) -> None:
    """Read-only, never copied: the address stays and the contents follow the ticks."""
    scheduler = make_scheduler(prefix_cache=True, host_blocks=4)
    start(scheduler, 2, SMALL)
    plan = scheduler.buffers(SMALL)
    views = {
        name: view for name in dir(plan) if isinstance(view := getattr(plan, name), np.ndarray)
    }
    assert len(views) == 13
    for token in (B, C, B):
        tick(scheduler, SMALL, token)
        for name, view in views.items():
            assert getattr(scheduler.buffers(SMALL), name).ctypes.data == view.ctypes.data
            with pytest.raises(ValueError, match="read-only"):
                view.flat[0] = 1
    assert (views["tokens"][0], views["positions"][0]) == (C, 3)


def test_views_outlive_the_scheduler() -> None:
    """A view keeps its memory alive."""
    settings = {"block_tokens": 4, "max_context": 8, "max_sequences": 1, "max_tick_tokens": 2}
    scheduler = Scheduler(slabs=1, slots=(1, 1), delimiters=[b"\n"], token_bytes=[b"a"], **settings)
    tokens = scheduler.buffers(SMALL).tokens
    del scheduler
    assert tokens.tolist() == [0, 0]


@pytest.mark.parametrize("slots", [(9, 1), (7, 2)])
def test_tables_agree(make_scheduler: Make, slots: tuple[int, int]) -> None:
    """Slots follow from block tables and positions, and no two sequences share a block."""
    scheduler = make_scheduler(slots=slots)
    lengths = {start(scheduler, n, SMALL): n for n in (3, 4, 5, 9)}
    for step in range(6):
        plan = tick(scheduler, SMALL, *[B] * 4)
        used: list[int] = []
        for i, (id, positions) in enumerate(spans(plan).items()):
            table = plan.blocks[i].tolist()
            assert plan.contexts[i] == lengths[id] + step == positions[-1] + 1
            wanted = [table[p // 4] * 4 + p % 4 for p in positions]
            assert plan.slots[plan.starts[i] : plan.starts[i + 1]].tolist() == wanted
            blocks = -(-int(plan.contexts[i]) // 4)
            assert not any(table[blocks:])
            used += table[:blocks]
        assert len(set(used)) == len(used) == scheduler.pool.live(SMALL)


# -- handoffs and what they cost


def test_a_handoff_is_a_catch_up_span(make_scheduler: Make) -> None:
    """The other model computes the whole text in one span whose last row is sampled."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    write(scheduler, SMALL, B, B, BOTH)
    assert scheduler.take_events() == [(DECIDE, id, -1)]
    scheduler.route(id, LARGE)
    assert scheduler.plan(SMALL) == 0
    assert spans(tick(scheduler, LARGE, B)) == {id: list(range(8))}
    after = scheduler.sequence(id)
    assert kinds(after, SMALL) == {PROMPT: (4, keys(0, 4)), SAMPLED: (3, keys(4, 7))}
    assert kinds(after, LARGE) == {
        PROMPT: (5, keys(0, 5)),
        CATCHUP: (2, keys(5, 7)),
        SAMPLED: (1, 8),
    }
    assert after.steps == [(5, SMALL), (8, LARGE)]


def test_catch_up_is_lazy_and_partial(make_scheduler: Make) -> None:
    """Back at the first model, only what it has not seen is computed."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    write(scheduler, SMALL, B, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B, B, BOTH)
    scheduler.route(id, SMALL)
    assert scheduler.sequence(id).computed == [6, 9]
    assert spans(tick(scheduler, SMALL, B)) == {id: [6, 7, 8, 9]}
    assert kinds(scheduler.sequence(id), SMALL)[CATCHUP] == (3, keys(6, 9))


def test_entries_count_the_prefix_at_each_entry(make_scheduler: Make) -> None:
    """A server without memory would read everything before the sampled row again."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    write(scheduler, SMALL, B, BOTH)  # enters with 5 tokens
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B, B, BOTH)  # with 7
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, B, B)  # with 10
    entries = scheduler.sequence(id).entries
    assert entries[SMALL].tolist() == [4 + 9, keys(0, 4) + keys(0, 9)]
    assert entries[LARGE].tolist() == [6, keys(0, 6)]


def test_lost_rows_are_recomputed_as_such(make_scheduler: Make) -> None:
    """Prompt and text are of kind recompute the second time; the sampled row stays sampled."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    write(scheduler, SMALL, B, B)
    scheduler.preempt(id)
    assert spans(tick(scheduler, SMALL, B)) == {id: list(range(7))}
    assert kinds(scheduler.sequence(id), SMALL) == {
        PROMPT: (4, keys(0, 4)),
        SAMPLED: (3, keys(4, 7)),
        RECOMPUTE: (6, keys(0, 6)),
    }
