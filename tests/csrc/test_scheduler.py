"""The scheduler: one behaviour a test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine._core import Plan, Scheduler, Sequence

Make = Callable[..., Scheduler]

SMALL, LARGE, NOBODY = 0, 1, -1
A, B, C, NEWLINE, BOTH, SPECIAL, THREE = 0, 1, 2, 6, 7, 9, 10  # see conftest.TOKEN_BYTES
PROMPT, CATCHUP, SAMPLED, DISCARDED, RECOMPUTE = range(5)
DECIDE, FINISHED = 0, 1
WAITING, RUNNING, OVER = range(3)
STOP, LENGTH, ABORT, ERROR, DEADLINE = range(1, 6)


def keys(first: int, last: int) -> int:
    """Keys that the rows at positions [first, last) attend to, each row itself included."""
    return sum(position + 1 for position in range(first, last))


def kinds(sequence: Sequence, model: int) -> dict[int, tuple[int, int]]:
    """Rows and keys by kind, zeros left out."""
    return {kind: (int(r), int(k)) for kind, (r, k) in enumerate(sequence.rows[model]) if r}


def start(scheduler: Scheduler, prompt: int, model: int, **request: object) -> int:
    """Add a request of `prompt` tokens without a reader and route it."""
    settings = {"max_tokens": 16} | request
    id = scheduler.add([A] * prompt, **settings)  # type: ignore[arg-type]
    scheduler.take_events()
    scheduler.route(id, model)
    return id


def read(scheduler: Scheduler, prompt: int, **request: object) -> int:
    """Add a request whose boundaries the small model reads."""
    settings = {"max_tokens": 16, "reader": SMALL} | request
    return scheduler.add([A] * prompt, **settings)  # type: ignore[arg-type]


def commit(scheduler: Scheduler, lane: int, *tokens: int) -> None:
    scheduler.commit(lane, np.array(tokens, np.int32))


def tick(scheduler: Scheduler, lane: int, *tokens: int) -> Plan:
    """One tick that must hold as many sequences as there are tokens."""
    assert scheduler.plan(lane) == len(tokens)
    commit(scheduler, lane, *tokens)
    return scheduler.buffers(lane)


def write(scheduler: Scheduler, lane: int, *tokens: int) -> None:
    """Ticks of a lane with one sequence."""
    for token in tokens:
        tick(scheduler, lane, token)


def spans(plan: Plan) -> dict[int, list[int]]:
    """Positions by sequence."""
    bounds = plan.starts[: plan.sequences + 1].tolist()
    return {
        int(plan.ids[i]): plan.positions[bounds[i] : bounds[i + 1]].tolist()
        for i in range(plan.sequences)
    }


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
    assert len(views) == 12
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


# -- boundaries


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


# -- truncation


def test_truncation_takes_tokens_back(make_scheduler: Make) -> None:
    """The row of the last kept token is computed again; the draws that follow are new ones."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    scheduler.truncate(id, 4)
    assert scheduler.sequence(id).attempt == 1
    assert scheduler.plan(SMALL) == 1
    plan = scheduler.buffers(SMALL)
    assert (spans(plan), plan.attempts[0]) == ({id: [3]}, 1)
    commit(scheduler, SMALL, C)
    assert scheduler.sequence(id).tokens.tolist() == [A, A, A, A, C]


def test_truncation_to_the_length_changes_nothing(make_scheduler: Make) -> None:
    """An idle sequence has nothing to take back."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A)
    scheduler.truncate(id, 4)
    assert (scheduler.sequence(id).attempt, scheduler.sequence(id).computed) == (0, [3, 0])


def test_rows_of_tokens_taken_back_are_discarded(make_scheduler: Make) -> None:
    """Each model's books show what it sampled in vain, also across steps."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, BOTH)  # sampled at 3 and 4 keys
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B, C)  # at 5 and 6
    scheduler.truncate(id, 4)
    after = scheduler.sequence(id)
    assert kinds(after, SMALL) == {PROMPT: (2, 3), SAMPLED: (1, 3), DISCARDED: (1, 4)}
    assert kinds(after, LARGE) == {PROMPT: (3, 6), CATCHUP: (1, 4), DISCARDED: (2, 5 + 6)}


