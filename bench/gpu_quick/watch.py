"""Runs parts in a process, follows their events, and kills parts that take too long."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_quick.child import Child, said
from bench.gpu_quick.output import EVENTS, Follower
from bench.gpu_quick.plan import END, START, Part
from bench.gpu_quick.result import FAILED, NOT_RUN, Result

WORKER = "bench.gpu_quick.worker"
NO_CARD = 3  # exit status of a worker that sees no card
_PAUSE = 0.05  # seconds between two looks


class NoCardError(RuntimeError):
    """PyTorch sees no GPU."""


class Watch:
    """One process with the parts of a group, in order.

    A part that fails, is killed or crashes ends the process, and with it everything that an error
    on the card may have left. The parts after it need another process.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        limits: Sequence[float],
        flags: Sequence[str],
        folder: Path,
        note: Callable[[str], None],
    ) -> None:
        """
        Args:
            limits: seconds of each part.
            flags: flags of the worker.
            note: receives the worker's lines for people.
        """
        self._parts = list(parts)
        self._limits = list(limits)
        self._note = note
        self._events = Follower(folder / EVENTS)
        self._current = -1  # index of the part that runs
        self._results: list[Result] = []
        self.pair = ""  # the pair that the process found to fit the card
        self.rehearsed: list[dict[str, Any]] = []  # events of rehearsals, as they ended
        self._deadline = time.monotonic() + START
        keys = ",".join(part.key for part in parts)
        seconds = ",".join(f"{limit:.1f}" for limit in limits)
        arguments = ["--parts", keys, "--limits", seconds, "--out", str(folder), *flags]
        self._child = Child(WORKER, arguments, folder)

    def results(self) -> list[Result]:
        """Waits for the process. Results of all parts that it began, in order; that of the first
        part also if it never began.

        Raises:
            NoCardError: the process sees no GPU.
        """
        try:
            while (status := self._child.status) is None and time.monotonic() < self._deadline:
                self._follow()
                time.sleep(_PAUSE)
            status = self._child.status
            self._child.kill()  # also processes left running by one that ended normally
        except BaseException:
            self._child.kill()
            raise
        self._follow()
        if status == NO_CARD:
            raise NoCardError
        self._finish(status)
        return self._results

    def _follow(self) -> None:
        for event in self._events.new():
            kind = event.get("event")
            if kind == "note":
                self._note(str(event["text"]))
            elif kind == "begin":
                self._current += 1
                self._began = time.monotonic()
                self._deadline = self._began + self._limits[self._current]
            elif kind == "end":
                self._results.append(self._result(event))
                more = len(self._results) < len(self._parts)
                self._deadline = time.monotonic() + (START if more else END)
            elif kind == "pair":
                self.pair = str(event["pair"])
            elif kind == "rehearsed":
                self.rehearsed.append(event)

    def _result(self, event: dict[str, Any]) -> Result:
        return Result(
            self._parts[self._current],
            event["state"],
            event["seconds"],
            event.get("reason", ""),
            event.get("trace", ""),
            event.get("detail", {}),
        )

    def _finish(self, status: int | None) -> None:
        """A result for the part that was running, if one was."""
        if len(self._results) > self._current and self._results:
            return
        if self._current < 0:
            part, seconds, limit = self._parts[0], START, START
            phase = "before it began, "
        else:
            part, limit = self._parts[self._current], self._limits[self._current]
            seconds, phase = time.monotonic() - self._began, ""
        killed = status is None
        why = (
            f"killed at its limit of {limit:g} s" if killed else f"its process {said(status or 0)}"
        )
        told, detail = self._child.last_words, {"killed": killed}
        self._results.append(Result(part, FAILED, seconds, phase + why, told, detail))


def not_run(parts: Sequence[Part], reason: str) -> list[Result]:
    """Results of parts that were left out."""
    return [Result(part, NOT_RUN, reason=reason) for part in parts]
