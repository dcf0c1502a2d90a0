"""What does the core cost? Microseconds per plan and per commit, without any model.

    python -m bench.scheduler [--sequences 1,16,64,256,1024] [--json FILE]

The real scheduler is driven through its Python bindings with made-up tokens. Workload ``decode``
has all sequences decoding on the small lane; ``mixed`` adds prefills of new requests, boundaries
that are read, and handoffs to the large lane, on both lanes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.rows import RowWriter
from bench.table import render
from engine import SteerError, _core
from engine._core import LARGE, NOBODY, SMALL, EventKind

PROMPT, ANSWER, STEP = 256, 512, 24
BLOCK_TOKENS = 64  # as on a GPU
TEXT, DELIMITER = 1, 0


class Driver:
    """A scheduler with ``sequences`` requests that never run dry; times its plans and commits."""

    def __init__(self, sequences: int, mixed: bool) -> None:
        self.mixed = mixed
        self.plan_us: list[float] = []
        self.commit_us: list[float] = []
        self._random = random.Random(0)
        context = PROMPT + ANSWER
        slabs = sequences * (context // BLOCK_TOKENS + 1) * 2
        self._scheduler = _core.Scheduler(
            slabs=slabs,
            slots=(9, 1),
            block_tokens=BLOCK_TOKENS,
            max_context=context,
            max_sequences=sequences,
            max_tick_tokens=sequences + 2048,
            recompute_cost=(1.0, 20.0),
            delimiters=[b"\n\n"],
            token_bytes=[b"\n\n", b"text"],
        )
        for _ in range(sequences):
            self._add(self._random.randint(1, ANSWER) if mixed else ANSWER)
        for _ in range(PROMPT * sequences // 2048 + 2):  # read the prompts, untimed
            self._tick(SMALL, timed=False)
        self._answer_events()

    def _add(self, length: int) -> None:
        reader = SMALL if self.mixed else NOBODY
        prompt = [TEXT] * PROMPT
        self._scheduler.add(prompt, max_tokens=length, reader=reader)
        self._answer_events()

    def _answer_events(self) -> None:
        for kind, sequence, _ in self._scheduler.take_events():
            if kind == EventKind.decide:
                large = self.mixed and self._random.random() < 0.2
                self._scheduler.route(sequence, LARGE if large else SMALL)
            else:
                self._scheduler.forget(sequence)
                self._add(self._random.randint(1, ANSWER))

    def _tick(self, lane: int, timed: bool = True) -> None:
        started = time.perf_counter()
        count = self._scheduler.plan(lane)
        planned = time.perf_counter()
        if count == 0:
            return
        tokens = np.ones(count, np.int32)
        if self.mixed:
            tokens[np.random.default_rng(count).random(count) < 1 / STEP] = DELIMITER
        before = time.perf_counter()
        self._scheduler.commit(lane, tokens)
        after = time.perf_counter()
        if timed:
            self.plan_us.append(1e6 * (planned - started))
            self.commit_us.append(1e6 * (after - before))
        self._answer_events()

    def run(self, ticks: int) -> None:
        """Tick the lanes until ``ticks`` of them were timed."""
        while len(self.plan_us) < ticks:
            self._tick(SMALL)
            if self.mixed:
                self._tick(LARGE)


def measure(sequences: int, workload: str, ticks: int) -> dict[str, Any]:
    """One row: medians and the 20th and 80th percentiles."""
    driver = Driver(sequences, workload == "mixed")
    driver.run(ticks)
    row: dict[str, Any] = {"sequences": sequences, "workload": workload, "ticks": ticks}
    for name, values in (("plan_us", driver.plan_us), ("commit_us", driver.commit_us)):
        fifths = quantiles(values, n=5)
        row |= {name: median(values), f"{name}_p20": fifths[0], f"{name}_p80": fifths[3]}
    return row


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scheduler",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sequences", default="1,16,64,256,1024", help="comma-separated (default: %(default)s)")
    add("--ticks", type=int, default=300, help="timed ticks a row (default: 300)")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise SteerError(f"--sequences: expected numbers like 1,16,64, got {text!r}")
    return numbers


def show(rows: list[dict[str, Any]]) -> str:
    """The table: medians, with the 20th and 80th percentiles."""

    def cell(row: dict[str, Any], name: str) -> str:
        return f"{row[name]:.1f} ({row[f'{name}_p20']:.1f} - {row[f'{name}_p80']:.1f})"

    return render(
        ("workload", "sequences", "plan us", "commit us", "sum us"),
        [
            (
                r["workload"],
                str(r["sequences"]),
                cell(r, "plan_us"),
                cell(r, "commit_us"),
                f"{r['plan_us'] + r['commit_us']:.1f}",
            )
            for r in rows
        ],
    )


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 on bad input."""
    options = parse(arguments)
    try:
        if options.ticks < 5:
            raise SteerError(f"--ticks must be at least 5, got {options.ticks}")
        cases = [(n, w) for w in ("decode", "mixed") for n in _numbers(options.sequences)]
        with RowWriter(options.json) as writer:
            rows = []
            for sequences, workload in tqdm(cases, "bench.scheduler"):
                rows.append(measure(sequences, workload, options.ticks))
                writer.write(rows[-1])
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
