"""``steer replay`` and what it rests on: books that are worked out without a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.tasks import arithmetic
from engine import Engine, EngineConfig, SamplingParams, Threshold
from engine.accounting.ledger import Usage
from engine.cli import main
from engine.config import TINY
from engine.replay.replay import replay
from engine.replay.trace import Trace
from engine.routing.names import make_policy

PARAMS = SamplingParams(max_tokens=80)
PROMPTS = [p.prompt for p in arithmetic.problems("test", 40, seed=3)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(prefix_cache=False))


def recorded(engine: Engine, policy: str, path: Path) -> Trace:
    engine.generate(PROMPTS, PARAMS, policy, trace=path)
    return Trace.read(path)


@pytest.mark.parametrize(
    "policy",
    [
        "small",
        "large",
        "steer",
        "entropy:0.3",
        "query:max_prob:0.99999",
        "threshold:max_prob:0.9@probe:3",
        "threshold:max_prob:0.99@probe:16:least",
        "previous:max_prob:0.95",
    ],
)
def test_a_replay_of_the_same_policy_has_the_books_of_the_run(
    engine: Engine, tmp_path: Path, policy: str
):
    """Each row and key of each kind, what entries would re-read, and what decisions waited for."""
    trace = recorded(engine, policy, tmp_path / "t.jsonl")
    found = replay(trace, engine.policy(policy))
    ran = sum((r.usage for r in trace.requests), Usage())
    assert found.changed == 0 and found.same == len(PROMPTS)
    assert np.array_equal(found.usage.rows, ran.rows)
    assert np.array_equal(found.usage.entries, ran.entries)
    assert found.usage.decision_wait == ran.decision_wait


def test_another_tau_changes_what_it_should(engine: Engine, tmp_path: Path):
    trace = recorded(engine, "steer", tmp_path / "t.jsonl")
    everything = replay(trace, Threshold("max_prob", 2.0))
    assert everything.large_step_share == 1 and everything.same < len(PROMPTS)
    nothing = replay(trace, engine.policy("steer:0"))
    assert nothing.large_step_share == 0 and nothing.usage.rows[1].sum() == 0
    kept = sum(s.model == "large" for r in trace.requests for s in r.trail)
    assert nothing.changed == kept


def test_the_command_says_what_it_cannot_know(capsys):
    path = str(TINY / "trace.jsonl")
    assert main(["replay", path, "--policy", "steer:0.9", "--policy", "random:0.5"]) == 0
    out = capsys.readouterr().out
    assert "recorded: steer" in out and "random:0.5" in out
    assert "exact up to the first decision" in out


def test_what_a_trace_does_not_hold_is_refused(engine: Engine, tmp_path: Path, capsys):
    path = tmp_path / "t.jsonl"
    engine.generate(PROMPTS[:3], PARAMS, "random:0.5", trace=path)
    bad = [
        (["threshold:max_prob:0.9@probe:4"], "looks at probe:4, the trace holds boundary"),
        (["entropy:0.5"], "the trace has no signals there"),
        (["cascade:max_prob:0.9"], "looks at answer:least, the trace holds boundary"),
        (["luck"], "unknown policy 'luck'"),
    ]
    for policies, message in bad:
        assert main(["replay", str(path), "--policy", *policies]) == 2
        captured = capsys.readouterr()
        assert message in captured.err and not captured.out
        assert captured.err.count("\n") == 1


def test_a_trace_of_another_version(tmp_path: Path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"schema": "steer-trace/9", "type": "run"}) + "\n")
    assert main(["replay", str(path), "--policy", "small"]) == 2
    assert "steer-trace/9" in capsys.readouterr().err


def test_a_name_is_resolved_without_an_engine():
    trace = Trace.read(TINY / "trace.jsonl")
    assert replay(trace, make_policy("large")).large_step_share == 1


def test_it_says_that_accuracy_is_not_replayed(capsys):
    """In one line of its output, and in its help."""
    assert main(["replay", str(TINY / "trace.jsonl"), "--policy", "small"]) == 0
    line = "Decisions and their costs are replayed, accuracy never: no model runs."
    assert line in capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    assert line in " ".join(capsys.readouterr().out.split())
