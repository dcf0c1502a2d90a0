"""The order of a run: compilation first, then part after part, within one budget of seconds."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from bench.gpu_quick.output import ROWS, SUMMARY, Follower
from bench.gpu_quick.plan import BISECT, COMPILE, LEAST, PROVE, STAGES, TIME, Part
from bench.gpu_quick.result import FAILED, PASSED, Result
from bench.gpu_quick.summary import screen
from bench.gpu_quick.watch import Watch, not_run


@dataclass(frozen=True)
class Request:
    """The command line's request. ``seconds``: budget of the whole run."""

    stage: str
    parts: tuple[Part, ...]
    folder: Path
    seconds: float
    quick: bool


class Flow:
    """Runs a request and prints as it goes."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._end = time.monotonic() + request.seconds
        self._rows = Follower(request.folder / ROWS)
        self._results: list[Result] = []
        self._pair = ""

    def run(self) -> int:
        """Exit status: 0 if every part passed or had a reason of its own not to run, else 1.

        NoCardError if there is no GPU. An interrupted run shows its results so far.
        """
        try:
            for stage in STAGES[self._request.stage]:
                self._stage(stage)
        except KeyboardInterrupt:
            self._show()
            raise
        self._show()
        return int(bool(self._failures(self._results)))

    def _stage(self, stage: str) -> None:
        parts = [part for part in self._request.parts if part.stage == stage]
        if not parts:
            return
        reason = self._obstacle() if stage == TIME else ""
        if reason:
            self._keep(not_run(parts, reason))
            return
        if not self._request.quick:
            self._compile(stage, parts)
        for _, group in groupby(parts, lambda part: part.group):
            self._group(list(group))

    def _obstacle(self) -> str:
        """Why nothing is timed; empty if times can be taken."""
        proof = [result for result in self._results if result.part.stage == PROVE]
        failed = self._failures(proof)
        if "3" in failed:
            return "parity failed"
        return f"part {', '.join(failed)} of the proof failed" if failed else ""

    @staticmethod
    def _failures(results: Sequence[Result]) -> list[str]:
        """Keys of the parts that failed. Failed compilation ahead only costs time."""
        return [r.part.key for r in results if r.state == FAILED and r.part.group != "compile"]

    @property
    def _left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def _compile(self, stage: str, parts: Sequence[Part]) -> None:
        """Compile ahead of the parts. If it is cut off, finished kernels are in the cache."""
        part = COMPILE[stage]
        limit = min(part.limit, self._left)
        keys = ",".join(each.key for each in parts)
        watch = self._watch([part], [limit], "--ahead-of", keys)
        (found,) = self._results_of(watch)
        if found.detail.get("killed"):
            found = Result(part, PASSED, found.seconds, "cut off: the rest compiles when needed")
        found.detail = {
            "kernels": sum(event["kernels"] for event in watch.rehearsed),
            "core_seconds": sum(event["seconds"] for event in watch.rehearsed),
            "wall_seconds": found.seconds,
        }
        self._keep([found])

    def _group(self, parts: list[Part]) -> None:
        """Run parts that share a process, as far as they get; the rest in another one."""
        while parts:
            if reason := self._untimely(parts[0]):
                self._keep(not_run(parts[:1], reason))
                parts = parts[1:]
                continue
            limits = self._limits(parts)
            fitting = 1 + sum(limit >= LEAST for limit in limits[1:])
            found = self._results_of(self._watch(parts[:fitting], limits[:fitting]))
            self._keep(found)
            parts = parts[len(found) :]
            for result in found:
                self._after(result)

    def _after(self, result: Result) -> None:
        """Run the rest of a part in which the card was lost; bisect parity if it failed."""
        first, left = result, result.part.limit - result.seconds
        while (rest := result.detail.get("rest")) and min(left, self._left) >= LEAST:
            part = replace(first.part, title=f"{first.part.title}, the rest")
            flags = "--only", ",".join(rest)
            (result,) = self._results_of(self._watch([part], [min(left, self._left)], *flags))
            self._keep([result])
            left -= result.seconds
        if "parity" in first.detail:
            self._bisect(first)

    def _untimely(self, part: Part) -> str:
        """Why a part is not begun; empty if it can be."""
        if part.timed and "3" in self._failures(self._results):
            return "parity failed"
        left, needed = self._left, part.limit if part.open_ended else LEAST
        if left >= needed:
            return ""
        return f"{left:.0f} s of the budget are left, it needs {needed:g}"

    def _limits(self, parts: Sequence[Part]) -> list[float]:
        """The limit of each part: its own, or what the budget leaves."""
        left, found = self._left, []
        for part in parts:
            found.append(max(0.1, left if part.open_ended else min(part.limit, left)))
            left -= found[-1]
        return found

    def _bisect(self, failed: Result) -> None:
        limit = min(BISECT.limit, self._left)
        if limit < LEAST:
            self._keep(not_run([BISECT], "the budget is spent"))
            return
        where = json.dumps(failed.detail["parity"])
        self._keep(self._results_of(self._watch([BISECT], [limit], "--parity", where)))

    def _watch(self, parts: Sequence[Part], limits: Sequence[float], *flags: str) -> Watch:
        quick = ["--quick"] if self._request.quick else []
        pair = ["--pair", self._pair] if self._pair else []
        return Watch(parts, limits, [*quick, *pair, *flags], self._request.folder, self._say)

    def _results_of(self, watch: Watch) -> list[Result]:
        """Waits for the results; later processes use the pair that this one found to fit."""
        found = watch.results()
        self._pair = watch.pair or self._pair
        return found

    def _keep(self, results: Sequence[Result]) -> None:
        for result in results:
            self._results.append(result)
            self._say(result.line)

    @staticmethod
    def _say(line: str) -> None:
        with contextlib.suppress(OSError):  # a closed terminal does not end the run
            print(line, flush=True)

    def _show(self) -> None:
        text = screen(self._request.stage, self._results, self._rows.new())
        with (self._request.folder / SUMMARY).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n\n")
        self._say(f"\n{text}")
