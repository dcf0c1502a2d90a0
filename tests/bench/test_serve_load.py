"""``python -m bench.serve`` against a tiny server of known timing, and against the library."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.serve.command import main
from bench.serve.load import Load
from tests.bench.openai_stub import BETWEEN, FIRST, TEMPLATE, Stub, stub_server


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    with stub_server() as stub:
        yield stub


@pytest.fixture(autouse=True)
def fresh(server: Stub) -> None:
    server.bodies.clear()
    server.left = 0


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def measured(server: Stub, path: Path, *flags: str, code: int = 0) -> dict[str, Any]:
    """The row of one run."""
    rows = path / "rows.jsonl"
    assert main(["--base-url", server.url, "--json", str(rows), *flags]) == code
    (row,) = rows_of(rows)
    return row


def test_a_closed_loop(server: Stub, tmp_path: Path, capsys):
    """Counts, times near the server's, requests as they were asked for, all files."""
    flags = ["--at-once=3", "--requests=12", "--warm-up=0.25", "--output-tokens=8"]
    files = [f"--plot={tmp_path / 'p.png'}", f"--records={tmp_path / 'records.jsonl'}"]
    more = ['--extra-body={"top_k": 20}', "--slo=ttft=30,tpot=30", f"--server-pid={os.getpid()}"]
    row = measured(server, tmp_path, *flags, *files, *more, "--clients=2", "--api-key=secret")
    assert (row["requests"], row["whole"], row["warm_up"], row["tokens"]) == (9, 9, 3, 96)
    assert row["outcomes"] == {"ok": 9} and row["finish"] == {"length": 9}
    assert row["client_processes"] == 2 and row["model"] == "plain" and row["measured"] == "chunks"
    for name, least in (("ttft", FIRST), ("tpot", BETWEEN), ("e2e", FIRST + 8 * BETWEEN)):
        assert 0.9 * least < row[name]["p50"] < 20 * least, name
    assert 0.5 * BETWEEN < row["between_tokens"]["p50"] < 20 * BETWEEN
    # Three at once cannot be faster than the server's waits allow.
    assert 5 < row["tokens_per_second"] < 1.1 * 3 * 8 / (FIRST + 7 * BETWEEN)
    assert row["goodput_share"] == 1
    assert row["goodput_per_second"] == row["requests_per_second"] > 0
    assert row["client_cpu_us_a_token"] > 0 and row["server_cpu_us_a_token"] > 0
    assert row["server_peak_bytes"] > 1e6 and "secret" not in json.dumps(row)
    assert len({b["messages"][0]["content"] for b in server.streams}) == 12
    assert all(b["max_tokens"] == 8 and b["ignore_eos"] for b in server.streams)
    assert all(b["top_k"] == 20 for b in server.bodies)
    each = rows_of(tmp_path / "records.jsonl")
    assert [r["index"] for r in each] == list(range(12)) and {r["tokens"] for r in each} == {8}
    assert (tmp_path / "p.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "9 of 9 requests whole" in shown and "goodput: 100.0%" in shown


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_prompts_have_the_tokens_asked_for(server: Stub, tmp_path: Path, endpoint: str):
    """The server's tokens are fitted: one a character here, and those of its template."""
    flags = ["--at-once=4", "--requests=8", "--prompt-tokens=uniform:30:60", "--output-tokens=1"]
    measured(server, tmp_path, *flags, f"--endpoint={endpoint}")
    prompts = [b.get("prompt") or b["messages"][0]["content"] for b in server.streams]
    template = TEMPLATE if endpoint == "chat" else 0
    assert all(30 <= len(prompt) + template <= 60 for prompt in prompts)
    assert len(set(map(len, prompts))) > 3 and len(set(prompts)) == 8


@pytest.mark.parametrize(("model", "asked"), [("usage", "usage"), ("ids", "ids")])
def test_tokens_of_a_chunk(server: Stub, tmp_path: Path, model: str, asked: str):
    """Two tokens a chunk: the gap is halved where the server tells."""
    flags = ["--at-once=2", "--requests=6", "--output-tokens=12", "--warm-up=0"]
    row = measured(server, tmp_path, *flags, f"--model={model}", f"--token-counts={asked}")
    assert row["measured"] == asked and row["tokens"] == 6 * 12
    assert 0.4 * BETWEEN < row["between_tokens"]["p50"] < 10 * BETWEEN
    assert row["tpot"]["p50"] == pytest.approx(row["between_tokens"]["mean"], rel=0.6)
    (body, *_) = server.streams
    told = body["stream_options"].get("continuous_usage_stats"), body.get("return_token_ids")
    assert told == ((True, None) if asked == "usage" else (None, True))


def test_an_open_loop(server: Stub, tmp_path: Path):
    """Even arrivals for a second, however long the answers take."""
    flags = ["--rate=20", "--arrivals=even", "--seconds=1", "--output-tokens=60", "--warm-up=0.5"]
    records = tmp_path / "records.jsonl"
    row = measured(server, tmp_path, *flags, f"--records={records}")
    due = [each["due"] for each in rows_of(records)]
    assert due == pytest.approx([i / 20 for i in range(20)], abs=1e-6)
    assert len(server.streams) == 20 and row["requests"] == 10
    assert row["seconds"] == pytest.approx(0.5)
    assert row["late"]["p50"] < 0.5 and row["at_once"] is None and row["rate"] == 20


def test_clients_that_leave_and_slow_ones(server: Stub, tmp_path: Path):
    flags = ["--at-once=8", "--requests=24", "--output-tokens=20", "--warm-up=0"]
    row = measured(server, tmp_path, *flags, "--vanish=0.4", "--slow=0.4", "--slo=ttft=30")
    assert set(row["outcomes"]) == {"ok", "vanished", "slow"}
    assert sum(row["outcomes"].values()) == 24 and row["whole"] == row["outcomes"]["ok"]
    assert row["goodput_share"] == 1 and row["ttft"]["max"] < 30
    again = Load(requests=24, seconds=None, at_once=8, vanish=0.4, slow=0.4)
    left = sum(asked.vanish is not None for asked in again.share(0, 1))
    assert row["outcomes"]["vanished"] == left
    everyone = measured(server, tmp_path, *flags, "--vanish=1", code=1)
    assert everyone["outcomes"] == {"vanished": 24} and everyone["ttft"] is None
    assert server.left > 0


@pytest.mark.parametrize(
    ("model", "outcome", "said"),
    [
        ("full", "http 429", "12 x http 429: too many wait"),
        ("breaks", "stream error", "12 x stream error: it broke"),
        ("cut", "broken off", "12 x broken off: "),
    ],
)
def test_errors_are_counted(
    server: Stub, tmp_path: Path, model: str, outcome: str, said: str, capsys
):
    flags = ["--at-once=4", "--requests=12", "--warm-up=0", f"--model={model}", "--slo=ttft=9"]
    row = measured(server, tmp_path, *flags, code=1)
    assert row["outcomes"] == {outcome: 12} and row["whole"] == 0 and row["ttft"] is None
    assert row["goodput_share"] == 0 and row["goodput_per_second"] == 0
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-2] and lines[-1] == "error: no answer came whole"


