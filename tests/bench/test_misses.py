"""bench.misses: what each kind of STEER's mistakes costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.misses import Knowing, Known, Mended, main
from bench.report.domain import domain
from engine import Calibration, Engine, Steer
from engine.config import TINY


def test_the_rows_of_a_run(tmp_path: Path, capsys: Any) -> None:
    """Mended runs are no worse than STEER's, and the causes are their differences."""
    path = tmp_path / "rows.jsonl"
    assert main(["--problems=8", f"--json={path}"]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    runs = {r["run"]: r for r in rows if r["kind"] == "run"}
    causes = {r["cause"]: r for r in rows if r["kind"] == "cause"}
    steer, known = runs["steer"], runs["all known"]
    assert runs["large"]["flops_catchup"] == 1 and runs["large"]["accuracy"] == 1
    assert known["accuracy"] == 1 >= runs["no misses"]["accuracy"] >= steer["accuracy"]
    assert 0 < known["large_step_share"] <= runs["no false alarms"]["large_step_share"]
    assert runs["no false alarms"]["flops_catchup"] < steer["flops_catchup"]
    saved = steer["flops_catchup"] - runs["no false alarms"]["flops_catchup"]
    assert causes["false alarms"]["flops"] == pytest.approx(saved)
    assert 0 < causes["reading"]["flops"] < known["flops_catchup"]
    assert "what it costs" in capsys.readouterr().out


def test_what_is_known_of_a_boundary() -> None:
    """The step that the small model would write, judged by the checker; and whether the text so far
    is wrong already."""
    where = domain("planning-open", 30)
    small = Engine(where.pair).generate([p.prompt for p in where.test.problems], policy="small")
    firsts = [
        where.first_error(problem, done.text)
        for problem, done in zip(where.test.problems, small, strict=True)
    ]
    assert any(firsts) and None in firsts
    engine, seen = Engine(where.pair), []
    steer = Steer(Calibration.load(TINY / "calibration.json", engine.fingerprint))

    def keep(hands: bool, known: Known) -> bool:
        seen.append(known)
        return False

    policy = Mended(steer, engine, Knowing(where), keep)
    done = engine.generate([p.prompt for p in where.test.problems], policy=policy)
    assert [d.text for d in done] == [d.text for d in small]
    assert sum(known.wrong for known in seen) == sum(first is not None for first in firsts)
    assert sum(known.lost for known in seen) < sum(len(d.steps) for d in done)


def test_refusals(capsys: Any) -> None:
    assert main(["--problems=0"]) == 2
    assert "--problems must be at least 1" in capsys.readouterr().err