def test_truncation_restores_the_detector(make_scheduler: Make) -> None:
    """A newline that was taken back is forgotten, one that was kept is not."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, NEWLINE)
    scheduler.truncate(id, 3)
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.take_events() == []
    write(scheduler, SMALL, A)
    scheduler.truncate(id, 4)
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.take_events() == [(DECIDE, id, -1)]


def test_truncation_forgets_what_the_step_held(make_scheduler: Make) -> None:
    """Text that was taken back does not make a step of delimiters a boundary."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, settle_at_once=False)
    write(scheduler, SMALL, NEWLINE, A)
    scheduler.truncate(id, 3)
    write(scheduler, SMALL, NEWLINE)
    assert scheduler.take_events() == []


def test_truncation_into_an_earlier_step(make_scheduler: Make) -> None:
    """The model that wrote that step goes on with it."""
    scheduler = make_scheduler()
    id = start(scheduler, 2, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B)
    scheduler.truncate(id, 3)
    after = scheduler.sequence(id)
    assert (after.active, after.steps, after.awaits_route) == (SMALL, [(2, SMALL)], False)
    assert spans(tick(scheduler, SMALL, BOTH)) == {id: [2]}
    assert scheduler.sequence(id).awaits_route


@pytest.mark.parametrize("reader", [NOBODY, SMALL])
def test_truncation_to_a_step_asks_again(make_scheduler: Make, reader: int) -> None:
    """Where the step began the reader, if any, reads again; then the sequence awaits a route."""
    scheduler = make_scheduler()
    id = scheduler.add([A, A], max_tokens=9, reader=reader, settle_at_once=False)
    if reader == SMALL:
        tick(scheduler, SMALL, A)
    scheduler.route(id, SMALL)
    while scheduler.sequence(id).length < 5:
        tick(scheduler, SMALL, B)
    scheduler.take_events()
    scheduler.truncate(id, 2)
    if reader == SMALL:
        assert scheduler.take_events() == []
        tick(scheduler, SMALL, A)
    assert scheduler.take_events() == [(DECIDE, id, -1 if reader == NOBODY else 0)]
    assert scheduler.sequence(id).candidate == (-1 if reader == NOBODY else A)
    assert scheduler.sequence(id).steps == []
    scheduler.route(id, LARGE)
    tick(scheduler, LARGE, C)
    assert scheduler.sequence(id).tokens.tolist() == [A, A, C]


def test_truncation_drops_a_candidate(make_scheduler: Make) -> None:
    """A decision that is pending at a boundary past the cut is off."""
    scheduler = make_scheduler()
    id = read(scheduler, 2, settle_at_once=False)
    tick(scheduler, SMALL, A)
    scheduler.route(id, SMALL)
    write(scheduler, SMALL, BOTH, C)
    assert scheduler.sequence(id).candidate == C
    scheduler.truncate(id, 3)
    after = scheduler.sequence(id)
    assert (after.awaits_route, after.candidate) == (False, -1)
    assert kinds(after, SMALL)[DISCARDED] == (2, 3 + 4)  # the boundary token and the candidate


@pytest.mark.parametrize("length", [2, 4, 7])
def test_settled_tokens_stay(make_scheduler: Make, length: int) -> None:
    """Neither the prompt nor what was settled is taken back, nor more than there is."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    assert scheduler.sequence(id).settled == 3
    scheduler.settle(id, 5)
    with pytest.raises(ValueError, match="cannot truncate"):
        scheduler.truncate(id, length)
    scheduler.truncate(id, 5)


@pytest.mark.parametrize("length", [3, 7])
def test_settled_grows_within_the_text(make_scheduler: Make, length: int) -> None:
    """It neither shrinks nor runs ahead."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    scheduler.settle(id, 4)
    with pytest.raises(ValueError, match="settled"):
        scheduler.settle(id, length)


