"""The client processes, and what the server's process takes meanwhile."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from bench.serve.client import Measured, Share, work
from bench.serve.load import Load
from bench.serve.target import Target
from engine.errors import SteerError

_HEAD_START = 0.1  # seconds between the word to begin and the beginning


@dataclass(frozen=True)
class Run:
    """What all processes measured, and the moment at which they began."""

    begin: float
    shares: list[Measured]


class ClientError(SteerError):
    """A client process failed."""


class ServerProcess:
    """A process whose processor time and memory are read, with its children's if psutil is there.

    SteerError if there is no such process, or this system does not tell.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begin = self.cpu()

    def cpu(self) -> float:
        """Processor seconds so far, of all threads."""
        if importlib.util.find_spec("psutil"):
            return self._cpu_by_psutil()
        # The name of a program may hold anything, also spaces: fields are counted after it.
        fields = self._proc("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def taken(self) -> float:
        """Processor seconds since this object was made."""
        return self.cpu() - self._begin

    def peak_bytes(self) -> int | None:
        """The most memory that was resident since the process began; None if it is not told."""
        found = re.search(r"VmHWM:\s+(\d+)", self._proc("status"))
        return 1024 * int(found[1]) if found else None

    def _cpu_by_psutil(self) -> float:
        psutil = importlib.import_module("psutil")  # it brings no types
        try:
            process = psutil.Process(self._pid)
            times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
        except psutil.Error:
            raise SteerError(f"--server-pid {self._pid}: no such process") from None
        return float(sum(t.user + t.system for t in times))

    def _proc(self, name: str) -> str:
        try:
            return Path(f"/proc/{self._pid}/{name}").read_text()
        except OSError:
            raise SteerError(f"--server-pid {self._pid}: no such process, or no /proc") from None


def run(load: Load, target: Target, workers: int) -> Run:
    """Start the processes, let them begin together, collect what they measured.

    ClientError if one of them ends early.
    """
    context = multiprocessing.get_context("spawn")
    started: list[tuple[SpawnProcess, Connection]] = []
    try:
        for worker in range(workers):
            ours, theirs = context.Pipe()
            share = Share(load, target, worker, workers)
            process = context.Process(target=work, args=(share, theirs), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        pipes = [pipe for _, pipe in started]
        _receive(pipes)
        begin = time.monotonic() + _HEAD_START
        for pipe in pipes:
            pipe.send(begin)
        shares = [each for each in _receive(pipes) if isinstance(each, Measured)]
    finally:
        for process, pipe in started:
            pipe.close()
            process.join(5)
            if process.is_alive():
                process.terminate()
    return Run(begin, shares)


def _receive(pipes: Sequence[Connection]) -> list[object]:
    try:
        return [pipe.recv() for pipe in pipes]
    except EOFError:
        raise ClientError("a client process ended early; its message is above") from None
