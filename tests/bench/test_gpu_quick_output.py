"""The output of ``python -m bench.gpu_quick``: figures, rows, and what a log says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import rows as bench_rows
from bench.gpu_quick import goals, plan
from bench.gpu_quick.child import telling
from bench.gpu_quick.output import Follower
from bench.gpu_quick.result import PASSED, Result
from bench.gpu_quick.summary import screen
from tests.bench.gpu_quick_runs import without_gpu

pytestmark = without_gpu


LOG = """more
Timeout (0:00:09)!
Thread 0x00007f01 (most recent call first):
  File "helper.py", line 1 in wait
Thread 0x00007f02 (most recent call first):
  File "graphs.py", line 7 in replay
  File "soak.py", line 9 in run
"""


def test_what_a_log_tells_of_an_end():
    """Where the main thread was, else what was printed last."""
    assert telling(LOG) == (
        "Timeout (0:00:09)!\nThread 0x00007f02 (most recent call first):\n"
        '  File "graphs.py", line 7 in replay\n  File "soak.py", line 9 in run'
    )
    crash = LOG.replace("Timeout (0:00:09)!", "Fatal Python error: Segmentation fault")
    crash = crash.replace("Thread 0x00007f01", "Current thread 0x00007f01")
    told = telling(crash).splitlines()
    assert told[0] == "Fatal Python error: Segmentation fault"
    assert told[1].startswith("Current thread") and told[2] == '  File "helper.py", line 1 in wait'
    assert telling("a\n" * 20 + "b\n\n").splitlines() == ["a"] * 11 + ["b"]
    assert telling("") == ""


def test_figures_stand_beside_their_goals():
    """Of the rows that they are of, "-" where there is none."""
    common = {"versions": {"python": "3"}, "commit": "c", "date": "d"}
    found = [
        {
            "bench": "decode",
            "provider": "steer",
            "model": "small",
            "batch": batch,
            "error": None,
            "of_copy": share,
            "busy_share": 0.98,
            **common,
        }
        for batch, share in ((1, 0.6123), (8, 0.5))
    ]
    part = plan.PARTS[4]
    text = screen("time", [Result(part, PASSED, 3.0)], found)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert (
        "61.2%" in lines["small model, decode of 1"] and "58%" in lines["small model, decode of 1"]
    )
    assert "2.0%" in lines["small model, GPU idle at most"]
    assert lines["large model, decode of 1"].split()[5] == "-"
    assert all(goal.name in text for goal in goals.GOALS)


@pytest.mark.parametrize(("given", "said"), [("abc1", "abc1"), ("", "unknown")])
def test_files_without_a_checkout_can_say_their_commit(given, said, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench_rows, "__file__", str(tmp_path / "rows.py"))
    monkeypatch.setenv("STEER_COMMIT", given)
    assert bench_rows.commit() == said


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    follower = Follower(path)
    with path.open("a") as file:
        file.write('{"a": 2}\n{"a"')
    assert follower.new() == [{"a": 2}]
    with path.open("a") as file:
        file.write(": 3}\n")
    assert follower.new() == [{"a": 3}]
