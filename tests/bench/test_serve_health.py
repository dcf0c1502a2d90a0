"""bench.serve_health against a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.serve_health import main
from engine import Engine
from tests.serve.answers.running import running


def test_health_is_timed_while_long_prompts_are_read(tmp_path: Path, capsys) -> None:
    file = tmp_path / "rows.jsonl"
    flags = ["--megabytes=0.3", "--seconds=1", f"--json={file}"]
    with running(Engine("tiny")) as server:
        assert main([f"--base-url={server.url}", *flags]) == 0
    idle, busy = map(json.loads, file.read_text().splitlines())
    assert (idle["during"], busy["during"]) == ("idle", "long prompts")
    for row in (idle, busy):
        assert row["requests"] > 3 and 0 < row["median_ms"] <= row["p99_ms"] <= row["most_ms"]
    assert "p99_ms" in capsys.readouterr().out


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base-url=http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("error: http://127.0.0.1:9: no server answers")
