"""A process with all that it starts, ended by SIGKILL: a hung driver reacts to nothing less."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_quick.output import LOG

_PR_SET_PDEATHSIG = 1
_LAST = 2**16  # bytes at a log's end to look at
_LINES = 12
# What faulthandler begins with, and the thread in which it happened.
_DUMPS = (("Timeout (", "Thread 0x"), ("Fatal Python error", "Current thread 0x"))


class Child:
    """``python -m MODULE ARGUMENTS`` in a session of its own; its output goes to the log."""

    def __init__(self, module: str, arguments: Sequence[str], folder: Path) -> None:
        command = [sys.executable, "-m", module, *arguments]
        environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        self._log = folder / LOG
        with self._log.open("ab") as log:
            self._begin = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def status(self) -> int | None:
        """Exit status, below 0 the signal that ended it; None while it runs."""
        return self._process.poll()

    @property
    def last_words(self) -> str:
        """The part of its output that says most about its end."""
        with self._log.open("rb") as log:
            log.seek(max(self._begin, self._log.stat().st_size - _LAST))
            return telling(log.read().decode(errors="replace"))

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # A process that waits in the driver may outlive the signal for a while.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)


def telling(text: str) -> str:
    """The main thread's stack in a log, if Python dumped it when it was stopped or crashed; else
    the last lines."""
    for mark, thread in _DUMPS:
        if mark in text:
            dump = text[text.rfind(mark) :]
            frames = dump[max(0, dump.rfind(thread)) :]  # innermost first; the main thread is last
            return "\n".join([*dump.splitlines()[:1], *frames.splitlines()[: _LINES - 1]])
    return "\n".join(text.rstrip().splitlines()[-_LINES:])


def die_with_parent() -> None:
    """From now on this process is killed when its parent ends in any way; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def said(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
