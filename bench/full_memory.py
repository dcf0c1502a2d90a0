"""What does it cost when the arena cannot hold all requests at once? Simulated, over a grid.

    python -m bench.full_memory --json bench/results/simulate-full-memory.jsonl
    python -m bench.full_memory --weights bf16 --answers 512,2048
    python -m bench.full_memory --quick     the smallest grid, to see that it works

The simulator (python -m bench.simulate, its card, pair and defaults) runs requests of each length,
spread of lengths, weights' format and share of handoffs:

  loop   in a closed loop of 8 to 256 at once
  queue  256 at once, of which no more run than at the load with the best throughput: a plain queue
  rate   as they come (Poisson), at .8 and 1.2 times the requests a second of that load
  shift  64 at once, where answers of the second half are four times as long

All that the scheduler knows of an answer is its request's max_tokens: eight mean answers.
"computed again" is in rows, for each row that gave a token. A line is printed for each row of the
grid: the loss at loads above the best one, how the latency compares with the plain queue's, and
whether routing is slower than the large model alone, with the same lengths, at any load.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.rows import RowWriter
from bench.simulation.grid import Grid, each, whole
from bench.simulation.options import build_parser
from bench.simulation.run import Simulation
from bench.table import render
from engine.errors import SteerError
from engine.files import check_output

Row = dict[str, Any]
KEPT = (
    "kind",
    "simulated",
    "pair",
    "card",
    "weights",
    "memory_gib",
    "prompt",
    "answer",
    "spread",
    "shift",
    "step",
    "max_tokens",
    "requests",
    "seed",
    "lanes",
    "handoff",
    "concurrency",
    "rate",
    "max_sequences",
    "tokens_per_second",
    "requests_per_second",
    "ttft_p50",
    "latency_p50",
    "latency_p99",
    "recomputed_per_sampled",
    "suspended",
    "guarded",
    "small_slabs_mean",
    "large_slabs_mean",
    "slabs",
    "simulated_seconds",
)
SHIFT = "4"
RATES = (0.8, 1.2)


@dataclass(frozen=True)
class Scale:
    """The grid. ``requests`` by mean tokens of an answer."""

    answers: Sequence[int]
    spreads: Sequence[float]
    weights: Sequence[str]
    handoffs: str
    loads: Sequence[int]
    shifted: int  # load of the runs whose lengths shift

    def requests(self, answer: int) -> int:
        """More requests than the load; fewer of the longest answers, which take many ticks."""
        return max(self.loads[-1], 400 if answer < 4096 else 256) if self.loads[-1] > 16 else 24


ANSWERS, FORMATS = "512,2048,8192", "bf16,fp8"
LOADS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Cell:
    """A row of the grid: the settings that all its runs share."""

    weights: str
    answer: int
    spread: float

    def arguments(self, scale: Scale) -> list[str]:
        """Flags of the simulator."""
        return [
            "--weights",
            self.weights,
            "--answer",
            str(self.answer),
            "--spread",
            str(self.spread),
            "--step",
            "40",
            "--requests",
            str(scale.requests(self.answer)),
        ]


def simulate(kind: str, arguments: Sequence[str]) -> list[Row]:
    """The rows of one command line of the simulator, without the fields that never change."""
    grid = Grid.of(build_parser(None).parse_args(list(arguments)))
    rows = []
    for case in grid.cases:
        figures = Simulation(grid.setting, grid.workload, case).run()
        row = {"kind": kind, "simulated": True, **vars(case), **grid.fields, **figures}
        rows.append({name: row[name] for name in KEPT})
    return rows


def jobs_of_loops(scale: Scale, cell: Cell) -> Iterator[tuple[str, list[str]]]:
    """The closed loops, and those whose lengths shift."""
    for handoff, load in product(scale.handoffs.split(","), scale.loads):
        yield ("loop", [*cell.arguments(scale), "--handoff", handoff, "--concurrency", str(load)])
    for handoff in scale.handoffs.split(","):
        at_once = str(scale.shifted)
        shifted = ["--handoff", handoff, "--concurrency", at_once, "--shift", SHIFT]
        yield "shift", [*cell.arguments(scale), *shifted]


def jobs_beside(scale: Scale, cell: Cell, best: Row) -> Iterator[tuple[str, list[str]]]:
    """Jobs that follow from the best load of a row: a plain queue, and rates around its own."""
    flags: list[str] = [*cell.arguments(scale), "--handoff", f"{best['handoff']:g}"]
    most = str(best["concurrency"])
    yield "queue", [*flags, "--concurrency", str(scale.loads[-1]), "--max-sequences", most]
    for factor in RATES:
        yield "rate", [*flags, "--rate", f"{factor * best['requests_per_second']:.4g}"]


class Runs:
    """Runs jobs on all cores and writes their rows as they come."""

    def __init__(self, writer: RowWriter) -> None:
        self.rows: list[Row] = []
        self._writer = writer

    def run(self, jobs: Iterable[tuple[str, list[str]]], title: str) -> None:
        """Run all jobs. A SteerError of the simulator is raised again."""
        listed = list(jobs)
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            futures = [pool.submit(simulate, *job) for job in listed]
            for future in tqdm(futures, title):
                for row in future.result():
                    self._writer.write(row)
                    self.rows.append(row)

    def of(self, kind: str, cell: Cell, handoff: float | None = None) -> list[Row]:
        """Rows of one kind of a row of the grid."""
        return [
            row
            for row in self.rows
            if (row["kind"], row["weights"], row["answer"], row["spread"])
            == (kind, cell.weights, cell.answer, cell.spread)
            and handoff in (None, row["handoff"])
        ]


def best_of(rows: Sequence[Row]) -> Row:
    """The load with the best throughput; of equals the lowest."""
    return max(rows, key=lambda row: (round(row["tokens_per_second"], 3), -row["concurrency"]))


def verdict(runs: Runs, cell: Cell, handoff: float) -> tuple[str, ...]:
    """A line of the table."""
    loops = runs.of("loop", cell, handoff)
    best = best_of(loops)
    above = [row for row in loops if row["concurrency"] >= best["concurrency"]]
    least = min(row["tokens_per_second"] for row in above) / best["tokens_per_second"]
    queue = runs.of("queue", cell, handoff)[0]
    full = max(loops, key=lambda row: row["concurrency"])
    again = [
        max(row["recomputed_per_sampled"] for row in runs.of(kind, cell, handoff))
        for kind in ("loop", "rate", "shift")
    ]
    return (
        cell.weights,
        str(cell.answer),
        f"{cell.spread:g}",
        f"{handoff:g}",
        str(best["concurrency"]),
        f"{best['tokens_per_second']:.0f}",
        f"{least:.3f}",
        f"{full['latency_p50'] / queue['latency_p50']:.3f}",
        *(f"{share:.1%}" for share in again),
        slower_at(loops, runs.of("loop", cell, 1.0)),
    )


def slower_at(routed: Sequence[Row], large: Sequence[Row]) -> str:
    """Loads at which routing is slower than the large model alone, if it is faster at the first."""
    pairs = [
        (row["concurrency"], row["tokens_per_second"] / other["tokens_per_second"])
        for row, other in zip(routed, large, strict=False)
    ]
    if not pairs or pairs[0][1] <= 1:
        return "-"
    slower = [f"{load}: {ratio:.2f}" for load, ratio in pairs if ratio < 1]
    return ", ".join(slower) or "never"


def show(runs: Runs, cells: Sequence[Cell]) -> str:
    """The table."""
    header = (
        "weights",
        "answer",
        "spread",
        "handoff",
        "best load",
        "tokens/s",
        "least above it",
        "latency to queue's",
        "again",
        "at rates",
        "with shift",
        "slower than large",
    )
    handoffs = sorted({row["handoff"] for row in runs.rows})
    return render(header, [verdict(runs, cell, h) for cell, h in product(cells, handoffs)])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.full_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a result row a line")
    for flag, default in (("--answers", ANSWERS), ("--weights", FORMATS)):
        parser.add_argument(flag, default=default, metavar="LIST", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the smallest grid")
    return parser.parse_args(arguments)


def scale_of(options: argparse.Namespace) -> Scale:
    """The grid asked for. SteerError on a bad length."""
    if options.quick:
        return Scale((256,), (0,), ("bf16",), "0.5,1", (2, 8), 8)
    answers = each(options.answers, lambda text: whole("--answers", text))
    weights = each(options.weights, str)
    return Scale(answers, (0, 1), weights, "0,0.1,0.3,0.5,1", LOADS, 64)


def run(options: argparse.Namespace) -> int:
    """Run the loops first: the other jobs depend on the best of them."""
    check_output(options.json, "--json")
    scale = scale_of(options)
    cells = [Cell(*each) for each in product(scale.weights, scale.answers, scale.spreads)]
    with RowWriter(options.json) as writer:
        runs = Runs(writer)
        runs.run((job for c in cells for job in jobs_of_loops(scale, c)), "loops")
        beside: list[tuple[str, list[str]]] = []
        for cell in cells:
            for handoff in map(float, scale.handoffs.split(",")):
                beside += jobs_beside(scale, cell, best_of(runs.of("loop", cell, handoff)))
        runs.run(beside, "queues and rates")
    print(f"Simulated, not measured.\n\n{show(runs, cells)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    options = parse(arguments)
    try:
        return run(options)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: rows that were finished are written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
