"""What share of one memory's bandwidth do both lanes reach, and how much do they slow each other?

    python -m bench.overlap                 a CUDA card: 1.5B and 32B with made-up weights
    python -m bench.overlap --quick         a few seconds, to see that it works
    python -m bench.overlap --requests 2,16,64 --context 512

Half of the requests are written by the small model, half by the large one, all at once, and no
sequence is handed over. Once all decode, a window is timed in which the large model gives each of
its requests --repeats tokens. Then each half runs alone, on the same engine.

The report gives the bytes that both lanes moved, over those that the bandwidth measured in the same
run would have moved in that time, and each lane's inflation: time between two tokens of a request,
together over alone. On a CPU the engine runs the lanes in turn: there the small lane waits for a
large tick after each of its own, and no bandwidth is gained.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

from tqdm import tqdm

from bench.lanes.options import Defaults, Options, Setup, guarded
from bench.lanes.plots import line_plot
from bench.lanes.recorded import Recorded
from bench.lanes.shared import Shared
from bench.lanes.window import Window, measure
from bench.rows import RowWriter
from bench.simulation.grid import whole
from bench.simulation.setting import check_lanes
from bench.table import render
from engine import Engine
from engine.config import LANE_POLICIES, ROLES
from engine.errors import SteerError

Row = dict[str, Any]
OWN: Defaults = {
    "requests": {"quick": "2", "cpu": "2,8,16", "cuda": "2,8,16,64"},
    "context": {"quick": "64", "cpu": "256", "cuda": "256"},
    "lanes": {"quick": "latency", "cpu": "latency", "cuda": "latency"},
}


def measure_row(setup: Setup, engine: Engine, requests: int, context: int, tokens: int) -> Row:
    """A row: both halves together, and each alone."""
    half = requests // 2

    def window(small: int, large: int) -> Window:
        models = [0] * small + [1] * large
        return measure(engine, setup.device, models, context, tokens, setup.element_bytes)

    recorded = Recorded(engine)
    alone = window(half, 0), window(0, half)
    together = window(half, half)
    row: Row = {
        "bench": "overlap",
        "lanes": engine.config.lane_policy,
        "requests": requests,
        "context": context,
        "seconds": together.seconds,
        "bytes": together.bytes,
        "of_copy": together.of(setup.bandwidth.copy),
        "of_read": together.of(setup.bandwidth.read),
    }
    for model, role in enumerate(ROLES):
        first, then = alone[model].token_ms(model), together.token_ms(model)
        row |= {
            f"{role}_ticks": together.ticks[model],
            f"{role}_alone_ms": first,
            f"{role}_together_ms": then,
            f"{role}_inflation": inflation(first, then),
            f"{role}_alone_of_copy": alone[model].of(setup.bandwidth.copy),
        }
    return {**row, **recorded.fields, **setup.fields}


def inflation(alone: float | None, together: float | None) -> float | None:
    """Time together over time alone; None if the lane never moved."""
    return together / alone if alone and together else None


def show(rows: Sequence[Row]) -> str:
    """The table."""
    header = (
        "lanes",
        "requests",
        "context",
        "of copy",
        "of read",
        "small alone ms",
        "inflation",
        "large alone ms",
        "inflation",
        "small alone of copy",
        "large alone of copy",
    )

    def lane(row: Row, role: str) -> list[str]:
        values = row[f"{role}_alone_ms"], row[f"{role}_inflation"]
        return ["-" if v is None else f"{v:.{d}f}" for v, d in zip(values, (3, 2), strict=True)]

    return render(
        header,
        [
            (
                r["lanes"],
                str(r["requests"]),
                str(r["context"]),
                *(f"{r[name]:.1%}" for name in ("of_copy", "of_read")),
                *lane(r, "small"),
                *lane(r, "large"),
                *(f"{r[f'{role}_alone_of_copy']:.1%}" for role in ROLES),
            )
            for r in rows
        ],
    )


def plot(rows: Sequence[Row], options: Options, title: str) -> None:
    """Fraction of the bandwidth against the number of requests."""
    line_plot(
        rows,
        options.plot,
        x=("requests", "requests, half of them on each model"),
        y=("of_copy", "bytes of both lanes, fraction of the copy bandwidth"),
        series=lambda r: f"{r['lanes']}, context {r['context']}",
        title=title,
        log="x",
    )


def command_line() -> Options:
    """The flags."""
    options = Options("overlap", __doc__, OWN)
    options.add("--requests", "at once, half of them on each model: even numbers")
    options.add("--context", "tokens of each prompt")
    options.add("--lanes", "lane policies: " + ", ".join(LANE_POLICIES))
    return options


def _even(text: str) -> int:
    count = whole("--requests", text, 2, 256)
    if count % 2:
        raise SteerError(f"--requests: half of them go to each model: {count} is odd")
    return count


def run(arguments: Sequence[str] | None, shared: Shared | None = None) -> int:
    """Measure, write rows, print the table."""
    options = command_line()
    options.parse(arguments)
    cells = list(product(options.each("requests", _even), options.each("context")))
    tokens = options.whole("repeats", 2)
    lanes = options.each("lanes", str)
    for name in lanes:
        check_lanes(name)
    setup = options.setup(shared)
    most = max(requests for requests, _ in cells) // 2
    rows: list[Row] = []
    count = len(lanes) * len(cells)
    with (
        RowWriter(options.json, options.append) as writer,
        tqdm(desc="bench.overlap", total=count) as bar,
    ):
        for name in lanes:
            engine = setup.engine(most, lane_policy=name)
            for requests, context in cells:
                rows.append(measure_row(setup, engine, requests, context, tokens))
                writer.write(rows[-1])
                bar.update()
            del engine
    print(f"{setup.head}\n\n{show(rows)}")
    if options.plot:
        plot(rows, options, setup.head)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
