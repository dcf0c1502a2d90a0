"""Time and money in ``python -m bench.flops``, from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.flops import main


def read(path: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["policy"]: row for row in rows}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows and traces of three policies on 60 problems."""
    folder = tmp_path_factory.mktemp("prices")
    files = [f"--json={folder / 'rows.jsonl'}", f"--save-traces={folder / 'traces'}"]
    assert main(["--problems=60", "--policies=small,speculate,verify,steer", *files]) == 0
    return folder


def test_time_and_money_are_in_every_row(run: Path):
    """Relative to large alone; the embedded pair's ticks on a card are mostly overhead."""
    rows = read(run / "rows.jsonl")
    for row in rows.values():
        assert row["prices"]["loads"] == [1, 64] and row["prices"]["card"] == "h100"
        assert row["an_answer"]["time_1"] > row["an_answer"]["time_64"] > 0
    large, guessed, steer = rows["large"], rows["speculate"], rows["steer"]
    assert large["time_1"] == large["time_64"] == large["money"] == large["money_stateless"] == 1
    assert rows["small"]["money"] == pytest.approx(rows["small"]["prices"]["small_price"])
    assert rows["small"]["money"] < steer["money"] < guessed["money"] < 1
    assert steer["money"] < steer["money_stateless"]
    assert large["large_token_share"] == guessed["large_token_share"] == 1
    assert 0 < steer["large_token_share"] < 0.5 and guessed["speculated"]["passes"]


def test_time_and_money_of_other_shapes_and_prices(tmp_path: Path, capsys):
    path = tmp_path / "rows.jsonl"
    flags = ["--priced-as=qwen-1.5b/qwen-32b", "--card=l40s", "--load=2", "--small-price=0.25"]
    flags += ["--prompt-price=0", "--problems=20", "--policies=small,large,speculate"]
    assert main([*flags, f"--json={path}"]) == 0
    rows, out = read(path), capsys.readouterr().out
    assert rows["small"]["money"] == 0.25 * rows["small"]["tokens"] / rows["large"]["tokens"]
    assert 0.03 < rows["small"]["time_2"] < 0.1 and rows["speculate"]["time_2"] < 0.6
    assert "the roofline of l40s" in out and "the shapes of qwen-1.5b/qwen-32b" in out
    assert "small model 0.25), read 0 of that" in out and "is a toy" not in out


def test_measured_tick_times(tmp_path: Path, capsys):
    """By hand: a tick of the large model takes 10 ms, one of the small model 1 ms, at any size."""
    table, path = tmp_path / "t.csv", tmp_path / "rows.jsonl"
    table.write_text("model,batch,context,span,us\nsmall,1,1,1,1000\nlarge,1,1,1,10000\n")
    flags = [f"--tick-times={table}", "--load=1,5", "--problems=20", "--policies=small,large"]
    assert main([*flags, f"--json={path}"]) == 0
    for name, milliseconds in (("small", 1), ("large", 10)):
        row = read(path)[name]
        tokens = row["tokens"] / row["n"]
        assert row["an_answer"]["time_1"] == pytest.approx(tokens * milliseconds / 1000)
        assert row["an_answer"]["time_5"] == pytest.approx(tokens * milliseconds / 5000)
    assert "the tick times of t.csv" in capsys.readouterr().out


def test_a_priced_trace_has_speculate_where_a_trace_says_so(run: Path, tmp_path: Path, capsys):
    """The stored traces do; a trace of another policy cannot, and a note says why."""
    path, priced = tmp_path / "rows.jsonl", ["--model-pair=qwen-1.5b/qwen-32b"]
    assert main([*priced, f"--json={path}"]) == 0
    rows = read(path)
    assert list(rows) == ["small", "large", "steer", "speculate"]
    assert rows["small"]["time_1"] < rows["steer"]["time_1"] < 0.5 and rows["large"]["money"] == 1
    assert rows["speculate"]["time_1"] < 0.5 < 0.9 < rows["speculate"]["time_64"]
    assert "follows from no other policy's trace" not in capsys.readouterr().out
    traces = [f"--trace={run / 'traces' / f'{name}.jsonl'}" for name in ("steer", "verify")]
    assert main([*priced, traces[0]]) == 0
    assert "follows from no other policy's trace" in capsys.readouterr().out
    assert main([*priced, *traces, f"--json={path}"]) == 0
    rows, done = read(path), read(run / "rows.jsonl")
    assert list(rows) == ["small", "large", "steer", "verify"]
    for name in ("steer", "verify"):
        share = done[name]["large_token_share"]
        assert rows[name]["large_token_share"] == pytest.approx(share) and 0 < share < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card=abacus"], "--card: unknown card 'abacus'; known: h100"),
        (["--load=0"], "--load: expected a whole number from 1 up to 4096, got '0'"),
        (["--prompt-price=-1"], "--prompt-price: expected a number from 0"),
        (["--cached-price=x"], "--cached-price: expected a number from 0"),
        (["--small-price=nan"], "--small-price: expected a number from 0"),
        (["--card=h100", "--tick-times=t.csv"], "--tick-times are measured: pass one of them"),
        (["--tick-times=nowhere.csv"], "nowhere.csv: no such table"),
    ],
)
def test_bad_prices_get_one_line(arguments: list[str], message: str, capsys):
    for more in ([], ["--model-pair=qwen-1.5b/qwen-32b"]):
        assert main([*arguments, *more]) == 2
        errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error:")]
        assert len(errors) == 1 and message in errors[0]


def test_a_pair_that_does_not_fit_is_noted(capsys):
    for pair, noted in (("qwen-7b/qwen-72b", True), ("qwen-1.5b/qwen-32b", False)):
        assert main([f"--model-pair={pair}", "--problems=2"]) == 0
        assert ("do not fit on one h100" in capsys.readouterr().out) == noted


def test_shapes_of_another_pair(capsys):
    """They must be known; a pair that is only priced has its own."""
    assert main(["--priced-as=qwen-99b"]) == 2
    known = "--priced-as: unknown pair 'qwen-99b'; known: qwen-0.5b/qwen-1.5b"
    assert known in capsys.readouterr().err
    assert main(["--model-pair=qwen-1.5b/qwen-7b", "--priced-as=llama-1b/llama-8b"]) == 2
    assert "--priced-as needs weights" in capsys.readouterr().err
