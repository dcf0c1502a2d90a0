"""``python -m bench.kernels`` on the CPU: rows, exit codes, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.kernel_bench import cases, gpu, reference
from bench.kernels import main
from kernels import registry
from kernels.variant import ModelShape

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.kernels", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_quick_rows(tmp_path: Path):
    """In an environment that asks for the interpreter, which it must not compile under."""
    path = tmp_path / "rows.jsonl"
    done = run("--quick", "--op=norm", f"--json={path}")
    assert done.returncode == 0, done.stderr[-2000:]
    *compiled, timed = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["kind"], r["model"], r["kernel"]) for r in compiled] == [
        ("aot", model, kernel)
        for model in ("qwen-1.5b", "qwen-32b")
        for kernel in ("rms_norm", "add_rms_norm")
    ]
    assert all(r["registers"] > 0 and r["loads"]["128"] > 0 for r in compiled)
    assert timed["kind"] == "reference"
    assert timed["device"] == "cpu"
    assert 0 < timed["p20_us"] <= timed["p50_us"] <= timed["p80_us"]
    assert all(r["commit"] and r["versions"]["triton"] for r in (*compiled, timed))
    assert "add_rms_norm" in done.stdout
    assert "reference on the CPU" in done.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--op=sort", "unknown op 'sort'; known: "),
        ("--pair=qwen-9b/qwen-10b", "unknown pair"),
        ("--pair=tiny", "has no named shapes"),
        ("--json=nowhere/rows", "no such folder"),
    ],
)
def test_bad_input(flag: str, message: str, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # said before anything is compiled
    assert main(["--aot", flag]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert not told.out


@pytest.mark.parametrize("op", reference.REFERENCES)
def test_references(op: str):
    row = reference.time_references([op], 3)[0]
    assert row["p50_us"] > 0
    assert op in reference.show([row])


def test_each_op_has_a_reference():
    assert set(registry.OPS) <= set(reference.REFERENCES)


SMALL = ModelShape("small", 64, 96, 2, 1, 32, 160)
CARD = gpu.Card("a card", "unknown", 3e12, 3.2e12, 8e14, 1.0, 2**26)


@pytest.mark.parametrize("op", cases.CASES)
@pytest.mark.parametrize("batch", [1, 8])
def test_gpu_cases_compute_what_their_baselines_do(op: str, batch: int, monkeypatch):
    """Their arguments fit both, which the machine that times them should not have to find out."""
    monkeypatch.setattr(cases, "DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    found = cases.CASES[op](SMALL, batch)
    assert found
    for case in found:
        arguments = case.inputs()
        ours, expected = case.kernel(*arguments), case.baseline(*arguments)
        assert case.floor.bytes > 0
        torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.1)


def test_gpu_rows_and_table(monkeypatch):
    """The bookkeeping of a GPU's rows, with times from nowhere."""
    monkeypatch.setattr(cases, "DEVICE", "cpu")
    monkeypatch.setattr(
        gpu, "graph_times", lambda calls, replays: [2.0 + i for i in range(replays)]
    )
    monkeypatch.setattr(gpu.torch, "compile", lambda function, **_: function)
    rows = gpu.measure(["norm"], [SMALL], CARD, 9)
    assert len(rows) == 3 * 2 * 3  # batches, kernels, contestants; too small to be cold
    assert {r["provider"] for r in rows} == {"steer", "torch", "torch.compile"}
    assert all(r["p50_us"] == 6.0 and r["l2"] == "hot" for r in rows)
    first = rows[0]
    assert first["bytes"] == 3 * 64 * 2  # a row read, one written, the weight
    assert first["of_copy_floor"] == pytest.approx(first["bytes"] / 3e12 / 6e-6)
    table = gpu.show(rows, CARD)
    assert "a card" in table
    assert table.count("rms_norm") == 6


def test_gpu_rows_go_round_cold_inputs(monkeypatch):
    monkeypatch.setattr(cases, "DEVICE", "cpu")
    seen = []
    monkeypatch.setattr(gpu, "graph_times", lambda calls, _: seen.append(len(calls)) or [1.0] * 9)
    monkeypatch.setattr(gpu.torch, "compile", lambda function, **_: function)
    card = gpu.Card(**{**vars(CARD), "l2_bytes": 1000})
    rows = gpu.measure(["silu_mul"], [SMALL], card, 9)
    assert {r["l2"] for r in rows if r["rows"] == 1} == {"hot", "cold"}
    assert min(seen) >= 40
