"""``python -m bench.scheduler``: rows with their fields, on a few sequences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.scheduler import main


def test_rows(tmp_path: Path, capsys):
    path = tmp_path / "rows.jsonl"
    assert main(["--sequences=1,8", "--ticks=20", f"--json={path}"]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    cases = [(r["workload"], r["sequences"]) for r in rows]
    assert cases == [("decode", 1), ("decode", 8), ("mixed", 1), ("mixed", 8)]
    assert all(r["plan_us"] > 0 and r["commit_us"] > 0 and r["machine"] for r in rows)
    assert "plan us" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--sequences=a", "expected numbers"),
        ("--sequences=0", "expected numbers"),
        ("--ticks=1", "at least 5"),
        ("--json=nowhere/x", "No such file"),
    ],
)
def test_bad_flags(flag: str, message: str, capsys):
    assert main([flag]) == 2
    assert message in capsys.readouterr().err
