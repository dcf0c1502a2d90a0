"""The clock and the tick times of a simulation, against figures worked out by hand."""

from __future__ import annotations

import random
from math import inf
from pathlib import Path

import pytest

from bench.simulate import main
from bench.simulation.cards import CARDS, arena_bytes, resident_bytes
from bench.simulation.clock import SharedClock
from bench.simulation.table import TableTimes, read_table, write_table
from bench.simulation.ticktimes import Roofline
from bench.simulation.workload import Means
from engine import SteerError
from engine._core import LARGE, NOBODY, SMALL
from tests.bench.simulations import SHAPES, closed, simulate

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
