"""What would two models do on one card? The real scheduler, with modelled tick times.

python -m bench.simulate                                  1.5B and 32B on an H100, a grid
python -m bench.simulate --weights fp8 --rate 0.5,1,2,4 --handoff 0.1 --plot out/rates.png
python -m bench.simulate --card a100 --weights fp8 --concurrency 64 --memory 8
python -m bench.simulate --table measured.csv             your own tick times
python -m bench.simulate --handoff 0.1,1 --beside qwen3-30b-a3b    another model to run instead

The C++ scheduler plans, preempts and lends memory as in the engine, but no model runs: a plan takes
the time of a roofline (weights once a tick, keys and values as read and written, FLOPs at the
card's peak, over an efficiency, plus an overhead) or of a table that you measured. The two lanes
have clocks of their own and share the memory's bandwidth while both are in flight. Texts are made
up: their lengths, the ends of their steps and the boundaries that go to the large model are drawn
at random, the same for every combination of a grid.

So the figures are simulated, not measured: they show how policies compare, the effects of load,
memory and handoffs, and where it pays to measure. Every row says so ("simulated": true).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from bench.rows import RowWriter
from bench.simulation.beside import compare, load
from bench.simulation.grid import Grid
from bench.simulation.options import build_parser
from bench.simulation.plots import grid_plot
from bench.simulation.run import Simulation
from bench.simulation.table import write_table
from bench.table import render
from engine.config import ROLES
from engine.errors import SteerError

INTERRUPTED = 130
_NOTES = """\
ttft: to the first token; tpot: for each further one; latency: to the end; of finished requests.
wait: from a decision for the large model to its first token. All four: median / 99th percentile.
busy: share of time with a tick in flight; batch: sequences in a tick; slabs: share of the arena,
over time. All three: small / large. lent: slabs that went from one model to the other.
suspended: requests that stopped as others needed their keys and values. again: rows that were
computed again, for 100 that gave a token."""
_BESIDE = """\
Simulated, too, each with a card to itself and what its weights leave there. Speed only: how good
the answers are is not known here, and other models have other tokens. Experts are taken to be
chosen evenly and at random, so that more of them are read than with real routers."""


def _pair(row: dict[str, Any], name: str, digits: int, unit: float = 1.0) -> str:
    values = [row[f"{name}_p{p}"] for p in (50, 99)]
    return " / ".join("-" if v is None else f"{v * unit:.{digits}f}" for v in values)


def _lanes(row: dict[str, Any], name: str, form: str, over: float = 1.0) -> str:
    return " / ".join(format(row[f"{role}_{name}"] / over, form) for role in ROLES)


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The table of a grid."""
    header = (
        "lanes",
        "load",
        "handoff",
        "tokens/s",
        "requests/s",
        "ttft s",
        "tpot ms",
        "latency s",
        "wait ms",
        "busy",
        "batch",
        "slabs",
        "lent",
        "suspended",
        "again",
    )
    return render(
        header,
        [
            (
                r["lanes"],
                load(r),
                f"{r['handoff']:g}",
                f"{r['tokens_per_second']:.1f}",
                f"{r['requests_per_second']:.3f}",
                _pair(r, "ttft", 2),
                _pair(r, "tpot", 1, 1e3),
                _pair(r, "latency", 1),
                _pair(r, "handoff_wait", 0, 1e3),
                _lanes(r, "busy", ".0%"),
                _lanes(r, "mean_batch", ".1f"),
                _lanes(r, "slabs_mean", ".0%", r["slabs"]),
                str(r["lent_slabs"]),
                str(r["suspended"]),
                f"{r['recomputed_per_sampled']:.2%}",
            )
            for r in rows
        ],
    )


def head(fields: dict[str, Any]) -> str:
    """The assumptions, in two lines."""
    f = fields
    times = f"tick times of {f['times']}"
    if f["times"] == "roofline":
        times = f"roofline of {f['card']} with {f['weights']} weights at {f['efficiency']:g}, "
        times += f"{f['overhead_us']:g} us overhead"
    return (
        f"Simulated, not measured: {f['pair']}, {times}\n"
        f"{f['requests']} requests of about {f['prompt']:g} + {f['answer']:g} tokens in steps of "
        f"{f['step']:g}, an arena of {f['memory_gib']:.2f} GiB"
    )


def speed(rows: Sequence[dict[str, Any]]) -> str:
    """The speed of the simulation."""
    ticks = sum(r["ticks"] for r in rows)
    simulated, wall = (sum(r[f"{k}_seconds"] for r in rows) for k in ("simulated", "wall"))
    return (
        f"{ticks} ticks, {simulated:.1f} simulated seconds in {wall:.2f} seconds: "
        f"{1e6 * wall / ticks:.1f} us a tick"
    )


def run(grid: Grid, options: argparse.Namespace) -> int:
    """Simulate the grid; rows appear in the file as soon as they are done."""
    rows: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    history: list[tuple[float, int, int]] = []
    code = 0
    with RowWriter(options.json) as writer:
        try:
            for case in tqdm(grid.cases, "bench.simulate"):
                simulation = Simulation(grid.setting, grid.workload, case)
                rows.append({"simulated": True, **vars(case), **grid.fields, **simulation.run()})
                history = simulation.arena.history
                writer.write(rows[-1])
            for model in tqdm(grid.beside, "beside", disable=not grid.beside):
                for row in model.rows():
                    alone.append(row)
                    writer.write(row)
        except KeyboardInterrupt:
            print("interrupted: these combinations were finished", file=sys.stderr)
            code = INTERRUPTED
    if rows:
        print(f"{head(grid.fields)}\n\n{show(rows)}\n\n{_NOTES}\n{speed(rows)}")
    if alone:
        print(f"\n{compare([*rows, *alone])}\n\n{_BESIDE}")
    if rows and options.plot:
        grid_plot(rows, history, options.plot, head(grid.fields))
    return code


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    try:
        options = build_parser(__doc__).parse_args(arguments)
        grid = Grid.of(options)
        if options.save_table:
            write_table(options.save_table, grid.setting.times)
        return run(grid, options)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
