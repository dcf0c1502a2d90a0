"""``python -m bench.simulate``: figures that can be worked out by hand, and what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from bench.simulate import main
from bench.simulation import run as run_module
from bench.simulation.cards import CARDS, KV_BYTES, arena_bytes, resident_bytes
from bench.simulation.clock import NOBODY, SharedClock
from bench.simulation.meter import ArenaMeter
from bench.simulation.run import Simulation
from bench.simulation.setting import BLOCK_TOKENS, Case, Setting
from bench.simulation.table import TableTimes, read_table, write_table
from bench.simulation.ticktimes import Roofline, TickTimes
from bench.simulation.workload import Means, Workload
from engine import SteerError
from engine.config import LANE_POLICIES, EngineConfig
from engine.config.pairs import Pair
from engine.device.kv_arena import ArenaGeometry

SMALL, LARGE = range(2)
SHAPES = Pair.named("qwen-1.5b/qwen-32b").shapes
ALIKE = Means(prompt=10, answer=5, step=1000, spread=0)


class Constant:
    """Every tick of a model takes the same time."""

    def __init__(self, small: float, large: float) -> None:
        self._seconds = small, large

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        return self._seconds[model]


class Linear:
    """A second a tick, 10 ms a key of context, 100 ms a row."""

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        return 1 + 0.01 * context + 0.1 * span


def simulate(
    times: TickTimes,
    case: Case,
    means: Means = ALIKE,
    requests: int = 1,
    slabs: int = 1000,
    **changes: Any,
) -> dict[str, Any]:
    geometry = ArenaGeometry.of(SHAPES, EngineConfig(block_tokens=BLOCK_TOKENS), KV_BYTES)
    setting = Setting(SHAPES, replace(geometry, slabs=slabs), times)
    workload = Workload(requests, means, 1, setting.most)
    return Simulation(replace(setting, **changes), workload, case).run()


def closed(handoff: float, concurrency: int = 1) -> Case:
    return Case("latency", handoff, concurrency=concurrency)


# The clock


def test_two_equal_ticks_take_twice_as_long():
    clock = SharedClock()
    clock.start(SMALL, 1.5)
    clock.start(LARGE, 1.5)
    assert clock.advance() == SMALL and clock.now == 3
    assert clock.advance() == LARGE and clock.now == 3
    assert clock.busy == [3, 3]


def test_what_is_left_goes_on_alone():
    clock = SharedClock()
    clock.start(SMALL, 1)
    clock.start(LARGE, 3)
    assert clock.advance() == SMALL and clock.now == 2  # half as fast
    assert clock.idle(SMALL) and not clock.idle(LARGE)
    assert clock.advance() == LARGE and clock.now == 4  # 2 of its 3 seconds were left
    assert clock.busy == [2, 4]


def test_lanes_that_do_not_notice_each_other():
    clock = SharedClock(together=2)
    clock.start(SMALL, 1)
    clock.start(LARGE, 3)
    assert [clock.advance(), clock.now, clock.advance(), clock.now] == [SMALL, 1, LARGE, 3]


def test_the_clock_stops_for_what_is_due():
    clock = SharedClock()
    assert clock.advance(5) == NOBODY and clock.now == 5
    clock.start(SMALL, 2)
    assert clock.advance(6) == NOBODY and clock.now == 6
    assert clock.advance(7) == SMALL and clock.now == 7  # before what is due at that moment
    with pytest.raises(RuntimeError, match="nothing is due"):
        clock.advance()
    clock.start(SMALL, 1)
    with pytest.raises(RuntimeError, match="in flight"):
        clock.start(SMALL, 1)


@pytest.mark.parametrize("together", [0.8, 1.0, 1.6])
def test_work_is_conserved(together: float):
    """Whatever overlaps, what was started is done: at rate 1 alone, at ``together`` in company."""
    clock, draw = SharedClock(together), random.Random(0)
    started, done, both = 0.0, 0, 0.0
    for _ in range(500):
        for lane in (SMALL, LARGE):
            if clock.idle(lane) and draw.random() < 0.7:
                work = draw.random()
                started += work
                clock.start(lane, work)
        company = not clock.idle(SMALL) and not clock.idle(LARGE)
        alone = clock.idle(SMALL) and clock.idle(LARGE)
        before = clock.now
        done += clock.advance(before + draw.random() if alone or draw.random() < 0.5 else inf) >= 0
        both += (clock.now - before) * company
    while not (clock.idle(SMALL) and clock.idle(LARGE)):
        company = not clock.idle(SMALL) and not clock.idle(LARGE)
        before = clock.now
        clock.advance()
        both += (clock.now - before) * company
    assert done > 200
    assert sum(clock.busy) - 2 * both + together * both == pytest.approx(started)


# Tick times


def test_the_roofline_by_hand():
    roofline = Roofline(SHAPES, CARDS["h100"], "bf16", efficiency=0.5, overhead=1e-3)
    parameters = 28 * (1536 * (2 * 1536 + 2 * 256) + 3 * 1536 * 8960) + 151936 * 1536
    vectors = 28 * (1536 + 2 * 256) + 57 * 1536  # biases and norms
    kv = 28 * 2 * 256 * 2
    moved = 2 * (parameters + vectors) + kv * 4 * (1000 + 1)
    decode = roofline.seconds(SMALL, batch=4, context=1000, span=1)
    assert decode == pytest.approx(moved / 3.35e12 / 0.5 + 1e-3)
    rows, head = 2 * (parameters - 151936 * 1536) * 2048, 2 * 151936 * 1536
    keys = 2 * 28 * 2 * 1536 * (2048 * 2049 / 2)
    prefill = roofline.seconds(SMALL, batch=1, context=2048, span=2048)
    assert prefill == pytest.approx((rows + keys + head) / 989.4e12 / 0.5 + 1e-3)


def test_fp8_halves_weights_not_keys():
    bf16, fp8 = (Roofline(SHAPES, CARDS["h100"], w, 1, 0) for w in ("bf16", "fp8"))
    for batch, context in ((1, 1), (64, 4096)):
        kv = 256 * 1024 * batch * (context + 1) / 3.35e12
        both = [times.seconds(LARGE, batch, context, 1) - kv for times in (bf16, fp8)]
        assert both[0] == pytest.approx(2 * both[1])


def test_memory_that_is_left():
    held = resident_bytes(SHAPES, "bf16") / 1e9
    assert held == pytest.approx(3.09 + 63.97 + 1.56, abs=0.02)  # an untied embedding comes on top
    assert arena_bytes("h100", SHAPES, "bf16", 2) == 2 * 2**30
    left = arena_bytes("h100", SHAPES, "fp8", None)
    assert left / 2**30 == pytest.approx(79 - 4 - held / 2 / 1.073741824)
    with pytest.raises(SteerError, match=r"weights do not fit: 44 GiB less 63\.9 of bf16"):
        arena_bytes("l40s", SHAPES, "bf16", None)
    with pytest.raises(SteerError, match=r"--memory 12: h100 has 11\.1 GiB left"):
        arena_bytes("h100", SHAPES, "bf16", 12)


def test_a_table_in_between_below_and_above():
    points = {(b, c, s): 100 * b + c + 10 * s for b in (1, 3) for c in (8, 16) for s in (1, 5)}
    times = TableTimes([points, {(1, 1, 1): 7.0}], "table")

    def us(*point: float) -> float:
        return 1e6 * times.seconds(SMALL, *point)

    assert us(2, 12, 3) == pytest.approx(200 + 12 + 30)
    assert us(1, 8, 1) == pytest.approx(118) and us(3, 16, 5) == pytest.approx(366)
    assert us(0.5, 2, 0.1) == pytest.approx(118)  # the edge
    assert us(5, 32, 9) == pytest.approx(500 + 32 + 90)  # prolonged
    assert 1e6 * times.seconds(LARGE, 64, 999, 3) == pytest.approx(7)  # one point: constant


def test_a_table_is_never_prolonged_to_nothing():
    falling = {(1.0, 1.0, 1.0): 9.0, (2.0, 1.0, 1.0): 4.0}
    times = TableTimes([falling, falling], "table")
    assert 1e6 * times.seconds(SMALL, 100, 1, 1) == pytest.approx(4)


HEADER = "model,batch,context,span,us\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column model, batch, context, span, us"),
        ("model,batch,span,us\n", "no column context"),
        (HEADER + "small,1,1,1,5\n", "no row for model large"),
        (HEADER + "tiny,1,1,1,5\n", ":2: model must be small or large, found 'tiny'"),
        (HEADER + "small,1,1,1,0\n", ":2: us must be a number above 0, found '0'"),
        (HEADER + "small,1,x,1,5\n", ":2: context must be a number above 0, found 'x'"),
        (HEADER + "small,1,1,1,inf\n", ":2: us must be a number above 0"),
        (HEADER + "small,1,1\n", ":2: span must be a number above 0, found None"),
        (HEADER + "small,1,1,1,12,5\n", ":2: more fields than the header names"),
        (HEADER + "small,1,1,1,5" + 200_000 * "0" + "\n", ":2: not CSV: field larger"),
        (HEADER + "small,1,1,1,5\nsmall,1.0,1,1,5\n", ":3: a second time"),
        (
            HEADER + "large,1,1,1,5\nsmall,1,1,1,5\nsmall,2,1,1,5\nsmall,2,8,1,5\n",
            "model small, batch 1, context 8, span 1: missing; expected a full grid",
        ),
    ],
)
def test_tables_that_are_refused(text: str, message: str, tmp_path: Path, capsys):
    path = tmp_path / "times.csv"
    path.write_text(text)
    assert main([f"--table={path}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith(f"error: {path}") and error.count("\n") == 1


def test_a_roofline_written_as_a_table(tmp_path: Path):
    roofline = Roofline(SHAPES, CARDS["h100"], "bf16", 0.7, 2e-4)
    write_table(tmp_path / "times.csv", roofline)
    table = read_table(tmp_path / "times.csv")
    means = Means(200, 100, 16, 0.5)
    for case in (closed(0.2, 16), closed(1, 16)):
        direct, through = (simulate(t, case, means, 64) for t in (roofline, table))
        for figure in ("tokens_per_second", "latency_p50", "tpot_p50", "large_busy"):
            assert through[figure] == pytest.approx(direct[figure], rel=0.03), figure
        assert through["ttft_p50"] == pytest.approx(direct["ttft_p50"], rel=0.1)  # at the bend


# Whole simulations


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_small_alone_by_hand(step: float):
    """A prefill and a tick for each further token; reading boundaries costs nothing."""
    figures = simulate(Linear(), closed(0), replace(ALIKE, step=step))
    prefill, further = 1 + 0.1 + 1, 4 * 1.1 + 0.01 * (11 + 12 + 13 + 14)
    assert figures["simulated_seconds"] == pytest.approx(prefill + further)
    assert figures["ttft_p50"] == pytest.approx(prefill)
    assert figures["tpot_p50"] == pytest.approx(further / 4)
    assert figures["latency_p99"] == pytest.approx(prefill + further)
    assert (figures["small_ticks"], figures["large_ticks"], figures["tokens"]) == (5, 0, 5)
    assert figures["small_busy"] == pytest.approx(1) and figures["large_busy"] == 0
    assert figures["small_prompt_rows"] == 9 and figures["small_sampled_rows"] == 5
    assert figures["handoff_wait_p50"] is None
    assert figures["steps"] == 5 if step == 1 else figures["steps"] <= 5


def test_large_alone_by_hand():
    figures = simulate(Linear(), closed(1), replace(ALIKE, step=2))
    assert figures["simulated_seconds"] == pytest.approx(2.1 + 4.4 + 0.5)
    assert (figures["small_ticks"], figures["large_ticks"]) == (0, 5)
    assert figures["ttft_p50"] == figures["handoff_wait_p50"] == pytest.approx(2.1)
    assert figures["large_step_share"] == 1


def test_handoffs_by_hand():
    """Every token ends a step that the small model reads and the large one continues."""
    means = Means(prompt=10, answer=3, step=1, spread=0)
    figures = simulate(Constant(1, 10), closed(1 - 1e-12), means)
    assert figures["simulated_seconds"] == pytest.approx(3 * (1 + 10))  # never at once
    assert figures["ttft_p50"] == pytest.approx(11)
    assert figures["tpot_p50"] == pytest.approx(11)
    assert figures["handoff_wait_p50"] == pytest.approx(10)
    assert (figures["small_discarded_rows"], figures["large_sampled_rows"]) == (3, 3)
    assert figures["large_prompt_rows"] == 9 and figures["steps"] == 3
    assert figures["small_busy"] == pytest.approx(3 / 33)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_throughput_is_the_batch_over_the_tick(concurrency: int):
    figures = simulate(Constant(0.01, 1), closed(0, concurrency), ALIKE, requests=12)
    assert figures["tokens_per_second"] == pytest.approx(concurrency / 0.01)
    assert figures["requests_per_second"] == pytest.approx(concurrency / 0.05)
    assert figures["small_mean_batch"] == concurrency


def test_an_open_loop_at_low_rate_is_unloaded():
    case = Case("latency", 0, rate=0.01)
    figures = simulate(Constant(0.01, 1), case, ALIKE, requests=50)
    assert figures["latency_p50"] == pytest.approx(0.05)
    assert figures["latency_p99"] == pytest.approx(0.05)
    assert figures["ttft_p99"] == pytest.approx(0.01)
    assert 0.005 < figures["requests_per_second"] < 0.02 and figures["small_busy"] < 0.001


@pytest.mark.parametrize("lanes", LANE_POLICIES)
def test_no_lane_policy_waits_for_the_next_arrival(lanes: str):
    """With one request at a time there is no other to wait for, whatever is handed over."""
    means = Means(prompt=20, answer=60, step=5, spread=0)
    case = Case(lanes, 0.3, rate=0.01)
    figures = simulate(Constant(0.01, 0.02), case, means, requests=30)
    assert figures["large_step_share"] > 0.1
    assert figures["latency_p99"] < 60 * (0.01 + 0.02)  # a tick of each lane a token, at most


def test_an_open_loop_above_capacity_queues():
    """A request takes 50 ms, one runs at a time: ten times that rate waits longer and longer."""
    case = Case("latency", 0, rate=200)
    figures = simulate(Constant(0.01, 1), case, ALIKE, requests=50, max_sequences=1)
    assert figures["requests_per_second"] == pytest.approx(20, rel=0.01)
    assert figures["ttft_p99"] > 1 and figures["tpot_p99"] == pytest.approx(0.01)


def test_a_tight_arena_preempts_and_everything_ends():
    means = Means(200, 200, 16, 0.5)
    times = Roofline(SHAPES, CARDS["h100"], "bf16", 0.7, 2e-4)
    roomy, tight = (
        simulate(times, closed(0.3, 16), means, 48, slabs=s, eager_admission=True)
        for s in (1000, 50)
    )
    assert roomy["preemptions"] == 0 and roomy["finished"] == 48
    assert tight["finished"] == 48 and tight["tokens"] == roomy["tokens"]
    assert tight["suspended"] > 0 and sum(tight["lost_rows"]) > 0 and tight["lent_slabs"] > 0
    assert tight["small_recompute_rows"] + tight["large_recompute_rows"] > 0
    assert tight["tokens_per_second"] < roomy["tokens_per_second"]
    assert tight["small_slabs_peak"] <= 50 and tight["large_slabs_peak"] <= 50
    assert tight["small_slabs_mean"] + tight["large_slabs_mean"] <= 50


@pytest.mark.parametrize("spread", [0, 1])
def test_a_forecast_spares_most_of_what_is_computed_twice(spread):
    """Requests wait instead, and it is the same forecast each time."""
    means, times = Means(100, 300, 16, spread), Constant(0.01, 0.03)
    blind, seeing, again = (
        simulate(times, closed(0.3, 64), means, 192, slabs=160, eager_admission=eager)
        for eager in (True, False, False)
    )
    assert blind["tokens"] == seeing["tokens"] and blind["recomputed_per_sampled"] > 0.05
    assert seeing["recomputed_per_sampled"] < min(0.03, blind["recomputed_per_sampled"] / 3)
    assert seeing["simulated_seconds"] == again["simulated_seconds"]
    assert seeing["counters"] == again["counters"]


def test_answers_end_where_the_scheduler_does_not_expect_it():
    """It knows what was asked for, not how long the answer is."""
    workload = Workload(40, Means(10, 100, 8, 0.5), 3, 600, 500)
    assert set(workload.limits) == {500} and max(workload.answers) < 500
    assert workload.longest == max(workload.prompts) + 500
    cut = Workload(40, Means(10, 100, 8, 0.5), 3, 80, 500)
    assert all(p + n <= 80 for p, n in zip(cut.prompts, cut.limits, strict=True))
    assert any(a == n for a, n in zip(cut.answers, cut.limits, strict=True))


def test_lengths_that_shift():
    plain, shifted = (Workload(40, Means(10, 100, 8, 0.5, s), 3) for s in (1, 4))
    assert shifted.answers[:20] == plain.answers[:20]
    assert shifted.answers[20:] == [4 * n for n in plain.answers[20:]]


def test_one_bandwidth_for_two_lanes():
    means = Means(20, 100, 8, 0.5)
    shared, free = (
        simulate(Constant(0.01, 0.02), closed(0.3, 16), means, 64, together=t) for t in (1, 2)
    )
    assert shared["tokens"] == free["tokens"]
    assert 1.3 < free["tokens_per_second"] / shared["tokens_per_second"] < 2.01


def test_the_text_is_the_same_at_every_share_and_load():
    means = Means(20, 60, 8, 0.5)
    cases = [closed(h, c) for h in (0, 0.2, 0.5, 1) for c in (1, 8)]
    rows = [simulate(Constant(1, 2), case, means, 20) for case in cases]
    assert len({(r["tokens"], r["steps"]) for r in rows}) == 1
    shares = [r["large_step_share"] for r in rows]
    assert shares[::2] == shares[1::2] == sorted(set(shares))
    assert shares[2] == pytest.approx(0.2, abs=0.08)
    assert rows[0]["tokens"] / rows[0]["steps"] == pytest.approx(8, rel=0.3)


def test_ticks_end_it_early():
    figures = simulate(Constant(1, 2), closed(0, 2), ALIKE, requests=4, ticks=7)
    assert figures["ticks"] == 7 and figures["finished"] == 2
    assert figures["tokens"] == 2 * 7
    figures = simulate(Constant(1, 2), closed(0, 2), ALIKE, requests=4, ticks=2)
    assert figures["finished"] == 0 and figures["latency_p50"] is None and figures["tokens"] == 4


class Held:
    """The real scheduler, but each lane plans nothing at its first ``rounds`` calls."""

    def __init__(self, scheduler: Any, rounds: float) -> None:
        self._scheduler = scheduler
        self._calls = [0, 0]
        self._rounds = rounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def plan(self, lane: int) -> int:
        self._calls[lane] += 1
        return 0 if self._calls[lane] <= self._rounds else self._scheduler.plan(lane)


@pytest.mark.parametrize("rounds", [1, inf])
def test_a_lane_that_holds_is_asked_again(rounds: float, monkeypatch: pytest.MonkeyPatch):
    build = run_module.build_scheduler
    monkeypatch.setattr(run_module, "build_scheduler", lambda *a: Held(build(*a), rounds))
    if rounds == 1:
        assert simulate(Constant(1, 1), closed(0))["simulated_seconds"] == 5
    else:
        with pytest.raises(RuntimeError, match="no lane can move while 1 requests wait"):
            simulate(Constant(1, 1), closed(0))


def test_the_history_of_the_arena_stays_short():
    class Pool:
        def owned(self, model: int) -> int:
            return 3 - model

    meter = ArenaMeter(Pool())  # type: ignore[arg-type]
    for i in range(100_000):
        meter.sample(float(i))
    assert 1000 < len(meter.history) < 5000
    moments = [moment for moment, *_ in meter.history]
    assert moments == sorted(moments) and moments[0] == 0 and moments[-1] > 90_000
    assert meter.mean(0) == pytest.approx(3, abs=0.01) and meter.peak == [3, 2]


# The command


def rows_of(path: Path, *flags: str) -> list[dict[str, Any]]:
    assert main([f"--json={path}", *flags]) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


QUICK = ("--requests=8", "--prompt=40", "--answer=40", "--step=8")


def test_a_grid(tmp_path: Path, capsys):
    plot = tmp_path / "grid.png"
    flags = (*QUICK, "--concurrency=1,4", "--handoff=0,0.2,1", f"--plot={plot}", "--card=h200")
    rows = rows_of(tmp_path / "rows.jsonl", *flags)
    assert [(r["concurrency"], r["handoff"]) for r in rows] == [
        (1, 0),
        (1, 0.2),
        (1, 1),
        (4, 0),
        (4, 0.2),
        (4, 1),
    ]
    for row in rows:
        assert row["simulated"] is True and row["finished"] == 8 and row["machine"]
        assert (row["card"], row["times"], row["lanes"]) == ("h200", "roofline", "latency")
        assert (row["efficiency"], row["overhead_us"], row["weights"]) == (0.7, 200, "bf16")
        assert row["tokens_per_second"] > 0 and row["latency_p50"] <= row["latency_p99"]
        assert (
            row["ticks"] == row["small_ticks"] + row["large_ticks"] == sum(row["counters"]["ticks"])
        )
        assert row["wall_seconds"] > 0 and row["simulated_seconds"] > 0
    out = capsys.readouterr().out
    assert "Simulated, not measured" in out and "4 at once" in out and "us a tick" in out
    assert plot.stat().st_size > 10_000


def test_the_same_seed_gives_the_same_rows(tmp_path: Path):
    def once(name: str, *flags: str) -> list[dict[str, Any]]:
        flags = (*QUICK, "--handoff=0.3,0.6", "--memory=0.1", *flags)
        rows = rows_of(tmp_path / name, *flags)
        varying = ("wall_seconds", "ticks_per_wall_second", "date")
        return [{k: v for k, v in row.items() if k not in varying} for row in rows]

    for load in ("--concurrency=4,8", "--rate=5,50"):
        first, second = once("first", load), once("second", load)
        assert len(first) == 4 and first == second
        assert once("third", load, "--seed=1") != first


def test_an_interrupt_keeps_what_is_done(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    run, path = Simulation.run, tmp_path / "rows.jsonl"

    def interrupted(simulation: Simulation) -> dict[str, Any]:
        if simulation.case.handoff > 0:
            raise KeyboardInterrupt
        return run(simulation)

    monkeypatch.setattr(Simulation, "run", interrupted)
    assert main([*QUICK, "--concurrency=1", "--handoff=0,1", f"--json={path}"]) == 130
    assert len(path.read_text().splitlines()) == 1
    out, error = capsys.readouterr()
    assert "Simulated, not measured" in out and "interrupted" in error


def test_a_saved_table_is_read_again(tmp_path: Path):
    table, path = tmp_path / "times.csv", tmp_path / "rows.jsonl"
    flags = (*QUICK, "--rate=4", "--handoff=0.2")
    (direct,) = rows_of(path, *flags, f"--save-table={table}")
    (through,) = rows_of(path, *flags, f"--table={table}", "--memory=4")
    assert (through["card"], through["times"], through["efficiency"]) == (None, "times.csv", None)
    assert through["latency_p50"] == pytest.approx(direct["latency_p50"], rel=0.03)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model-pair=tiny", "--model-pair: no shapes for 'tiny'; known: qwen-0.5b/qwen-1.5b"),
        ("--card=h900", "--card: unknown card 'h900'; known: h100"),
        ("--weights=int4", "--weights: expected bf16 or fp8, got 'int4'"),
        ("--card=rtx4090", "the weights do not fit"),
        ("--efficiency=0", "--efficiency: expected a number from 0.01 up to 1, got '0'"),
        ("--efficiency=1.1", "--efficiency: expected a number from 0.01 up to 1"),
        ("--overhead-us=-1", "--overhead-us: expected a number from 0 up to 1e+06, got '-1'"),
        ("--overhead-us=inf", "--overhead-us: expected a number from 0 up to 1e+06, got 'inf'"),
        ("--together=3", "--together: expected a number from 0.01 up to 2"),
        ("--memory=0", "--memory: expected a number above 0 up to 10000"),
        ("--memory=40", "--memory 40: h100 has 11.1 GiB left"),
        ("--memory=1e-9", "holds no block"),
        ("--memory=0.1", "raise --memory or lower --prompt"),
        ("--answer=40000", "the context is 32768: lower --prompt, --answer or --spread"),
        ("--max-sequences=0", "--max-sequences: expected a whole number from 1 up to 65536"),
        ("--max-tick-tokens=256", "--max-tick-tokens: 256 is not above the 256 --max-sequences"),
        ("--requests=0", "--requests: expected a whole number from 1 up to 10000000, got '0'"),
        ("--requests=10", "--concurrency: 64 is more than the 10 --requests"),
        ("--concurrency=1,,8", "--concurrency: expected a whole number from 1 on, got ''"),
        ("--rate=0", "--rate: expected a number from 1e-06 up to 1e+06, got '0'"),
        ("--rate=1 --concurrency=1", "pass one of them"),
        ("--prompt=0", "--prompt: expected a number from 1 up to 1e+06, got '0'"),
        ("--answer=x", "--answer: expected a number from 1 up to 1e+06, got 'x'"),
        ("--step=nan", "--step: expected a number from 1 up to 1e+06, got 'nan'"),
        ("--spread=-1", "--spread: expected a number from 0 up to 100"),
        ("--handoff=0,1.5", "--handoff: expected a number from 0 up to 1, got '1.5'"),
        ("--lanes=fast", "--lanes: unknown lane policy 'fast'; known: latency, weighted"),
        ("--gather=-1", "--gather: expected a whole number from 0"),
        ("--hold-ticks=0", "--hold-ticks: expected a whole number from 1"),
        ("--eager-backlog=x", "--eager-backlog: expected a whole number from 0"),
        ("--seed=-1", "--seed: expected a whole number from 0 on"),
        ("--ticks=many", "--ticks: expected a whole number from 0 on, got 'many'"),
        ("--table=nowhere.csv", "nowhere.csv: no such table"),
        ("--table=x --efficiency=1", "--efficiency goes with the roofline, not with --table"),
        ("--table=x --save-table=y", "--save-table goes with the roofline"),
        ("--save-table=nowhere/x", "--save-table nowhere/x: no such folder"),
        ("--json=nowhere/x", "--json nowhere/x: no such folder"),
        ("--plot=x.txt", "expected a file name that ends in .png"),
        ("--luck=1", "unrecognized arguments: --luck=1"),
    ],
)
def test_bad_flags(flags: str, message: str, capsys):
    assert main(flags.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