def test_tokens_settle_at_once_by_default(make_scheduler: Make) -> None:
    """Without the wish to take back there is nothing that could be."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    write(scheduler, SMALL, A, B)
    assert scheduler.sequence(id).settled == 5
    with pytest.raises(ValueError, match="settled"):
        scheduler.truncate(id, 4)


def test_truncation_in_flight_waits_for_the_commit(make_scheduler: Make) -> None:
    """The batch retires, its token is dropped, then the text is cut; the shortest cut wins."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B, C)
    scheduler.plan(SMALL)
    for length in (5, 4, 5):
        scheduler.truncate(id, length)
    assert scheduler.sequence(id).length == 6
    commit(scheduler, SMALL, C)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.attempt) == ([A, A, A, A], 1)
    assert kinds(after, SMALL)[DISCARDED] == (3, 4 + 5 + 6)
    assert spans(tick(scheduler, SMALL, B)) == {id: [3]}


def test_truncation_in_flight_to_the_length_changes_nothing(make_scheduler: Make) -> None:
    """There is no token to take back yet: the one in flight arrives."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 4)
    commit(scheduler, SMALL, B)
    assert spans(tick(scheduler, SMALL, C)) == {id: [4]}
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.attempt) == ([A, A, A, A, B, C], 0)


def test_truncation_in_flight_to_the_boundary_being_read(make_scheduler: Make) -> None:
    """The batch samples a candidate, not a token: there is nothing to take back."""
    scheduler = make_scheduler()
    id = read(scheduler, 3, settle_at_once=False)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 3)
    commit(scheduler, SMALL, B)
    assert scheduler.take_events() == [(DECIDE, id, 0)]
    assert (scheduler.sequence(id).candidate, scheduler.sequence(id).attempt) == (B, 0)


def test_truncation_in_flight_of_a_prefill_chunk(make_scheduler: Make) -> None:
    """A batch that samples nothing for the sequence has nothing to take back."""
    scheduler = make_scheduler(max_tick_tokens=9)
    id = start(scheduler, 20, SMALL, settle_at_once=False)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 20)
    commit(scheduler, SMALL, B)
    assert (scheduler.sequence(id).computed, scheduler.sequence(id).awaits_route) == ([9, 0], False)


def test_what_is_to_be_cut_does_not_settle(make_scheduler: Make) -> None:
    """A truncation in flight bounds settle() as if it had happened."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL, settle_at_once=False)
    write(scheduler, SMALL, A, B)
    scheduler.plan(SMALL)
    scheduler.truncate(id, 4)
    with pytest.raises(ValueError, match="settled"):
        scheduler.settle(id, 5)
    scheduler.settle(id, 4)
    commit(scheduler, SMALL, C)
    assert (scheduler.sequence(id).settled, scheduler.sequence(id).length) == (4, 4)


@pytest.mark.parametrize("settle_at_once", [False, True])
@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_truncation_in_flight_voids_the_question(
    make_scheduler: Make, settle_at_once: bool, model: int
) -> None:
    """A trial has ended while the other lane reads the prompt along: who answers about tokens that
    are to go, settling or taking back more than they, comes too late."""
    scheduler = make_scheduler(background=(0, 1))
    id = read(scheduler, 6, trial_tokens=3, settle_at_once=settle_at_once)
    write(scheduler, SMALL, B, B)
    assert scheduler.plan(LARGE) == 1
    write(scheduler, SMALL, B)
    assert scheduler.sequence(id).awaits_route
    scheduler.truncate(id, 7)
    with pytest.raises(RuntimeError, match="does not await"):
        scheduler.route(id, model)
    commit(scheduler, LARGE, -1)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist(), after.settled, after.trial_from) == ([A] * 6 + [B], 6, 6)
    write(scheduler, SMALL, C, C)
    assert scheduler.take_events() == [(DECIDE, id, -1)]
    scheduler.route(id, model)
    wanted = [A] * 6 + [B, C, C] if model == SMALL else [A] * 6
    assert scheduler.sequence(id).tokens.tolist() == wanted


# -- preemption, abort, errors


