"""The benchmark of draws on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from bench import draws
from kernels import ops


def test_rows_of_every_way(tmp_path: Path, capsys):
    file = tmp_path / "rows.jsonl"
    sizes = ["--vocabulary", "300", "--rows", "2", "--runs", "3"]
    assert draws.main([*sizes, "--json", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["filters"], r["way"]) for r in rows] == [
        (name, way) for name in draws.SETTINGS for way in ("steer", "reference", "sort")
    ]
    assert all(0 < r["p20_ms"] <= r["p50_ms"] <= r["p80_ms"] and r["commit"] for r in rows)
    assert "top-p .95" in capsys.readouterr().out


def test_the_sort_keeps_what_the_filters_keep():
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log().expand(200, -1)
    for setting, kept in (
        ((1.0, 0, 0.6, 0.0), {1, 3}),
        ((1.0, 2, 0.6, 0.0), {1}),
        ((1.0, 0, 1.0, 0.3), {1, 3}),
        ((1.0, 0, 1.0, 0.0), {0, 1, 2, 3}),
    ):
        rows = draws.draw_rows(200, setting)
        assert set(draws.sorted_draw(logits, rows).tolist()) == kept
        assert set(ops.CpuBackend().sample(logits.contiguous(), 4, rows).tolist()) == kept


def test_bad_input(tmp_path: Path, capsys):
    assert draws.main(["--rows", "0"]) == 2
    assert capsys.readouterr().err == "error: --rows must be at least 1, got 0\n"
    assert draws.main(["--json", str(tmp_path / "no" / "rows")]) == 2
