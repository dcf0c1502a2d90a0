"""The prefix cache: what is shared, what is found again, and what gives way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine._core import BlockPool, Scheduler

from .kinds import ERROR, LARGE, RECOMPUTE, SMALL

Make = Callable[..., Scheduler]

A, B, DELIMITER = 0, 1, 7  # see conftest.TOKEN_BYTES


@pytest.fixture
def scheduler(make_scheduler: Callable[..., Scheduler]) -> Scheduler:
    return make_scheduler(prefix_cache=True)


def start(scheduler: Scheduler, prompt: list[int], model: int = SMALL, **request: object) -> int:
    settings = {"max_tokens": 16} | request
    id = scheduler.add(prompt, **settings)  # type: ignore[arg-type]
    scheduler.take_events()
    scheduler.route(id, model)
    return id


def tick(scheduler: Scheduler, lane: int, token: int = A) -> dict[int, int]:
    """One tick; rows by sequence."""
    count = scheduler.plan(lane)
    plan = scheduler.buffers(lane)
    starts = plan.starts[: count + 1]
    rows = {int(plan.ids[i]): int(starts[i + 1] - starts[i]) for i in range(count)}
    if count:
        scheduler.commit(lane, np.full(count, token, np.int32))
    return rows


def finish(scheduler: Scheduler, id: int) -> None:
    scheduler.abort(id)
    scheduler.take_events()
    scheduler.forget(id)


def test_a_running_neighbour_shares_its_full_blocks(scheduler: Scheduler):
    """Ten equal tokens in blocks of four: two blocks are shared, the rest is computed."""
    first = start(scheduler, [A] * 10)
    tick(scheduler, SMALL)
    second = start(scheduler, [A] * 10)
    assert tick(scheduler, SMALL) == {first: 1, second: 2}
    held = scheduler.sequence(second)
    assert held.cached[SMALL] == 8
    assert held.rows[SMALL, :, 0].tolist() == [1, 0, 1, *[0] * 4]
    assert scheduler.pool.live(SMALL) == 4  # two shared, one of each
    blocks = scheduler.buffers(SMALL).blocks
    assert blocks[0, :2].tolist() == blocks[1, :2].tolist() and blocks[0, 2] != blocks[1, 2]


def test_a_finished_sequence_leaves_its_blocks(scheduler: Scheduler):
    finish_me = start(scheduler, [A] * 10)
    tick(scheduler, SMALL)
    finish(scheduler, finish_me)
    assert (scheduler.pool.live(SMALL), scheduler.pool.cached(SMALL)) == (0, 2)
    again = start(scheduler, [A] * 10)
    assert tick(scheduler, SMALL) == {again: 2}
    assert (scheduler.pool.live(SMALL), scheduler.pool.cached(SMALL)) == (3, 0)


def test_one_row_is_always_computed(scheduler: Scheduler):
    """Its logits are needed: of eight cached tokens four are used."""
    finish_me = start(scheduler, [A] * 8)
    tick(scheduler, SMALL)
    finish(scheduler, finish_me)
    again = start(scheduler, [A] * 8)
    assert tick(scheduler, SMALL) == {again: 4}


def test_the_cache_belongs_to_a_model(scheduler: Scheduler):
    finish_me = start(scheduler, [A] * 10, SMALL)
    tick(scheduler, SMALL)
    finish(scheduler, finish_me)
    again = start(scheduler, [A] * 10, LARGE)
    assert tick(scheduler, LARGE) == {again: 10}


def test_a_block_counts_with_all_that_precedes_it(scheduler: Scheduler):
    """The same four tokens after another beginning are another block."""
    finish_me = start(scheduler, [A] * 4 + [B] * 4 + [A])
    tick(scheduler, SMALL)
    finish(scheduler, finish_me)
    other = start(scheduler, [B] * 4 + [B] * 4 + [A])
    assert tick(scheduler, SMALL) == {other: 9}
    half = start(scheduler, [A] * 4 + [B] * 3 + [A, A])
    assert tick(scheduler, SMALL)[half] == 5


def test_whoever_wrote_the_tokens(scheduler: Scheduler):
    """What one sequence generated serves another one's prompt, and the catch-up after it."""
    writer = start(scheduler, [A] * 6)
    for _ in range(6):
        tick(scheduler, SMALL, B)
    reader = start(scheduler, [A] * 6 + [B] * 4)
    assert tick(scheduler, SMALL)[reader] == 2
    assert scheduler.sequence(writer).length == 13