def test_preemption_frees_everything(make_scheduler: Make) -> None:
    """An idle sequence gives up the KV of both models at once, and its loss is counted."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    write(scheduler, SMALL, A, BOTH)
    scheduler.route(id, LARGE)
    write(scheduler, LARGE, B)
    scheduler.preempt(id)
    assert scheduler.sequence(id).computed == [0, 0]
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 0)
    assert scheduler.counters()["lost_rows"] == [6, 7]
    write(scheduler, LARGE, C)
    assert scheduler.sequence(id).tokens.tolist()[5:] == [A, BOTH, B, C]


def test_preemption_in_flight_keeps_the_token(make_scheduler: Make) -> None:
    """The batch retires as planned; then the KV goes."""
    scheduler = make_scheduler()
    id = start(scheduler, 5, SMALL)
    scheduler.plan(SMALL)
    scheduler.preempt(id)
    assert scheduler.pool.live(SMALL) == 2
    commit(scheduler, SMALL, C)
    after = scheduler.sequence(id)
    assert (after.tokens.tolist()[5:], after.computed) == ([C], [0, 0])
    assert scheduler.pool.live(SMALL) == 0


@pytest.mark.parametrize("routed", [False, True])
def test_abort_before_the_first_tick(make_scheduler: Make, routed: bool) -> None:
    """A waiting sequence leaves the queue."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL) if routed else scheduler.add([A], max_tokens=3)
    scheduler.take_events()
    scheduler.abort(id)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert (scheduler.sequence(id).finish, scheduler.waiting) == (ABORT, 0)
    assert scheduler.plan(SMALL) == 0


def test_abort_between_ticks(make_scheduler: Make) -> None:
    """An idle running sequence ends at once; a second abort is left alone."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    write(scheduler, SMALL, A)
    scheduler.abort(id)
    scheduler.abort(id)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    assert (scheduler.running, scheduler.pool.live(SMALL)) == (0, 0)


def test_abort_in_flight_waits_for_the_commit(make_scheduler: Make) -> None:
    """The memory stays until the batch retires, and the sampled token is dropped."""
    scheduler = make_scheduler()
    id, other = start(scheduler, 3, SMALL), start(scheduler, 3, SMALL)
    scheduler.plan(SMALL)
    scheduler.abort(id)
    assert scheduler.pool.live(SMALL) == 2
    assert scheduler.take_events() == []
    commit(scheduler, SMALL, B, C)
    assert scheduler.take_events() == [(FINISHED, id, -1)]
    after = scheduler.sequence(id)
    assert (after.length, after.finish, kinds(after, SMALL)[DISCARDED]) == (3, ABORT, (1, 3))
    assert scheduler.sequence(other).tokens.tolist() == [A, A, A, C]


@pytest.mark.parametrize(("deadline", "reason"), [(False, ABORT), (True, DEADLINE)])
def test_an_abort_goes_before_a_failure(make_scheduler: Make, deadline: bool, reason: int) -> None:
    """What ended a sequence first is why it ended, whatever becomes of the batch in flight."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    scheduler.plan(SMALL)
    scheduler.abort(id, deadline=deadline)
    scheduler.fail(SMALL)
    assert scheduler.sequence(id).finish == reason
    scheduler.check_integrity()


def test_a_failure_frees_what_was_not_written(make_scheduler: Make) -> None:
    """The sequence lives on while the other lane reads it along; blocks without rows do not."""
    scheduler = make_scheduler(background=(0, 1))
    id = start(scheduler, 9, SMALL)
    assert (scheduler.plan(SMALL), scheduler.plan(LARGE)) == (1, 1)
    scheduler.fail(SMALL)
    scheduler.check_integrity()
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 2)
    commit(scheduler, LARGE, -1)
    assert scheduler.sequence(id).finish == ERROR


def test_abort_while_a_route_is_awaited(make_scheduler: Make) -> None:
    """The candidate is counted as discarded, and a late route is refused."""
    scheduler = make_scheduler()
    id = read(scheduler, 3)
    tick(scheduler, SMALL, B)
    scheduler.abort(id)
    assert kinds(scheduler.sequence(id), SMALL)[DISCARDED] == (1, 3)
    with pytest.raises(RuntimeError, match="does not await"):
        scheduler.route(id, SMALL)


