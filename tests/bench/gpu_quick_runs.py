"""Runs of ``python -m bench.gpu_quick`` on a simulated card, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu_quick.result import FAILED, NOT_RUN, PASSED

ROOT = Path(__file__).parents[2]
without_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU, no need to simulate"
)


def command(folder: Path, *flags: str, **faults: str) -> tuple[list[str], dict[str, str]]:
    """A run, and the environment in which its parts see a card."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests/card/site"),
        "OMP_NUM_THREADS": "1",
        "STEER_CARD_FAULTS": json.dumps(faults),
    }
    flags = ("--quick", "--out", str(folder), *flags)
    return [sys.executable, "-m", "bench.gpu_quick", *flags], environment


def run(folder: Path, *flags: str, **faults: str) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(folder, *flags, **faults)
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def states(said: str) -> dict[str, str]:
    """Of each part, as printed on the way."""
    lines = [line for line in said.split("gpu-quick, ")[0].splitlines() if " s  " in line]
    return {line.split()[0]: _state(line) for line in lines}


def _state(line: str) -> str:
    return next(state for state in (NOT_RUN, PASSED, FAILED) if f"  {state} " in line)


def sleepers(seconds: str) -> list[str]:
    """Processes that a part which hangs has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[:2] == [b"sleep", seconds.encode()]:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def wait_until(condition, path: Path) -> None:
    end = time.monotonic() + 120
    while not (path.exists() and condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
