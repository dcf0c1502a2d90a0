"""The golden record: what the embedded pair does is what it did."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from bench import golden

pytestmark = pytest.mark.xdist_group("golden")  # the record is made once
STORED = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def now() -> golden.Record:
    return json.loads(json.dumps(golden.record()))


def test_it_does_what_it_did(now: golden.Record):
    """`python -m bench.golden --write tests/data/golden` after a change that is meant to change."""
    assert golden.compare(STORED, exact=False, made=lambda: now) == []


def test_it_does_the_same_twice(now: golden.Record):
    again = json.loads(json.dumps(golden.record()))
    assert list(golden.differences(now, again, exact=True)) == []


def test_any_change_is_found(now: golden.Record):
    """A text, a decision, a count, a number beyond rounding, a part that is gone."""

    def changed(change) -> list[str]:
        other = copy.deepcopy(now)
        change(other)
        return list(golden.differences(now, other, exact=False))

    def text(r):
        r["requests"]["greedy"][0]["text"] += "."

    def decision(r):
        r["traces"]["steer"][1]["model"] = "nobody"

    def count(r):
        r["flops"][0]["tokens"] += 1

    def number(r):
        r["calibration"]["tau"] += 0.01

    def said(r):
        r["replay"][0] = r["replay"][0].replace("requests", "answers")

    for change in (text, decision, count, number, said, lambda r: r.pop("calibrate")):
        assert len(changed(change)) == 1, change
    other = copy.deepcopy(now)
    other["calibration"]["tau"] *= 1 + 1e-9
    assert not list(golden.differences(now, other, exact=False))
    assert list(golden.differences(now, other, exact=True))


def test_the_command(tmp_path: Path, capsys, monkeypatch, now: golden.Record):
    monkeypatch.setattr(golden, "record", lambda: now)
    assert golden.main([f"--compare={tmp_path}"]) == 2
    assert "no record there; make one with --write" in capsys.readouterr().err
    assert golden.main([f"--write={tmp_path / 'a'}"]) == 0
    (tmp_path / "b.json").write_text("{")
    assert golden.main([f"--compare={tmp_path}"]) == 2
    assert "not a record" in capsys.readouterr().err