def test_forget(make_scheduler: Make) -> None:
    """Only finished sequences can be forgotten; then the id is dead."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    with pytest.raises(RuntimeError, match="not finished"):
        scheduler.forget(id)
    scheduler.abort(id)
    scheduler.forget(id)
    for call in (scheduler.sequence, scheduler.forget, scheduler.abort, scheduler.preempt):
        with pytest.raises(IndexError, match="unknown sequence"):
            call(id)
    assert start(scheduler, 3, SMALL) != id


def test_a_copy_outlives_forget(make_scheduler: Make) -> None:
    """What sequence() returned is the caller's."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    scheduler.abort(id)
    copy = scheduler.sequence(id)
    scheduler.forget(id)
    assert (copy.length, copy.finish) == (3, ABORT)


def test_finished_sequences_are_not_truncated(make_scheduler: Make) -> None:
    """The end is final."""
    scheduler = make_scheduler()
    id = start(scheduler, 3, SMALL)
    scheduler.abort(id)
    with pytest.raises(RuntimeError, match="finished"):
        scheduler.truncate(id, 3)


@pytest.mark.parametrize("reader", [NOBODY, SMALL])
def test_unusable_logits_end_one_request(make_scheduler: Make, reader: int) -> None:
    """Its neighbours do not notice."""
    scheduler = make_scheduler()
    one = start(scheduler, 3, SMALL) if reader == NOBODY else read(scheduler, 3)
    two = start(scheduler, 3, SMALL)
    scheduler.take_events()
    tick(scheduler, SMALL, -1, C)
    assert scheduler.take_events() == [(FINISHED, one, -1)]
    assert scheduler.sequence(one).finish == ERROR
    assert kinds(scheduler.sequence(one), SMALL)[DISCARDED] == (1, 3)
    assert scheduler.sequence(two).tokens.tolist() == [A, A, A, C]


def test_tokens_of_unsampled_rows_are_ignored(make_scheduler: Make) -> None:
    """A prefill chunk samples nothing: whatever stands in its place does not matter."""
    scheduler = make_scheduler(max_tick_tokens=9)
    id = start(scheduler, 12, SMALL)
    tick(scheduler, SMALL, -1)
    tick(scheduler, SMALL, B)
    assert scheduler.sequence(id).tokens.tolist() == [A] * 12 + [B]


# -- admission


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


# -- memory


def test_a_sequence_may_take_its_own_idle_memory(make_scheduler: Make) -> None:
    """The KV of the model that it left makes room for the one that it runs."""
    scheduler = make_scheduler(slabs=2)
    id = start(scheduler, 5, SMALL, max_tokens=3)
    write(scheduler, SMALL, A, BOTH)
    scheduler.route(id, LARGE)  # its two large blocks are the whole arena
    write(scheduler, LARGE, B)
    assert scheduler.sequence(id).finish == LENGTH
    assert scheduler.counters()["lost_rows"] == [6, 0]


def test_later_sequences_give_way(make_scheduler: Make) -> None:
    """The newest is stopped for an earlier one, and loses no more than that needs."""
    scheduler = make_scheduler(slabs=4)
    first, second = (start(scheduler, 7, LARGE, max_tokens=9) for _ in range(2))
    tick(scheduler, LARGE, B, B)
    tick(scheduler, LARGE, B, B)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]  # needs its third block
    assert scheduler.sequence(second).suspended and not scheduler.sequence(first).suspended
    assert scheduler.sequence(first).computed == [0, 9]
    assert scheduler.sequence(second).computed == [0, 4]
    counters = scheduler.counters()
    assert (counters["preemptions"], counters["lost_rows"]) == (1, [0, 4])


def test_earlier_sequences_keep_what_they_run_on(make_scheduler: Make) -> None:
    """A later one gets no memory from them: it waits."""
    scheduler = make_scheduler(slabs=4)
    first, second = (start(scheduler, n, LARGE, max_tokens=6) for n in (10, 3))
    tick(scheduler, LARGE, B, B)
    tick(scheduler, LARGE, B, B)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]  # the second needs a second block
    assert scheduler.buffers(LARGE).short_of_memory
    assert scheduler.sequence(first).computed == [0, 12]
    assert scheduler.sequence(second).computed == [0, 4]


