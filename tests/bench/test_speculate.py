"""bench.speculate at its smallest: rows, the table, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import speculate


def test_rows_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guesses change no text, write several tokens a pass, cost FLOPs and spare weights."""
    file = tmp_path / "rows.jsonl"
    arguments = ["--problems", "3", "--turns", "2", "--at-once", "1,3", "--json", str(file)]
    policies = "large,speculate:3,speculate:3:lookup"
    assert speculate.main([*arguments, "--policies", policies, "--temperature", "1"]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["policy"], r["at_once"]) for r in rows] == [
        (policy, at_once) for at_once in (1, 3) for policy in policies.split(",")
    ]
    large, guessed, looked = rows[:3]
    assert all(r["different"] == 0 and r["n"] == 3 and r["turns"] == 2 for r in rows)
    assert len({r["tokens"] for r in rows}) == 1 and large["times_faster"] == 1
    assert guessed["tokens_a_pass"] > 2 and guessed["acceptance"] > 0.5
    assert guessed["flops_decode"] > 1 > guessed["weights_read"] > 0
    assert large["time_1"] == large["money"] == large["large_token_share"] == 1 > guessed["money"]
    assert guessed["prices"]["loads"] == [1, 64] and guessed["an_answer"]["time_64"] > 0
    assert looked["speculated"]["drafted"] == 0 and looked["temperature"] == 1
    out = capsys.readouterr().out
    assert "tokens a pass" in out and "time at load 64" in out and "speculate:3, 3 at once" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--problems", "0"], "--problems must be at least 1, got 0"),
        (["--turns", "-1"], "--turns must be at least 1, got -1"),
        (["--at-once", "1,x"], "--at-once takes numbers from 1, as in 1,8; got '1,x'"),
        (["--small", "x"], "--small and --large go together"),
        (["--small", "x", "--large", "y", "--task", "hops"], "--task is of the embedded pair"),
        (["--load", "many"], "--load: expected a whole number from 1 up to 4096, got 'many'"),
        (["--max-tokens", "0"], "max_tokens must be at least 1, got 0"),
        (["--policies", "large,guess"], "unknown policy 'guess'"),
    ],
)
def test_bad_flags_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert speculate.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("error: ") == 1
