"""The start-up benchmark measures what it says, on the embedded pair."""

from __future__ import annotations

import json
from pathlib import Path

from bench.startup import main
from engine.config import TINY


def test_rows_of_import_and_load(tmp_path: Path, capsys):
    rows = tmp_path / "rows.jsonl"
    assert main(["--runs", "1", "--large", str(TINY / "large"), "--json", str(rows)]) == 0
    package, imported, loaded = map(json.loads, rows.read_text().splitlines())
    expected = ["import engine", "from engine import Engine", "load large"]
    assert [row["what"] for row in (package, imported, loaded)] == expected
    assert package["import"]["median"] > 0 and "torch" not in package
    assert 0 < imported["torch"]["median"] < imported["import"]["median"]
    assert 0 < loaded["tokenizer"]["median"] < loaded["load"]["median"]
    assert loaded["bytes"]["median"] > 3e6 and loaded["commit"] and loaded["machine"]
    assert "load large" in capsys.readouterr().out


def test_a_folder_that_is_none(tmp_path: Path, capsys):
    assert main(["--runs", "1", "--small", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