def test_the_leader_takes_idle_memory(make_scheduler: Make) -> None:
    """KV of a model that no lane works on goes to the first in the order, its own included."""
    scheduler = make_scheduler(slabs=2)
    first, second = (start(scheduler, n, SMALL, max_tokens=5) for n in (3, 2))
    for token in (A, BOTH):
        tick(scheduler, SMALL, token, token)
    for id in (first, second):
        scheduler.route(id, LARGE)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]  # needs both slabs
    assert scheduler.sequence(first).computed == [0, 5]
    assert scheduler.sequence(second).suspended
    assert scheduler.counters()["lent_slabs"] == 1
    assert scheduler.counters()["lost_rows"] == [4 + 3, 0]


def test_others_leave_idle_memory_alone(make_scheduler: Make) -> None:
    """It is wanted again at the next handoff: who is not the first waits."""
    scheduler = make_scheduler(slabs=3)
    first, second = (start(scheduler, n, SMALL, max_tokens=6) for n in (3, 2))
    for token in (A, BOTH):
        tick(scheduler, SMALL, token, token)
    for id in (first, second):
        scheduler.route(id, LARGE)
    assert list(spans(tick(scheduler, LARGE, B))) == [first]
    assert scheduler.buffers(LARGE).short_of_memory
    assert scheduler.sequence(second).computed == [3, 0]
    assert scheduler.counters()["lost_rows"] == [0, 0]


@pytest.mark.parametrize("rest", [True, False])
def test_what_is_never_wanted_again_goes_first(make_scheduler: Make, rest: bool) -> None:
    """KV of the model that a decision for the rest has left, before anybody is stopped."""
    scheduler = make_scheduler(slabs=3)
    first, second, third = (scheduler.add([A] * 2, max_tokens=9) for _ in range(3))
    scheduler.route(second, SMALL)
    for token in (A, BOTH):
        tick(scheduler, SMALL, token)
    for id in (first, second, third):
        scheduler.route(id, LARGE, rest)
    scheduler.plan(LARGE)
    assert list(spans(scheduler.buffers(LARGE))) == [first, second, third][: 3 if rest else 2]
    assert scheduler.counters()["lost_rows"] == [3 if rest else 0, 0]


def test_memory_in_flight_is_awaited(make_scheduler: Make) -> None:
    """The lane plans nothing until the other commits; what comes free is then kept for it."""
    scheduler = make_scheduler(slabs=4)
    first = start(scheduler, 3, SMALL, max_tokens=5)
    second = start(scheduler, 10, LARGE, max_tokens=5)
    for _ in range(3):
        tick(scheduler, LARGE, B)
    assert scheduler.plan(LARGE) == 1  # takes every slab
    assert scheduler.plan(SMALL) == 0
    assert scheduler.buffers(SMALL).short_of_memory
    commit(scheduler, LARGE, B)
    assert scheduler.sequence(second).computed == [0, 12]
    assert scheduler.plan(LARGE) == 0  # the slab is promised to the other lane
    assert list(spans(tick(scheduler, SMALL, B))) == [first]
    assert scheduler.counters()["lent_slabs"] == 1


def test_a_promise_to_nobody_is_dropped(make_scheduler: Make) -> None:
    """If whom memory was kept for is gone, its lane's next plan gives the memory back."""
    scheduler = make_scheduler(slabs=4)
    first = start(scheduler, 3, SMALL, max_tokens=5)
    second = start(scheduler, 10, LARGE, max_tokens=5)
    for _ in range(3):
        tick(scheduler, LARGE, B)
    assert (scheduler.plan(LARGE), scheduler.plan(SMALL)) == (1, 0)
    scheduler.abort(first)
    commit(scheduler, LARGE, B)
    assert scheduler.plan(LARGE) == 0
    assert scheduler.plan(SMALL) == 0
    assert list(spans(tick(scheduler, LARGE, B))) == [second]


