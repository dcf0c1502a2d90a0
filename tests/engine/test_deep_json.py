"""JSON nested more deeply than Python reads it, in each file that a user names: one clear line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench.dataset import read_problems
from engine import SteerError
from engine.cli import main
from engine.config import TINY
from engine.replay.trace import Trace
from engine.routing.calibration import Calibration
from engine.text.tokenizer import Tokenizer
from engine.tuning.prompts import read_prompts

DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
CHECKPOINT = ("config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json")


def write(folder: Path) -> Path:
    path = folder / "deep.jsonl"
    path.write_text(DEEP + "\n")
    return path


@pytest.mark.parametrize(
    "read", [read_prompts, read_problems, Trace.read, lambda p: Calibration.load(p, "tiny")]
)
def test_files_of_lines_and_calibrations(tmp_path: Path, read):
    path = write(tmp_path)
    with pytest.raises(SteerError, match=f"{path}.*: its values are nested too deeply") as error:
        read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*CHECKPOINT, "tokenizer.json", "model.safetensors.index.json"])
def test_files_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str):
    for role in ("small", "large"):
        shutil.copytree(TINY / role, tmp_path / role)
    (tmp_path / "large" / name).write_text(DEEP)
    folders = [f"--{role}={tmp_path / role}" for role in ("small", "large")]
    assert main(["generate", "--pair=custom", "--policy=small", *folders, "4+3?"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "large" / name) in error and error.count("\n") == 1
    assert name == "tokenizer.json" or "nested too deeply" in error


def test_a_tokenizer_alone(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(DEEP)
    with pytest.raises(SteerError, match="not a readable tokenizer"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("command", ["replay", "calibrate"])
def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str):
    flags = ["--policy=small"] if command == "replay" else ["--output", str(tmp_path / "o.json")]
    assert main([command, str(write(tmp_path)), *flags]) == 2
    error = capsys.readouterr().err
    assert "deep.jsonl:1: not JSON: its values are nested too deeply" in error
    assert error.count("\n") == 1
