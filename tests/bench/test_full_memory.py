"""The grid of simulations with full memory, at its smallest."""

from __future__ import annotations

import json

import pytest

from bench import full_memory


def test_the_smallest_grid(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert full_memory.main(["--quick", "--json", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    # Two shares: two loads and one shift each, then beside the best load a queue and two rates.
    assert [kinds.count(kind) for kind in ("loop", "shift", "queue", "rate")] == [4, 2, 2, 4]
    assert all(row["simulated"] and row["versions"] and row["tokens_per_second"] for row in rows)
    assert [row["shift"] for row in rows if row["kind"] == "shift"] == [4, 4]
    assert "least above it" in capsys.readouterr().out


def test_a_line_says_where_routing_is_slower():
    large = [{"concurrency": n, "tokens_per_second": t} for n, t in ((8, 100), (16, 200))]
    routed = [{"concurrency": n, "tokens_per_second": t} for n, t in ((8, 110), (16, 190))]
    assert full_memory.slower_at(routed, large) == "16: 0.95"
    assert full_memory.slower_at(large, routed) == "-"
    assert full_memory.best_of([*large, {"concurrency": 32, "tokens_per_second": 200}]) == large[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--answers", "many"], "--answers: expected a whole number"),
        (["--answers", "512", "--weights", "int4"], "expected bf16 or fp8"),
        (["--quick", "--json", "/nowhere/rows.jsonl"], "--json"),
    ],
)
def test_bad_flags(capsys, flags, message):
    assert full_memory.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