@pytest.mark.parametrize("costs", [(1.0, 1000.0), (1000.0, 1.0)])
def test_the_newest_is_stopped_first(make_scheduler: Make, costs: tuple[float, float]) -> None:
    """Whatever its rows cost: who came first is finished first."""
    scheduler = make_scheduler(slabs=3, slots=(2, 1), recompute_cost=costs)
    first, second, third = (
        start(scheduler, n, model, max_tokens=5)
        for n, model in ((7, SMALL), (3, LARGE), (7, SMALL))
    )
    assert (scheduler.plan(SMALL), scheduler.plan(LARGE)) == (2, 1)
    commit(scheduler, SMALL, B, B), commit(scheduler, LARGE, B)
    tick(scheduler, SMALL, B, B)
    scheduler.plan(SMALL)  # the first needs its third block
    assert [scheduler.sequence(id).suspended for id in (first, second, third)] == [0, 0, 1]
    assert [rows > 0 for rows in scheduler.counters()["lost_rows"]] == [True, False]


def drain(scheduler: Scheduler, ids: list[int], watch: Callable[[], None]) -> None:
    """Alternate lanes and models until every sequence is finished."""
    turns = dict.fromkeys(ids, 0)
    for _ in range(2000):
        progressed = False
        for lane in (SMALL, LARGE):
            for kind, id, _ in scheduler.take_events():
                if kind == DECIDE:
                    scheduler.route(id, (turns[id] + id) % 2)
                    turns[id] += 1
            if count := scheduler.plan(lane):
                tokens = [BOTH if length % 3 == 0 else A for length in _lengths(scheduler, lane)]
                commit(scheduler, lane, *tokens[:count])
                progressed = True
            scheduler.check_integrity()
            watch()
        if all(scheduler.sequence(id).phase == OVER for id in ids):
            return
        assert progressed, "no lane can move"
    raise AssertionError("the sequences do not come to an end")


def _lengths(scheduler: Scheduler, lane: int) -> list[int]:
    plan = scheduler.buffers(lane)
    return plan.contexts[: plan.sequences].tolist()


@pytest.mark.parametrize("slots", [(9, 1), (7, 2), (1, 1)])
@pytest.mark.parametrize("reader", [NOBODY, SMALL])
def test_an_arena_for_one_serves_many(
    make_scheduler: Make, slots: tuple[int, int], reader: int
) -> None:
    """Every request as long as the arena allows: all finish, one way or the other."""
    scheduler = make_scheduler(slabs=4, slots=slots)
    holds = 16 * min(slots)
    ids = [scheduler.add([A] * (3 + i), max_tokens=holds - 3 - i, reader=reader) for i in range(6)]
    drain(scheduler, ids, lambda: None)
    assert [scheduler.sequence(id).finish for id in ids] == [LENGTH] * 6
    assert (scheduler.pool.live(SMALL), scheduler.pool.live(LARGE)) == (0, 0)
    assert scheduler.pool.free_slabs == 4


def test_the_first_sequence_never_loses_what_it_runs_on(make_scheduler: Make) -> None:
    """Under constant pressure its computed count on its active model only grows."""
    scheduler = make_scheduler(slabs=6)
    ids = [scheduler.add([A] * (2 + i % 3), max_tokens=18, reader=SMALL) for i in range(8)]
    last: dict[int, tuple[int, int]] = {}

    def watch() -> None:
        live = [id for id in ids if scheduler.sequence(id).phase == RUNNING]
        if not live:
            return
        first = scheduler.sequence(live[0])
        active, computed = first.active, first.computed[first.active]
        before = last.get(first.id)
        if before is not None and before[0] == active:
            assert computed >= before[1]
        last.clear()
        last[first.id] = (active, computed)

    drain(scheduler, ids, watch)
    counters = scheduler.counters()
    assert counters["preemptions"] > 0
    assert counters["lent_slabs"] > 0


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
    assert (done.finish, scheduler.take_events()) == (1, [(1, id, -1)])
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
    assert done.tokens.tolist() == [A, A, A, B, C] and done.finish == 1
