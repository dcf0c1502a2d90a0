"""``steer serve`` as a process of its own, reached over HTTP."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[2]
MOST_AT_ONCE, MOST_WAITING = 12, 16


@dataclass
class Served:
    """A server over the embedded pair, and a client of it."""

    process: subprocess.Popen[str]
    url: str
    client: httpx2.Client

    def arena(self) -> dict[str, Any]:
        """The engine's counts."""
        counts: dict[str, Any] = self.client.get("/steer/arena").json()
        return counts

    def idle(self, seconds: float = 20.0) -> bool:
        """Whether no answer is open any more, or soon is not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.arena()["open"]:
                return True
            time.sleep(0.02)
        return False


@contextmanager
def served(*flags: str) -> Iterator[Served]:
    """A server until the block ends; it must end by itself then, and without a traceback."""
    command = [sys.executable, "-m", "engine.cli", "serve", "--model-pair", "tiny", "--port", "0"]
    limits = ["--max-sequences", str(MOST_AT_ONCE), "--max-waiting", str(MOST_WAITING)]
    command += [*limits, "--log-level", "warning", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        line = process.stderr.readline()
        found = re.search(r"serving tiny at (http://127\.0\.0\.1:\d+) ", line)
        assert found, line
        with httpx2.Client(base_url=found[1], timeout=60) as client:
            yield Served(process, found[1], client)
        process.terminate()
        _, written = process.communicate(timeout=30)
        assert process.returncode == 0 and "Traceback" not in written, written
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
