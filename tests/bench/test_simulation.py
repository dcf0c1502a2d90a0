"""Whole simulations: figures that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from bench.simulation import run as run_module
from bench.simulation.cards import CARDS
from bench.simulation.meter import ArenaMeter
from bench.simulation.setting import Case
from bench.simulation.ticktimes import Roofline
from bench.simulation.workload import Means, Workload
from engine.config import LANE_POLICIES
from tests.bench.simulations import ALIKE, SHAPES, closed, simulate


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
