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
    """A server over the embedded pair, and a client of it; ``log``: what it writes."""

    process: subprocess.Popen[bytes]
    url: str
    client: httpx2.Client
    log: Path

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

    def logged(self, wanted: str, seconds: float = 20.0) -> str:
        """The whole log, once a text is in it."""
        end = time.monotonic() + seconds
        while wanted not in (text := self.log.read_text()):
            assert time.monotonic() < end, text[-2000:]
            time.sleep(0.02)
        return text


@contextmanager
def served(log: Path, *flags: str) -> Iterator[Served]:
    """A server until the block ends; it must end by itself then, and without a traceback."""
    command = [sys.executable, "-m", "engine.cli", "serve", "--model-pair", "tiny", "--port", "0"]
    limits = ["--max-sequences", str(MOST_AT_ONCE), "--max-waiting", str(MOST_WAITING)]
    with log.open("wb") as to:
        process = subprocess.Popen([*command, *limits, *flags], cwd=ROOT, stderr=to)
    try:
        url = _url(process, log)
        with httpx2.Client(base_url=url, timeout=60) as client:
            yield Served(process, url, client, log)
        process.terminate()
        assert process.wait(30) == 0 and "Traceback" not in log.read_text(), log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the server says of itself once it listens."""
    while not (found := re.search(r"serving tiny at (http://127\.0\.0\.1:\d+) ", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    return found[1]
