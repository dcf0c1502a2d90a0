"""The flow of ``python -m bench.gpu_quick``: what is run, for how long, and what is left out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.gpu_quick import flow as flows
from bench.gpu_quick import plan
from bench.gpu_quick.agreement import Scale
from bench.gpu_quick.output import open_folder
from bench.gpu_quick.parts import bisect, parity
from bench.gpu_quick.parts import ops as ops_part
from bench.gpu_quick.result import FAILED, NOT_RUN, PASSED, Result
from bench.gpu_quick.scene import PartFailedError, Scene
from bench.gpu_quick.worker import run_part
from tests.bench.gpu_quick_runs import rows, without_gpu
from tests.card.simulated import simulated_card

pytestmark = without_gpu


class Clock:
    """Stands for the processes of parts: each takes ``takes`` seconds of a clock that is told."""

    def __init__(self, takes: dict[str, float], failing: tuple[str, ...] = ()) -> None:
        self.now, self.takes, self.failing = 0.0, takes, failing
        self.limits: dict[str, float] = {}

    def watch(self, parts, limits, flags, folder, note):
        self.limits |= {part.key: limit for part, limit in zip(parts, limits, strict=True)}
        return SimpleNamespace(results=lambda: self._results(parts, limits), rehearsed=[], pair="")

    def _results(self, parts, limits):
        found = []
        for part, limit in zip(parts, limits, strict=True):
            spent = min(limit, self.takes.get(part.key, 1.0))
            self.now += spent
            found.append(Result(part, FAILED if part.key in self.failing else PASSED, spent))
        return found


def flow(clock: Clock, folder: Path, monkeypatch, stage: str, seconds: float) -> dict[str, str]:
    """States of all parts."""
    monkeypatch.setattr(flows, "Watch", clock.watch)
    monkeypatch.setattr(flows.time, "monotonic", lambda: clock.now)
    parts = tuple(plan.chosen(stage, None, quick=False))
    made = flows.Flow(flows.Request(stage, parts, open_folder(folder), seconds, False))
    made.run()
    return {result.part.key: result.state for result in made._results}


def test_the_soak_takes_what_is_left(tmp_path: Path, monkeypatch):
    clock = Clock({"compile-time": 30.0, "4": 70.0, "5": 100.0, "6": 40.0})
    assert set(flow(clock, tmp_path, monkeypatch, "time", 360).values()) == {PASSED}
    assert clock.limits == {"compile-time": 45, "4": 90, "5": 120, "6": 80, "7": 120}


def test_what_the_budget_does_not_hold_is_not_run(tmp_path: Path, monkeypatch):
    """Parts get what is left; the soak not less than it needs."""
    clock = Clock({"compile-time": 45.0, "4": 90.0, "5": 120.0, "6": 80.0})
    states = flow(clock, tmp_path, monkeypatch, "time", 300)
    assert clock.limits["6"] == 45 and states["6"] == PASSED and states["7"] == NOT_RUN
    assert "0 s of the budget are left, it needs 75" in (tmp_path / "summary.txt").read_text()


def test_a_shared_process_gets_no_part_that_does_not_fit(tmp_path: Path, monkeypatch):
    """Part 4 may take all that is left: part 5 waits for what it really takes."""
    clock = Clock({"compile-time": 20.0, "4": 30.0, "5": 99.0})
    states = flow(clock, tmp_path, monkeypatch, "time", 112)
    assert clock.limits["4"] == 90 and clock.limits["5"] == 62
    assert [key for key, state in states.items() if state == NOT_RUN] == ["6", "7"]


def test_what_stands_behind_a_lost_card_runs_in_another_process(tmp_path: Path, monkeypatch):
    """Until nothing is left or the part's time is over; then the reason is looked for."""
    asked = []

    def watch(parts, limits, flags, folder, note):
        asked.append((parts[0].key, round(limits[0]), flags[-1]))
        rest = {"compile-prove": None, "2": ["norm", "lm_head"]}.get(parts[0].key)
        if parts[0].key == "2" and "--only" in flags:
            rest = ["lm_head"] if flags[-1] == "norm,lm_head" else None
        state = FAILED if rest else PASSED
        found = [Result(part, state, 5.0, detail={"rest": rest} if rest else {}) for part in parts]
        return SimpleNamespace(results=lambda: found, rehearsed=[], pair="")

    monkeypatch.setattr(flows, "Watch", watch)
    parts = tuple(plan.chosen("prove", ["2"], quick=True))
    made = flows.Flow(flows.Request("prove", parts, open_folder(tmp_path), 240, True))
    assert made.run() == 1
    assert asked == [("2", 60, "--quick"), ("2", 55, "norm,lm_head"), ("2", 50, "lm_head")]
    assert [result.state for result in made._results] == [FAILED, FAILED, PASSED]


def test_a_lost_card_leaves_the_ops_behind_it(tmp_path: Path, monkeypatch):
    def broken(make):
        raise RuntimeError("CUDA error: an illegal memory access")

    with simulated_card():
        monkeypatch.setitem(ops_part.CHECKS, "norm", broken)
        monkeypatch.setattr(ops_part, "card_lost", lambda: True)
        with pytest.raises(PartFailedError) as told:
            ops_part.run(Scene(tmp_path, quick=True, only=["norm", "silu_mul", "skinny_gemm"]))
    assert "norm inputs (small): RuntimeError: CUDA error" in str(told.value)
    assert told.value.detail == {"rest": ["silu_mul", "skinny_gemm"]}
    assert {row["op"] for row in rows(tmp_path)} == {"norm"}


def test_an_error_of_the_engine_is_a_failure_of_parity(tmp_path: Path, monkeypatch):
    """All families are tried, the bisection begins where it was, and an error counts there too."""

    def broken(*_, **__):
        raise ValueError("no kernel for this")

    monkeypatch.setattr(parity, "_rows", broken)
    with simulated_card(), pytest.raises(PartFailedError) as told:
        parity.run(Scene(tmp_path, quick=True))
    where = {"family": "qwen3", "check": "runs", "dtype": "float32"}
    assert told.value.detail == {"parity": where} and "Traceback" in str(told.value)
    assert [row["dtype"] for row in rows(tmp_path)] == ["float32", "bfloat16"]
    monkeypatch.setattr(bisect, "build", broken)
    trial = bisect._trial(SimpleNamespace(), where, Scale(1, 1))
    assert str(trial([], [])) == "request 0 ended at position 0: ValueError: no kernel for this"
    monkeypatch.setattr(bisect, "card_lost", lambda: True)
    with pytest.raises(ValueError, match="no kernel"):
        trial([], [])


@pytest.mark.parametrize(
    ("failing", "left_out", "said"),
    [
        ("2", "4567", "part 2 of the proof failed"),
        ("3", ("row", *"4567"), "parity failed"),
        ("5", "", ""),
        ("compile-prove", "", ""),
    ],
)
def test_times_are_taken_if_the_proof_holds(
    failing: str, left_out: str, said: str, tmp_path: Path, monkeypatch
):
    states = flow(Clock({}, (failing,)), tmp_path, monkeypatch, "all", 600)
    assert {key for key, state in states.items() if state == NOT_RUN} == set(left_out)
    assert said in (tmp_path / "summary.txt").read_text()


def test_without_transformers_parity_is_not_run(tmp_path: Path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    found = run_part("3", Scene(tmp_path, quick=True))
    assert found == {
        "state": NOT_RUN,
        "reason": "transformers is not installed: pip install transformers",
    }
