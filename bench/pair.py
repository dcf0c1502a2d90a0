"""How much faster than the large model alone is routed generation, and how far from the ideal?

    python -m bench.pair                    a CUDA card: 1.5B and 32B with made-up weights
    python -m bench.pair --quick            a few seconds, to see that it works
    python -m bench.pair --share 0.1,1 --concurrency 8 --lanes latency,throughput --no-ablations
    python -m bench.pair --save-table times.csv
    python -m bench.simulate --table times.csv --memory 8

Requests are equal and their routing is forced: SHARE of the tokens is the large model's, in steps
of STEP tokens that are spread evenly, or with --runs N in runs of N steps on average at drawn
places. The small model reads every boundary, as for a policy with a signal; at share 1 the large
model writes alone and no model reads. The end of one request starts the next.

First the time of single ticks is measured, by sequences, context and rows: decodes as the engine's
lanes run them, planned ahead where a lane plans ahead. From these follow

  ideal    one request at a time: the sum of its ticks, one after the other and nothing lost:
           N_S T_S + sum over handoffs [T_L(n + 1) + (l - 1) T_L(1)] + the small model's re-reads
  replay   the same requests through the same scheduler, with a clock instead of models. Two lanes
           in flight at once share the bandwidth (--together); on a CPU they take turns. Lane
           policies that learn from the load start anew; the engine's have seen other cells
  bound    sum N_m T_m(C) / C + catch-up: no order of ticks can beat it

A ratio above 1 says how much longer the run took. If the equal split ("latency") is among the lane
policies, rows also have the speedup over the large model alone (share 1) and over the equal split.

Ablations turn every switch that the device looks at the other way, one at a time, in one
combination. Switches of how tokens are drawn are compared with a run that draws.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from bench.lanes.contest import FIRST, Cell, Contest, Runs
from bench.lanes.options import Defaults, Options, guarded
from bench.lanes.plots import line_plot
from bench.lanes.schedule import Load
from bench.lanes.shared import Shared
from bench.rows import RowWriter
from bench.simulation.grid import real
from bench.simulation.setting import check_lanes
from bench.simulation.table import COLUMNS
from bench.table import render
from engine.config import LANE_POLICIES
from engine.errors import SteerError
from engine.files import check_output

Row = dict[str, Any]
OWN: Defaults = {
    "share": {"quick": "0,0.4,1", "cpu": "0,0.1,0.2,0.4,1", "cuda": "0,0.1,0.2,0.4,1"},
    "concurrency": {"quick": "1,3", "cpu": "1,8", "cuda": "1,8,64"},
    "lanes": {
        "quick": "latency,throughput",
        "cpu": ",".join(LANE_POLICIES),
        "cuda": ",".join(LANE_POLICIES),
    },
    "prompt": {"quick": "16", "cpu": "64", "cuda": "128"},
    "answer": {"quick": "20", "cpu": "80", "cuda": "320"},
    "step": {"quick": "4", "cpu": "8", "cuda": "32"},
    "rounds": {"quick": "1", "cpu": "2", "cuda": "2"},
    "repeats": {"quick": "2", "cpu": "3", "cuda": "10"},
    "ablate_share": {"quick": "0.4", "cpu": "0.2", "cuda": "0.2"},
    "ablate_concurrency": {"quick": "3", "cpu": "8", "cuda": "8"},
}


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def show(rows: Sequence[Row]) -> str:
    """The table of the runs."""
    header = (
        "lanes",
        "at once",
        "share",
        "tokens/s",
        "seconds",
        "x large alone",
        "x equal split",
        "over ideal",
        "over replay",
        "over bound",
        "ticks",
        "replayed",
    )
    return render(
        header,
        [
            (
                r["lanes"],
                str(r["concurrency"]),
                f"{r['large_token_share']:.2f}",
                f"{r['tokens_per_second']:.1f}",
                f"{r['seconds']:.2f}",
                *(_text(r[name], ".2f") for name in ("speedup", "over_equal")),
                *(_text(r[name], ".3f") for name in ("over_ideal", "over_replay")),
                f"{r['seconds'] / r['bound_seconds']:.3f}",
                "/".join(map(str, r["ticks"])),
                "/".join(map(str, r["replay_ticks"])),
            )
            for r in rows
        ],
    )


def show_ablations(rows: Sequence[Row]) -> str:
    """The table of the ablations."""
    header = ("switch", "turned to", "temperature", "at once", "share", "seconds", "of the default")
    return render(
        header,
        [
            (
                r["switch"],
                "-" if r["value"] is None else str(r["value"]),
                f"{r['temperature']:g}",
                str(r["concurrency"]),
                f"{r['large_token_share']:.2f}",
                f"{r['seconds']:.2f}",
                f"{r['over_default']:.3f}",
            )
            for r in rows
        ],
    )


def plot(rows: Sequence[Row], options: Options, title: str) -> None:
    """Speedup over the large model alone against its share of tokens, and the ideal speedup."""
    alone = {r["concurrency"]: r for r in rows if r["lanes"] == FIRST and r["share"] == 1}
    ideals = [
        {
            **r,
            "lanes": "replay" if r["ideal_seconds"] is None else "ideal",
            "speedup": alone[r["concurrency"]]["seconds"]
            / (r["ideal_seconds"] or r["replay_seconds"]),
        }
        for r in rows
        if r["lanes"] == FIRST and r["concurrency"] in alone
    ]
    line_plot(
        [*rows, *ideals],
        options.plot,
        x=("large_token_share", "share of tokens that the large model writes"),
        y=("speedup", "times faster than the large model alone"),
        series=lambda r: f"{r['lanes']}, {r['concurrency']} at once",
        title=title,
    )


def write_times(path: Path, rows: Sequence[Row]) -> None:
    """Tick times in the format of ``python -m bench.simulate --table``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([row[name] for name in COLUMNS])


