"""``python -m bench.simulate``: its rows, what it keeps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.simulate import main
from bench.simulation.run import Simulation


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
