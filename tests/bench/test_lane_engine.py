"""Replays, scripted ticks and windows of both lanes, against the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.lanes.ideal import bound_seconds, ideal_seconds, walks
from bench.lanes.recorded import Recorded
from bench.lanes.replay import Replay
from bench.lanes.routed import run_jobs
from bench.lanes.schedule import Load, large_share
from bench.lanes.scripted_engine import NoRoomError, ScriptedEngine
from bench.lanes.ticktable import measure_table
from bench.lanes.traffic import tick_bytes
from bench.lanes.window import measure
from bench.simulation.meter import row_counts
from engine import Engine, SteerError
from engine._core import LARGE, SMALL
from engine.config import LANE_POLICIES
from tests.bench.lane_setup import CONFIG, CPU, SETUP, ByModel
from tests.engine.test_ahead import LateQueue, delay


class Linear:
    """The small model takes 1 s a tick, the large one 20; 1 ms a row, 1 us a key of context."""

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        return (1.0, 20.0)[model] + 1e-3 * batch * span + 1e-6 * context


@pytest.fixture(scope="module")
def engine() -> Engine:
    return SETUP.engine()


@pytest.fixture
def scripted(engine: Engine) -> Iterator[ScriptedEngine]:
    yield ScriptedEngine(engine, CPU)
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    engine.scheduler.check_integrity()


@pytest.mark.parametrize("runs", [0.0, 2.0])
@pytest.mark.parametrize(
    ("lanes", "share", "concurrency"),
    [(LANE_POLICIES[0], 0.4, 1), (LANE_POLICIES[0], 1, 3), *((n, 0.4, 5) for n in LANE_POLICIES)],
)
def test_a_replay_is_the_run_tick_for_tick(lanes: str, share: float, concurrency: int, runs: float):
    engine = SETUP.engine(lane_policy=lanes)
    jobs = Load(2 * concurrency, 12, 20, 4, runs).jobs(share)
    ran = run_jobs(engine, CPU, jobs, concurrency)
    found = Replay(engine, Linear(), together=None).run(jobs, share, concurrency)
    assert (found["small_ticks"], found["large_ticks"]) == ran.ticks
    assert {name: found[name] for name in row_counts(ran.usage)} == row_counts(ran.usage)
    assert ran.large_tokens == large_share(jobs) * ran.tokens
    if concurrency == 1:  # and its time is the ideal
        ideal = ideal_seconds(walks(jobs, CONFIG.max_tick_tokens), Linear())
        assert found["simulated_seconds"] == pytest.approx(ideal)


def test_a_run_cannot_beat_the_bound():
    engine = SETUP.engine()
    jobs = Load(12, 12, 20, 4).jobs(0.4)
    bound = bound_seconds(walks(jobs, CONFIG.max_tick_tokens), ByModel(), 6)
    for together in (None, 1.0):
        found = Replay(engine, ByModel(), together).run(jobs, 0.4, 6)
        assert bound < found["simulated_seconds"] < 6 * bound


def test_ticks_are_what_was_asked_for(scripted: ScriptedEngine):
    for model in (SMALL, LARGE):
        ticks = scripted.decode(model, batch=3, context=100, count=4)
        assert [(t.sequences, t.rows, t.sampled) for t in ticks] == [(3, 3, 3)] * 4
        assert [t.context for t in ticks] == [103, 104, 105, 106]
        (late,) = scripted.catch_up(model, batch=2, context=100, span=17, count=1)
        assert (late.sequences, late.rows, late.context, late.sampled) == (2, 34, 100, 2)
        (early,) = scripted.catch_up(model, batch=2, context=20, span=17, count=1)
        assert (early.sequences, early.rows, early.context) == (2, 34, 17)
        assert all(tick.seconds > 0 for tick in (*ticks, late, early))


def late_lanes(**config: Any) -> tuple[Engine, tuple[LateQueue, LateQueue]]:
    """An engine on devices that take their time, so that it shows what waits in their queues."""
    engine = SETUP.engine(**config)
    return engine, delay(engine, seed=1)


def test_a_decode_ahead_is_launched_behind_the_one_that_runs():
    engine, queues = late_lanes()
    scripted = ScriptedEngine(engine, CPU)
    for model, queue in zip((SMALL, LARGE), queues, strict=True):
        scripted.decode(model, batch=3, context=100, count=4)
        assert queue.deepest == 1
        ticks = scripted.decode_ahead(model, batch=3, context=100, count=4)
        assert queue.deepest == 2
        assert [(t.sequences, t.rows, t.sampled) for t in ticks] == [(3, 3, 3)] * 4
        assert [t.context for t in ticks] == [103, 104, 105, 106]
        assert all(tick.seconds > 0 for tick in ticks)
    # Two untimed ticks, and one after the last: all but the first were planned ahead.
    assert engine.scheduler.counters()["ahead"] == [3 * 6, 3 * 6]
    assert engine.scheduler.counters()["voided"] == [0, 0]
    assert engine.scheduler.running == 0
    engine.scheduler.check_integrity()


@pytest.mark.parametrize(("at_once", "late"), [(1, [2, 0]), (3, [0, 0])])
def test_what_is_recorded_while_a_row_is_measured_is_counted(at_once: int, late: list[int]):
    engine = SETUP.engine(at_once, graphs="on")
    recorded = Recorded(engine)
    for batch in (2, 3):  # padded to 2 and 4
        ScriptedEngine(engine, CPU).decode(SMALL, batch, context=100, count=2)
    assert recorded.fields == {"captures": late, "misses": late}


def test_tick_times_are_those_of_the_engines_lanes():
    """Decodes ahead where a lane plans ahead; spans in turn, with nothing in flight before them."""
    engine, queues = late_lanes(plan_ahead="small")
    _, rows = measure_table(ScriptedEngine(engine, CPU), [2], [70], [1, 4], repeats=2)
    assert [queue.deepest for queue in queues] == [2, 1]
    ahead = {(r["model"], r["span"]): r["ahead"] for r in rows}
    assert ahead == {
        ("small", 1): True,
        ("small", 4): False,
        ("large", 1): False,
        ("large", 4): False,
    }


def test_a_handoff_catches_up(scripted: ScriptedEngine):
    assert [t.rows for t in scripted.handoff(LARGE, 40, 100)] == [101]
    assert [t.rows for t in scripted.handoff(SMALL, 40, 100)] == [100]
    assert [t.rows for t in scripted.handoff(LARGE, 40, 600)] == [512, 89]  # cut at 512 rows a tick


def test_an_eager_handoff_has_less_to_catch_up():
    eager = ScriptedEngine(SETUP.engine(eager_backlog=32, read_along=32), CPU)
    for to in (SMALL, LARGE):
        (tick,) = eager.handoff(to, 40, 100)
        assert tick.rows <= 34


def test_what_does_not_fit_is_said(scripted: ScriptedEngine):
    with pytest.raises(NoRoomError, match="slabs of the arena"):
        scripted.decode(LARGE, batch=64, context=1000, count=2)
    with pytest.raises(NoRoomError, match="exceed the context of 32768"):
        scripted.decode(SMALL, batch=1, context=40000, count=2)
    with pytest.raises(NoRoomError, match="64 spans of 17 rows exceed a tick of 512"):
        scripted.catch_up(SMALL, batch=64, context=100, span=17, count=2)


def test_a_measured_table_is_full(scripted: ScriptedEngine):
    times, rows = measure_table(scripted, [1, 8], [70, 200], [1, 100], repeats=2)
    assert len(rows) == 16
    extended = [r for r in rows if r["extended"]]
    assert {(r["batch"], r["span"]) for r in extended} == {(8, 100)}
    for row in extended:
        alone = times.seconds(row["model"] == "large", 1, row["context"], 100)
        assert row["us"] == pytest.approx(8e6 * alone)


def test_a_window_counts_both_lanes(engine: Engine):
    element, shapes = 4, engine.shapes
    found = measure(engine, CPU, [SMALL, LARGE, LARGE], 50, 5, element)
    assert found.ticks == (5, 5) and found.tokens == (5.0, 5.0)  # in turn, on a CPU
    floor = sum(
        tick_bytes(shape, element, count * 55, count) * 5
        for shape, count in zip(shapes, (1, 2), strict=True)
    )
    assert found.bytes == pytest.approx(floor, rel=0.02)
    assert measure(engine, CPU, [SMALL], 50, 5, element).ticks == (5, 0)
    assert engine.scheduler.running == 0


@pytest.mark.parametrize(("count", "context"), [(60, 100), (2, 1900)])
def test_a_window_that_does_not_fit(engine: Engine, count: int, context: int):
    with pytest.raises(SteerError, match="raise --arena-tokens"):
        measure(engine, CPU, [SMALL, LARGE] * count, context, 200, 4)
    assert engine.scheduler.running == engine.scheduler.waiting == 0
