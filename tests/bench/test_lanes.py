"""Forced schedules, ideals and what benches share: against figures worked out by hand."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from bench import handoff
from bench.lanes.contest import Cell, Contest, Runs, compare
from bench.lanes.device import Bandwidth, covered
from bench.lanes.ideal import WalkTick, bound_seconds, ideal_seconds, walk, walks
from bench.lanes.pairs import SCALED, dummy_pair
from bench.lanes.routed import run_jobs
from bench.lanes.schedule import Job, Load, drawn_steps, even_steps, large_share
from bench.lanes.shared import Shared
from bench.lanes.switches import flipped, turned
from bench.lanes.ticktable import powers, spread
from bench.lanes.traffic import tick_bytes
from bench.lanes.window import Window
from bench.overlap import inflation
from bench.rows import RowWriter
from engine import SteerError
from engine._core import LARGE, SMALL
from engine.config import ModelConfig
from tests.bench.lane_setup import CONFIG, CPU, SETUP, ByModel

# The schedule


@pytest.mark.parametrize("share", [0, 0.1, 0.2, 0.4, 0.5, 1])
def test_shares_come_out(share: float):
    assert sum(even_steps(10, share, 0.5)) == 10 * share
    assert sum(drawn_steps(10, share, 2.0, seed=3)) == 10 * share
    evenly, in_runs = Load(40, 16, 80, 8), Load(40, 16, 80, 8, runs=2.0)
    assert large_share(evenly.jobs(share)) == pytest.approx(share, abs=0.01)
    assert large_share(in_runs.jobs(share)) == pytest.approx(share)


def test_steps_are_spread_evenly_and_requests_differ():
    assert even_steps(10, 0.2, 0.5) == (0, 0, 1, 0, 0, 0, 0, 1, 0, 0)
    assert len({job.models for job in Load(8, 16, 80, 8).jobs(0.2)}) > 2
    assert {job.reads for job in Load(2, 16, 80, 8).jobs(1)} == {False}


def test_drawn_runs_stay_apart():
    steps = drawn_steps(400, 0.25, 5.0, seed=1)
    runs = "".join(map(str, steps)).split("0")
    lengths = [len(run) for run in runs if run]
    assert sum(lengths) == 100 and 3 < sum(lengths) / len(lengths) < 8
    assert steps == drawn_steps(400, 0.25, 5.0, seed=1) != drawn_steps(400, 0.25, 5.0, seed=2)


def test_the_last_step_is_cut():
    job = Job(prompt=5, answer=10, step=4, models=(SMALL, LARGE, SMALL), reads=True)
    assert job.steps == [(SMALL, 4), (LARGE, 4), (SMALL, 2)]
    with pytest.raises(SteerError, match="--step: 9 is longer than the answer of 8"):
        Load(1, 4, 8, 9)


# Ideal and bound, by hand


def test_the_walk():
    ticks = list(walk(6, [(SMALL, 2), (LARGE, 3), (SMALL, 1)], reads=True, most_rows=100))
    assert ticks == [
        WalkTick(SMALL, 6, 6),  # the boundary at the prompt's end, and the first token
        WalkTick(SMALL, 1, 7),
        WalkTick(SMALL, 1, 8),  # reads a boundary; its token is dropped
        WalkTick(LARGE, 8, 8),
        WalkTick(LARGE, 1, 9),
        WalkTick(LARGE, 1, 10),
        WalkTick(SMALL, 3, 11),  # reads the large step, and the last token
    ]
    cut = walk(6, [(LARGE, 2)], reads=False, most_rows=4)
    assert list(cut) == [WalkTick(LARGE, 4, 4), WalkTick(LARGE, 2, 6), WalkTick(LARGE, 1, 7)]


def test_the_ideal_is_the_formula():
    """N_S T_S + sum over handoffs [T_L(n + 1) + (l - 1) T_L(1)] + re-reads."""
    job = Job(prompt=1, answer=50, step=10, models=(0, 1, 0, 0, 1), reads=True)
    small, handoffs = 30 * 1.0, 0.0
    for n in (10, 20):  # the first has the prompt's token before it, the second a token of its own
        handoffs += (20 + 0.01 * n) + 9 * 20
    rereads = 2 * 1.0 + 0.01 * (10 - 1)  # two dropped tokens; one large step to read
    assert ideal_seconds(walks([job], 100), ByModel()) == pytest.approx(small + handoffs + rereads)


def test_the_bound_shares_the_weights():
    """sum N_m T_m(C) / C, and rows beyond the first at their own cost."""
    jobs = [Job(1, 20, 10, (SMALL, LARGE), True)] * 4
    each = 11 * 1.0 / 4 + 10 * 20.0 / 4 + 0.01 * 10  # 10 small tokens, a dropped one, 11 rows
    assert bound_seconds(walks(jobs, 100), ByModel(), 4) == pytest.approx(4 * each)


def test_bytes_of_a_tick():
    shape = ModelConfig(10, 8, 12, layers=2, heads=2, kv_heads=1, head_dim=4)
    attention, mlp, head = 8 * (8 + 4 + 4 + 8), 3 * 8 * 12, 8 * 10
    small = (8 + 4 + 4) * 2 + 5 * 8  # biases and norms
    weights = 2 * (attention + mlp) + head + small
    assert tick_bytes(shape, 2, keys=100, rows=3) == 2 * weights + 2 * 2 * 4 * 2 * 103


def test_small_arithmetic():
    assert covered([(4, 6), (0, 2), (1, 3), (5, 5.5)]) == 5
    assert covered([]) == 0
    assert powers(1) == [1] and powers(8) == [1, 2, 4, 8] and powers(6) == [1, 2, 4, 6]
    assert spread(100, 400, 3) == [100, 200, 400] and spread(7, 7, 3) == [7]
    assert inflation(2.0, 5.0) == 2.5 and inflation(None, 5.0) is None
    window = Window(seconds=2.0, ticks=(10, 1), tokens=(10.0, 0.0), bytes=6e9)
    assert (window.token_ms(SMALL), window.token_ms(LARGE), window.of(4e9)) == (200, None, 0.75)


def test_rows_are_compared():
    def row(lanes: str, share: float, rate: float) -> dict[str, Any]:
        return {"lanes": lanes, "share": share, "concurrency": 8, "tokens_per_second": rate}

    alone = compare(row("latency", 1.0, 10.0), [])
    assert (alone["speedup"], alone["over_equal"]) == (1, 1)
    equal = compare(row("latency", 0.2, 30.0), [alone])
    other = compare(row("throughput", 0.2, 45.0), [alone, equal])
    assert (equal["speedup"], other["speedup"], other["over_equal"]) == (3, 4.5, 1.5)
    assert compare(row("auto", 0.2, 45.0), [])["speedup"] is None


@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_switch_that_counts_is_turned(on_gpu: bool):
    found = flipped(CONFIG, on_gpu, step=32)
    switches = {n for n, v in vars(CONFIG).items() if isinstance(v, bool)}
    switches -= {"prefix_cache", "retokenize"}
    cards = {"overlap", "fused_head", "fused_sampling"}
    switches -= {"cpu_kernels"} if on_gpu else cards
    amounts = {"eager_backlog", "read_along", "host_kv_tokens"} | (
        {"graph_rows"} if on_gpu else set()
    )
    assert set(found) == switches | amounts | {"graphs", "plan_ahead"}
    assert cards <= set(found) or not on_gpu
    for name, value in found.items():
        assert getattr(replace(CONFIG, **turned(name, value)), name) != getattr(CONFIG, name)
    assert found["eager_backlog"] == found["read_along"] == 8  # a step's backlog is 32
    assert found["graphs"] == ("off" if on_gpu else "on")
    back = flipped(replace(CONFIG, eager_backlog=8, read_along=8), on_gpu, step=32)
    assert back["eager_backlog"] == back["read_along"] == 0


def test_draws_are_ablated_beside_a_run_that_draws():
    contest = Contest(SETUP, Load(1, 12, 8, 4), rounds=1, repeats=2, together=None)
    rows = list(contest.ablated(Cell(0.5, 2), {"fused_sampling": False}, 0.8))
    assert [(r["switch"], r["value"], r["temperature"]) for r in rows] == [
        ("none", None, 0.8),
        ("fused_sampling", False, 0.8),
    ]
    assert rows[0]["over_default"] == 1 and rows[1]["over_default"] > 0
    assert all(row["tokens"] == 16 for row in rows)
    (job, _) = Load(2, 12, 8, 4, temperature=0.8).jobs(0.5)
    assert job.params.temperature == 0.8


def test_reading_along_has_something_to_read_at_a_quarter_of_a_step():
    """The large model ticks before the boundary, too."""
    load = Load(1, 12, 64, 32)
    switches = flipped(CONFIG, False, load.step)
    lazy, eager = (
        run_jobs(SETUP.engine(eager_backlog=lag), CPU, load.jobs(0.5), 1).ticks[LARGE]
        for lag in (0, switches["eager_backlog"])
    )
    assert eager > lazy


# What benches share


def test_pairs_are_scaled():
    assert dummy_pair("qwen-1.5b/qwen-32b").shapes[1].layers == 64
    cut = dummy_pair("qwen-1.5b/qwen-32b", 2)
    assert [shape.layers for shape in cut.shapes] == [2, 2]
    assert cut.shapes[1].hidden_size == 5120
    for shapes in SCALED.values():
        assert shapes[0].vocab_size == shapes[1].vocab_size
    with pytest.raises(SteerError, match="--pair: no shapes for 'tiny'; known: dummy-tiny"):
        dummy_pair("tiny")


class Built:
    """Stands for an engine; says which graphs it has."""

    config = CONFIG

    def __init__(self) -> None:
        self.recorded: list[int] = []

    def warm_up(self, sequences: int) -> None:
        self.recorded.append(sequences)


def test_benches_share_an_engine():
    """As long as they ask for the same; the one before is dropped before the next is built."""
    shared, alive = Shared(), []

    def build() -> Any:
        assert all(each() is None for each in alive), "two engines at once"
        made = Built()
        alive.append(weakref.ref(made))
        return made

    first = shared.engine("a", 4, build)
    assert shared.engine("a", 2, build) is first and first.recorded == []
    assert shared.engine("a", 8, build) is first and first.recorded == [8]
    assert shared.engine("a", 6, build) is first and first.recorded == [8]
    del first
    assert shared.engine("b", 1, build).recorded == []
    assert len(alive) == 2


def test_the_bandwidth_is_measured_once(monkeypatch):
    measured = []
    monkeypatch.setattr(
        CPU, "bandwidth", lambda quick: measured.append(quick) or Bandwidth(1.0, 2.0)
    )
    shared = Shared(roughly=True)
    assert shared.bandwidth(CPU, False) is shared.bandwidth(CPU, False)
    assert measured == [True]


def test_rows_are_added(tmp_path):
    """With --append to those that are there, else in their place."""
    file = tmp_path / "rows.jsonl"
    flags = ["--quick", "--device=cpu", "--layers=1", "--repeats=2", "--backlog=16", "--eager=0"]
    for append, count in ((["--append"], 2), (["--append", "--quantise=int4"], 4), ([], 2)):
        assert handoff.main([*flags, f"--json={file}", *append]) == 0
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(rows) == count
    assert {row["quantise"] for row in rows} == {None}


@pytest.mark.parametrize(("once", "then"), [(True, [0.2]), (False, [1, 0.2])])
def test_the_large_model_alone_can_run_once(once: bool, then: list[float]):
    """Under the policy with which the others are compared."""
    ran: list[tuple[str, float]] = []

    def run(name: str, times: Any, cell: Cell) -> dict[str, Any]:
        ran.append((name, cell.share))
        return {"lanes": name, **vars(cell), "tokens_per_second": 1.0}

    contest = SimpleNamespace(
        setup=SimpleNamespace(engine=lambda most, lane_policy: lane_policy),
        table=lambda engine, most: (None, []),
        warm=lambda engine, concurrency: None,
        run=run,
    )
    cells = [Cell(0.2, 1), Cell(1, 1)]
    rows = Runs(contest, RowWriter(None))  # type: ignore[arg-type]
    rows.grid(["latency", "throughput"], cells, once)
    assert ran == [("latency", 1), ("latency", 0.2), *(("throughput", share) for share in then)]
    assert all(row["speedup"] == 1 for row in rows.rows)
