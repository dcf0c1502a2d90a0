"""A server as a process of its own: ``steer serve`` on the embedded pair."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from engine.errors import SteerError

_STARTED = re.compile(r"serving .* at http://127\.0\.0\.1:(\d+) ")
_START_SECONDS = 120.0
_STOP_SECONDS = 60.0


class ServedProcess:
    """Starts ``steer serve`` and waits until it listens; ``with`` stops it.

    port: that it listens on.
    """

    def __init__(self, *flags: str, port: int = 0) -> None:
        """
        Args:
            flags: of ``steer serve``, besides the port.
            port: 0 takes a free one.

        Raises:
            SteerError: if it ends, or does not listen in time; with what it wrote.
        """
        self._written = tempfile.NamedTemporaryFile(prefix="steer-serve-", suffix=".log")  # noqa: SIM115
        command = [sys.executable, "-m", "engine.cli", "serve", "--port", str(port), *flags]
        self._process = subprocess.Popen(
            [*command, "--log-level", "warning"], stderr=self._written, stdout=self._written
        )
        self.port = self._wait()

    def __enter__(self) -> ServedProcess:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self.kill()
        self._written.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def written(self) -> str:
        """What it has written so far: warnings and errors."""
        return Path(self._written.name).read_text(errors="replace")

    @property
    def rss(self) -> int:
        """Bytes of its memory that are resident now. SteerError if this system does not tell."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            raise SteerError("a process's memory is read from /proc, which is not here") from None
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return 1024 * int(found[1]) if found else 0

    def get(self, path: str) -> str:
        """The text of an answer to a GET; OSError on any status but 200."""
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def arena(self) -> dict[str, Any]:
        """GET /steer/arena."""
        answer: dict[str, Any] = json.loads(self.get("/steer/arena"))
        return answer

    def stop(self) -> int:
        """Let its answers end; its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_STOP_SECONDS)

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()

    def _wait(self) -> int:
        end = time.monotonic() + _START_SECONDS
        while not (found := _STARTED.search(self.written)):
            if self._process.poll() is not None or time.monotonic() > end:
                said = self.written.strip()
                self.__exit__()
                raise SteerError(f"steer serve did not start: {said}")
            time.sleep(0.05)
        return int(found[1])