def command_line() -> Options:
    """The flags."""
    options = Options("pair", __doc__, OWN)
    options.add("--share", "share of tokens that the large model writes, 0 to 1")
    options.add("--concurrency", "requests at once")
    options.add("--lanes", "lane policies: " + ", ".join(LANE_POLICIES))
    options.add("--prompt", "tokens", "N")
    options.add("--answer", "tokens", "N")
    options.add("--step", "tokens", "N")
    options.add_number("--runs", "mean steps of a run of large steps; 0 spreads them evenly", "0")
    options.add("--rounds", "requests per concurrent request", "N")
    options.add_number("--seed", "seed of the schedules", "0")
    options.add_number(
        "--together",
        "work that two ticks in flight at once get done, compared with one alone, in the replay: "
        "1 shares one bandwidth, 2 is free, as with a card for each model; bench.overlap measures "
        "it; not on a CPU",
        "1",
    )
    options.add("--ablate-share", "share at which switches are turned", "X")
    options.add("--ablate-concurrency", "concurrency at which switches are turned", "N")
    options.add_switch("--no-ablations", "turn no switches")
    options.add_switch(
        "--alone-once", f"run share 1 under {FIRST} only: no lane policy has a choice there"
    )
    options.add_path("--save-table", "write the tick times, for bench.simulate --table", "FILE")
    return options


def _share(text: str) -> float:
    return real("--share", text, 0, 1)


def contest(options: Options, shared: Shared | None = None) -> Contest:
    """The runs asked for. SteerError on the first thing that is wrong."""
    load = Load(
        requests=1,
        prompt=options.whole("prompt", 2),
        answer=options.whole("answer", 2),
        step=options.whole("step", 2),
        runs=real("--runs", options.runs, 0, 1e6),
        seed=options.whole("seed", 0),
    )
    if 0 < load.runs < 1:
        raise SteerError(f"--runs: expected 0, or 1 and more, got {load.runs:g}")
    together = real("--together", options.together, 0.01, 2)
    rounds, repeats = options.whole("rounds"), options.whole("repeats", 2)
    setup = options.setup(shared)
    alongside = together if setup.device.lanes_together else None
    return Contest(setup, load, rounds, repeats, alongside)


def run(arguments: Sequence[str] | None, shared: Shared | None = None) -> int:
    """Measure ticks, run the grid and the ablations; write rows as they come."""
    options = command_line()
    options.parse(arguments)
    check_output(options.save_table, "--save-table")
    cells = [
        Cell(s, c) for c, s in product(options.each("concurrency"), options.each("share", _share))
    ]
    lanes = options.each("lanes", str)
    for name in lanes:
        check_lanes(name)
    turned = Cell(_share(options.ablate_share), options.whole("ablate_concurrency", 1, 256))
    asked = contest(options, shared)
    with RowWriter(options.json, options.append) as writer:
        runs = Runs(asked, writer)
        runs.grid(lanes, cells, options.alone_once)
        print(f"{asked.setup.head}\n\n{show(runs.rows)}")
        if options.save_table:
            write_times(options.save_table, runs.ticks)
        if options.plot:
            plot(runs.rows, options, asked.setup.head)
        if not options.no_ablations:
            print(f"\n{show_ablations(runs.ablations(turned))}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