def test_a_preempted_sequence_finds_its_own_blocks(scheduler: Scheduler):
    id = start(scheduler, [A] * 10)
    tick(scheduler, SMALL)
    scheduler.preempt(id)
    assert tick(scheduler, SMALL) == {id: 3}
    held = scheduler.sequence(id)
    assert held.cached[SMALL] == 8 and held.rows[SMALL, RECOMPUTE, 0] == 2


def test_only_settled_tokens_are_registered(scheduler: Scheduler):
    """What may be taken back is not shared; settling makes it known."""
    open_one = start(scheduler, [A] * 2, settle_at_once=False)
    for _ in range(10):
        tick(scheduler, SMALL, B)
    reader = start(scheduler, [A] * 2 + [B] * 8)
    assert tick(scheduler, SMALL)[reader] == 10
    scheduler.settle(open_one, 9)
    finish(scheduler, reader)
    late = start(scheduler, [A] * 2 + [B] * 8)
    assert tick(scheduler, SMALL)[late] in (2, 6)
    assert scheduler.sequence(late).cached[SMALL] >= 4


def test_a_shared_block_is_never_written_again(scheduler: Scheduler):
    """Cut back into a block that a neighbour reads, a sequence gets a block of its own."""
    neighbour = start(scheduler, [A] * 8 + [B, DELIMITER, B, B, B], LARGE)
    tick(scheduler, LARGE)
    first = start(scheduler, [A] * 8, settle_at_once=False, max_tokens=20)
    for token in (B, DELIMITER):
        tick(scheduler, SMALL, token)
    scheduler.route(first, SMALL)
    for token in (B, B, B, DELIMITER):
        tick(scheduler, SMALL, token)
    scheduler.route(first, LARGE)
    assert tick(scheduler, LARGE)[first] == 2
    assert scheduler.sequence(first).cached[LARGE] == 12
    shared = scheduler.buffers(LARGE).blocks[0, :3].tolist()
    scheduler.truncate(first, 10)  # the last row that is left lies in the third shared block
    scheduler.take_events()
    scheduler.route(first, LARGE)
    scheduler.plan(LARGE)
    plan = scheduler.buffers(LARGE)
    assert plan.ids[: plan.sequences].tolist() == [neighbour, first]
    written = {slot // 4 for slot in plan.slots[: plan.rows].tolist()}
    assert len(written) == 2 and not written & set(shared)
    scheduler.commit(LARGE, np.zeros(plan.sequences, np.int32))


def test_the_block_that_a_cut_returns_to_stays_ones_own(scheduler: Scheduler):
    """What is not settled may be taken back: one row is then computed once more, not a block."""
    first = start(scheduler, [A] * 8, settle_at_once=False, max_tokens=20)
    tick(scheduler, SMALL, B)
    scheduler.truncate(first, 8)
    scheduler.take_events()
    scheduler.route(first, SMALL)
    assert tick(scheduler, SMALL, B) == {first: 1}


def test_what_was_spared_has_its_kind(scheduler: Scheduler):
    """Rows computed and rows found are together what a sequence costs without the cache."""
    text = [A] * 6 + [B] * 5
    for role in (SMALL, LARGE):
        start(scheduler, [*text, DELIMITER, A], role)
        tick(scheduler, role)
    reader = start(scheduler, [A] * 6)
    for token in [B] * 5 + [DELIMITER]:
        tick(scheduler, SMALL, token)
    scheduler.take_events()
    scheduler.route(reader, LARGE)
    assert tick(scheduler, LARGE)[reader] == 4
    held = scheduler.sequence(reader)
    assert held.cached == [4, 8]
    assert held.spared[SMALL].tolist() == [[4, 1 + 2 + 3 + 4], *[[0, 0]] * 6]
    assert held.spared[LARGE].tolist() == [[6, 21], [2, 7 + 8], *[[0, 0]] * 5]
    scheduler.preempt(reader)
    assert tick(scheduler, LARGE)[reader] == 1
    held = scheduler.sequence(reader)
    assert held.cached[LARGE] == 8 + 12
    assert held.spared[LARGE, RECOMPUTE].tolist() == [12, 12 * 13 // 2]


def test_an_audited_text_is_not_found(scheduler: Scheduler):
    """The large model is asked about each row after the prompt's last: it computes them."""
    text = [A] * 6 + [B] * 5
    start(scheduler, [*text, DELIMITER, A], LARGE)
    tick(scheduler, LARGE)
    reader = start(scheduler, [A] * 6, audited=True)
    for token in [B] * 5 + [DELIMITER]:
        tick(scheduler, SMALL, token)
    scheduler.take_events()
    scheduler.route(reader, LARGE)
    assert tick(scheduler, LARGE)[reader] == 12 - 4
    assert scheduler.sequence(reader).cached == [0, 4]


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_a_scored_prompt_is_not_found_before_it_was_computed_once(scheduler: Scheduler, model: int):
    """Rows lost after that may be found; the other model's rows are found as ever."""
    for role in (SMALL, LARGE):
        start(scheduler, [A] * 13, role)
        tick(scheduler, role)
    reader = start(scheduler, [A] * 13, model, scored=model)
    assert tick(scheduler, model)[reader] == 13
    scheduler.preempt(reader)
    assert tick(scheduler, model)[reader] == 14 - 12
    assert scheduler.sequence(reader).cached[model] == 12
    other = start(scheduler, [A] * 13, 1 - model, scored=model)
    assert tick(scheduler, 1 - model)[other] == 1


def test_a_scored_prompt_that_is_lost_half_way_is_found_up_to_there(make_scheduler: Make):
    """What it has computed it may take over; the rest is left to compute, chunk by chunk."""
    scheduler = make_scheduler(prefix_cache=True, max_sequences=4, max_tick_tokens=8)
    first = start(scheduler, [A] * 21)
    rows = [tick(scheduler, SMALL)[first] for _ in range(3)]
    assert rows == [8, 8, 5]
    scheduler.abort(first)
    reader = start(scheduler, [A] * 21, scored=SMALL)
    assert tick(scheduler, SMALL) == {reader: 8}
    scheduler.preempt(reader)
    assert tick(scheduler, SMALL) == {reader: 8}
    assert scheduler.sequence(reader).cached == [8, 0]
    assert scheduler.sequence(reader).computed == [16, 0]
    assert tick(scheduler, SMALL) == {reader: 5}


@pytest.mark.parametrize("scored", [-2, 2])
def test_the_model_that_scores_a_prompt_is_one_of_the_two(scheduler: Scheduler, scored: int):
    with pytest.raises(ValueError, match="scored must be -1, 0 or 1"):
        start(scheduler, [A] * 4, scored=scored)


def test_the_least_recently_used_gives_way(make_scheduler: Make):
    """One slab of four small blocks: a third prompt pushes out the oldest, deepest block first."""
    scheduler = make_scheduler(slabs=1, slots=(4, 4), max_context=16, prefix_cache=True)
    for prompt in ([A] * 5, [B] * 5):
        id = start(scheduler, prompt, max_tokens=1)
        tick(scheduler, SMALL)
        scheduler.take_events()
        scheduler.forget(id)
    assert scheduler.pool.cached(SMALL) == 2
    third = start(scheduler, [A, B, A, B] * 3, max_tokens=1)
    assert tick(scheduler, SMALL) == {third: 12}
    assert scheduler.counters()["evictions"] == [1, 0]
    scheduler.take_events()
    scheduler.forget(third)
    kept = start(scheduler, [B] * 5, max_tokens=1)
    assert tick(scheduler, SMALL) == {kept: 1}


def test_a_slab_of_nothing_but_cache_is_lent_on(make_scheduler: Make):
    """The other model's cache gives way before any sequence loses a row."""
    scheduler = make_scheduler(slabs=2, slots=(2, 1), max_context=8, prefix_cache=True)
    for _ in range(2):
        id = start(scheduler, [A] * 7, SMALL, max_tokens=1)
        tick(scheduler, SMALL)
        scheduler.take_events()
        scheduler.forget(id)
    assert scheduler.pool.cached(SMALL) == 1
    big = start(scheduler, [A] * 7, LARGE, max_tokens=1)
    assert tick(scheduler, LARGE) == {big: 7}
    counters = scheduler.counters()
    assert (counters["evictions"], counters["preemptions"]) == ([1, 0], 0)
    assert counters["lent_slabs"] >= 1


def test_cached_blocks_count_as_room_for_admission(make_scheduler: Make):
    scheduler = make_scheduler(slabs=4, slots=(1, 1), max_context=16, prefix_cache=True)
    old = start(scheduler, [A] * 13, max_tokens=1)
    tick(scheduler, SMALL)
    scheduler.take_events()
    scheduler.forget(old)
    assert scheduler.pool.cached(SMALL) == 3
    ids = [start(scheduler, [B] * 5, max_tokens=2) for _ in range(2)]
    assert set(tick(scheduler, SMALL)) == set(ids)


def test_without_the_cache_nothing_is_kept(make_scheduler: Make):
    scheduler = make_scheduler()
    for _ in range(2):
        id = start(scheduler, [A] * 10)
        assert tick(scheduler, SMALL) == {id: 10}
        finish(scheduler, id)
    assert scheduler.pool.cached(SMALL) == 0


def test_pool_states():
    """free, live, cached and back, with the books proved in between."""
    pool = BlockPool(slabs=1, slots=(2, 1))
    block = pool.allocate(SMALL)
    assert block is not None
    pool.release(SMALL, block, keep=True)
    pool.check_integrity()
    assert (pool.live(SMALL), pool.cached(SMALL), pool.free_slabs) == (0, 1, 0)
    assert (pool.available(LARGE), pool.reclaimable(LARGE)) == (0, 1)
    pool.revive(SMALL, block)
    assert (pool.live(SMALL), pool.cached(SMALL)) == (1, 0)
    for wrong in (pool.revive, pool.drop):
        with pytest.raises(RuntimeError, match="not cached"):
            wrong(SMALL, block)
    pool.release(SMALL, block, keep=True)
    with pytest.raises(RuntimeError, match="not live"):
        pool.retain(SMALL, block)
    pool.drop(SMALL, block)
    pool.check_integrity()
    assert (pool.free_slabs, pool.available(LARGE)) == (1, 1)


def test_what_gave_unusable_logits_is_not_shared(scheduler: Scheduler):
    """A later request with the same prompt computes it again."""
    bad = start(scheduler, [A] * 10)
    assert tick(scheduler, SMALL, -1) == {bad: 10}
    again = start(scheduler, [A] * 10)
    assert tick(scheduler, SMALL) == {again: 10}


def test_a_plan_that_gave_nothing_ends_its_sequences(scheduler: Scheduler):
    """The other lane's sequence goes on; one in flight on both would end with the other's batch."""
    lost, kept = start(scheduler, [A] * 10, SMALL), start(scheduler, [B] * 10, LARGE)
    scheduler.plan(SMALL)
    scheduler.plan(LARGE)
    scheduler.fail(SMALL)
    scheduler.check_integrity()
    assert scheduler.sequence(lost).finish == ERROR and scheduler.pool.live(SMALL) == 0
    scheduler.commit(LARGE, np.zeros(1, np.int32))
    assert scheduler.sequence(kept).length == 11
    with pytest.raises(RuntimeError, match="no plan in flight"):
        scheduler.fail(SMALL)