def test_a_connection_that_the_server_closed_is_made_again(server: Stub, tmp_path: Path):
    flags = ["--at-once=2", "--requests=8", "--warm-up=0", "--model=shuts", "--output-tokens=2"]
    assert measured(server, tmp_path, *flags)["outcomes"] == {"ok": 8}


def test_requests_are_given_up(server: Stub, tmp_path: Path):
    flags = ["--at-once=2", "--requests=4", "--warm-up=0", "--timeout=0.2"]
    row = measured(server, tmp_path, *flags, "--output-tokens=400", code=1)
    assert row["outcomes"] == {"timeout": 4} and 0.2 < row["seconds"] < 5
    assert row["tokens_per_second"] > 0  # those that came before


def test_prompts_of_a_file(server: Stub, tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "second"}]
    lines = [{"prompt": "first", "max_tokens": 3}, {"messages": messages}]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    row = measured(server, tmp_path, "--at-once=1", "--requests=4", f"--file={path}")
    asked = [(b["messages"][0]["content"], b["max_tokens"]) for b in server.streams]
    assert asked == [("first", 3), ("second", 64)] * 2 and row["prompt_law"] == "prompts.jsonl"


def test_the_library_in_this_process(tmp_path: Path, capsys):
    """All tokens that were asked for, on the embedded pair; also clients that leave."""
    rows = tmp_path / "rows.jsonl"
    flags = ["--in-process=tiny", "--endpoint=completions", "--at-once=4", "--requests=8"]
    lengths = ["--prompt-tokens=40", "--output-tokens=16", f"--json={rows}"]
    assert main([*flags, *lengths, "--warm-up=0"]) == 0
    (row,) = rows_of(rows)
    assert (row["target"], row["requests"], row["tokens"]) == ("in-process", 8, 8 * 16)
    assert row["prompt_tokens"]["p50"] == pytest.approx(40, abs=3) and row["finish"] == {
        "length": 8
    }
    assert 0 < row["ttft"]["p50"] < row["e2e"]["p50"] and row["client_cpu_us_a_token"] > 0
    assert main([*flags, *lengths, "--vanish=0.5", "--slow=0.3", "--policy=small"]) == 0
    (row,) = rows_of(rows)
    assert set(row["outcomes"]) == {"ok", "vanished", "slow"} and row["policy"] == "small"
    assert "in-process: " in capsys.readouterr().out


def test_a_server_compared_with_the_library(server: Stub, tmp_path: Path, capsys):
    rows = tmp_path / "rows.jsonl"
    flags = ["--endpoint=completions", "--at-once=2", "--requests=4", f"--server-pid={os.getpid()}"]
    lengths = ["--prompt-tokens=40", "--output-tokens=8", f"--json={rows}"]
    assert main(["--base-url", server.url, "--in-process=tiny", *flags, *lengths]) == 0
    served, library, ratios = rows_of(rows)
    expected = served["tokens_per_second"] / library["tokens_per_second"]
    assert ratios["tokens_per_second_ratio"] == pytest.approx(expected)
    cost = served["server_cpu_us_a_token"] / library["client_cpu_us_a_token"]
    assert ratios["cpu_a_token_ratio"] == pytest.approx(cost)
    assert f"server / in-process: tokens/s {expected:.3f}" in capsys.readouterr().out


def test_a_server_that_is_not_there(server: Stub, capsys):
    """One line, status 1; one that is there but has no such process, status 2."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert main([f"--base-url=http://127.0.0.1:{port}", "--at-once=1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: http://127.0.0.1:{port}/v1: no answer: Connection refused"
    assert main(["--base-url", server.url, "--at-once=1", "--server-pid=4194304"]) == 2
    assert "--server-pid 4194304: no such process" in capsys.readouterr().err
