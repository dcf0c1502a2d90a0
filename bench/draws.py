"""What does a draw cost on a CPU? Milliseconds of processor time a row, by the filters.

    python -m bench.draws [--vocabulary 151936] [--rows 8] [--runs 30] [--json FILE]

Three ways take turns on the same rows: the engine's kernel, its reference in plain PyTorch, and the
draw that the engine had before its race: a sort of the row and the inverse of a cumulative sum, in
fp64. Processor time, of all threads together, is what a busy machine stretches least.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.rows import RowWriter
from bench.table import render
from engine.errors import SteerError
from engine.files import check_output
from kernels import ops

Draw = Callable[[Tensor, ops.DrawRows], Tensor]
SPREAD = 2.5  # of the logits
# Temperature, top-k, top-p and min-p.
SETTINGS: dict[str, tuple[float, int, float, float]] = {
    "temperature 1": (1.0, 0, 1.0, 0.0),
    "top-k 20, top-p .95": (0.6, 20, 0.95, 0.0),
    "top-p .95": (1.0, 0, 0.95, 0.0),
    "min-p .05": (1.0, 0, 1.0, 0.05),
}


def draw_rows(rows: int, setting: tuple[float, int, float, float]) -> ops.DrawRows:
    """Of one request's positions; filters that are off are not given."""
    temperature, top_k, top_p, min_p = setting
    columns: dict[str, Any] = {"temperature": [temperature] * rows, "key": [7] * rows}
    columns["counter"] = [[0, position, 1] for position in range(rows)]
    for name, value, off in (("top_k", top_k, 0), ("top_p", top_p, 1.0), ("min_p", min_p, 0.0)):
        if value != off:
            columns[name] = [value] * rows
    return ops.DrawRows.on("cpu", **columns)


def sorted_draw(logits: Tensor, rows: ops.DrawRows) -> Tensor:
    """By a stable sort of each row and a cumulative sum, with Torch's random numbers."""
    ordered, ids = logits.double().sort(dim=-1, descending=True, stable=True)
    mass = (ordered / rows.temperature[:, None]).softmax(-1)
    if rows.top_k is not None:
        mass[torch.arange(mass.shape[1]) >= rows.top_k[:, None]] = 0
        mass /= mass.sum(-1, keepdim=True)
    if rows.top_p is not None:
        mass[mass.cumsum(-1) - mass >= rows.top_p[:, None]] = 0
    if rows.min_p is not None:
        mass[mass < rows.min_p[:, None] * mass[:, :1]] = 0
    total = mass.cumsum(-1)
    goal = torch.rand(len(mass), 1, dtype=torch.float64) * total[:, -1:]
    place = torch.searchsorted(total, goal, right=True).clamp(max=mass.shape[1] - 1)
    return ids.gather(1, place)[:, 0]


def ways(vocabulary: int) -> dict[str, Draw]:
    """What is measured, by name."""
    backend = ops.CpuBackend()
    return {
        "steer": lambda logits, rows: backend.sample(logits, vocabulary, rows),
        "reference": lambda logits, rows: backend.sample(logits, vocabulary, rows, fused=False),
        "sort": sorted_draw,
    }


def measure(logits: Tensor, filters: str, runs: int) -> Iterator[dict[str, Any]]:
    """A row for each way. SteerError if kernel and reference draw different tokens."""
    count, vocabulary = logits.shape
    rows, every = draw_rows(count, SETTINGS[filters]), ways(vocabulary)
    if not torch.equal(every["steer"](logits, rows), every["reference"](logits, rows)):
        raise SteerError(f"{filters}: the kernel and its reference draw different tokens")
    seconds: dict[str, list[float]] = {way: [] for way in every}
    for _ in range(runs):
        for way, draw in every.items():
            start = time.process_time()
            draw(logits, rows)
            seconds[way].append(time.process_time() - start)
    for way, each in seconds.items():
        cuts = [1000 * s / count for s in quantiles(each, n=10)]
        times = {"p20_ms": cuts[1], "p50_ms": cuts[4], "p80_ms": cuts[7]}
        sizes = {"vocabulary": vocabulary, "rows": count, "runs": runs}
        yield {"bench": "draws", "filters": filters, "way": way, **sizes, **times}


def show(rows: list[dict[str, Any]]) -> str:
    """The table, in milliseconds a row."""
    columns = ("p20_ms", "p50_ms", "p80_ms")
    lines = [(r["filters"], r["way"], *(f"{r[c]:.3f}" for c in columns)) for r in rows]
    return render(("filters", "way", "p20 ms", "p50 ms", "p80 ms"), lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.draws",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, value, what in (
        ("--vocabulary", 151936, "logits a row"),
        ("--rows", 8, "drawn at once"),
        ("--runs", 30, "of each way"),
    ):
        parser.add_argument(name, type=int, default=value, help=f"{what} (default: {value})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a result row a line")
    options = parser.parse_args(arguments)
    try:
        for name, least in (("vocabulary", 1), ("rows", 1), ("runs", 2)):
            if getattr(options, name) < least:
                raise SteerError(f"--{name} must be at least {least}, got {getattr(options, name)}")
        check_output(options.json, "rows")
        shape = (options.rows, options.vocabulary)
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * SPREAD
        rows = []
        with RowWriter(options.json) as writer:
            for filters in tqdm(SETTINGS, "bench.draws", unit="setting"):
                for row in measure(logits, filters, options.runs):
                    rows.append(row)
                    writer.write(row)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
