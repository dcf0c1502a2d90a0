"""A process with all that it starts, ended by SIGKILL: a hung driver heeds nothing less."""

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


class Child:
    """``python -m MODULE ARGUMENTS`` in a session of its own; what it prints goes to the log."""

    def __init__(self, module: str, arguments: Sequence[str], folder: Path) -> None:
        command = [sys.executable, "-m", module, *arguments]
        environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        with (folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """Exit status, below 0 the signal that ended it; None while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # One that waits in the driver may outlive the signal for a while.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)


def die_with_parent() -> None:
    """From now on this process is killed when its parent ends in any way; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def said(status: int) -> str:
    """An exit status in words."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
