"""How long does the other model take until its first token, by how much it has to catch up?

    python -m bench.handoff                 a CUDA card: 1.5B and 32B with made-up weights
    python -m bench.handoff --quick         a few seconds, to see that it works
    python -m bench.handoff --backlog 100 --context 1024,4096 --eager 0,128,512

There is one sequence. The model that takes over knows CONTEXT tokens, the other wrote BACKLOG more.
The time runs from the boundary until the token is committed: planning, and all ticks that the
catch-up takes where it is longer than --max-tick-tokens. Both directions are measured: a handover
to the large model, and the small model's reading of what the large one wrote.

Lazily the other model begins at the boundary. Eagerly (--eager N) it reads along once it lags N
tokens behind, and at the boundary about N tokens are left at most; in exchange it runs ticks while
the other one writes, which are counted ("read along", rows). Each row also has the time of one
decode tick of the same model at the same context, as the engine runs it, planned ahead or not: the
least that a handoff can take.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from tqdm import tqdm

from bench.lanes.options import Defaults, Options, Setup, guarded
from bench.lanes.plots import line_plot
from bench.lanes.recorded import Recorded
from bench.lanes.scripted_engine import NoRoomError, ScriptedEngine
from bench.lanes.shared import Shared
from bench.rows import RowWriter
from bench.simulation.grid import whole
from bench.stats import percentiles
from bench.table import render
from engine.config import ROLES

Row = dict[str, Any]
OWN: Defaults = {
    "backlog": {
        "quick": "16,128",
        "cpu": "16,32,64,100,256,512,1024,2048",
        "cuda": "16,32,64,100,256,512,1024,2048,4096,8192",
    },
    "context": {"quick": "64", "cpu": "512", "cuda": "1024"},
    "eager": {"quick": "0,32", "cpu": "0,128", "cuda": "0,128,512"},
}
_WARM = 1


class Bench:
    """Every handoff of one engine; an engine reads along in one way only."""

    def __init__(self, setup: Setup, repeats: int) -> None:
        self._setup = setup
        self._repeats = repeats

    def rows(self, eager: int, contexts: list[int], backlogs: list[int]) -> Iterator[Row]:
        """Rows with an engine that reads along after ``eager`` tokens; 0: not at all."""
        engine = self._setup.engine(eager_backlog=eager, read_along=eager)
        scripted = ScriptedEngine(engine, self._setup.device)
        for to in (1, 0):
            for context in contexts:
                for backlog in backlogs:
                    try:
                        yield self._row(scripted, to, context, backlog, eager)
                    except NoRoomError as error:
                        scripted.clear()
                        cell = f"to {ROLES[to]}, {context} + {backlog}"
                        tqdm.write(f"skipped: {cell}: {error}", sys.stderr)

    def _row(
        self, scripted: ScriptedEngine, to: int, context: int, backlog: int, eager: int
    ) -> Row:
        recorded = Recorded(scripted.engine)
        runs = [scripted.handoff(to, context, backlog) for _ in range(self._repeats + _WARM)]
        runs = runs[_WARM:]
        p20, p50, p80 = percentiles([sum(tick.seconds for tick in run) for run in runs])
        at = round(runs[0][-1].context)
        decode = median(t.seconds for t in scripted.decode_as_engine(to, 1, at, self._repeats))
        left = sum(tick.rows for tick in runs[0])
        return {
            "bench": "handoff",
            "to": ROLES[to],
            "eager": eager,
            "context": context,
            "backlog": backlog,
            "rows_at_boundary": left,
            "rows_read_along": max(0, backlog + 1 - left),
            "ticks": len(runs[0]),
            "p20_ms": 1e3 * p20,
            "p50_ms": 1e3 * p50,
            "p80_ms": 1e3 * p80,
            "decode_ms": 1e3 * decode,
            "decode_ahead": scripted.plans_ahead(to),
            "over_decode": p50 / decode,
            **recorded.fields,
            **self._setup.fields,
        }


def show(rows: Sequence[Row]) -> str:
    """The table."""
    header = (
        "to",
        "reads along",
        "context",
        "backlog",
        "rows left",
        "ticks",
        "p20 ms",
        "p50 ms",
        "p80 ms",
        "one decode ms",
        "of a decode",
    )
    return render(
        header,
        [
            (
                r["to"],
                f"from {r['eager']}" if r["eager"] else "never",
                *(str(r[name]) for name in ("context", "backlog", "rows_at_boundary", "ticks")),
                *(f"{r[f'{p}_ms']:.3f}" for p in ("p20", "p50", "p80", "decode")),
                f"{r['over_decode']:.2f}",
            )
            for r in rows
        ],
    )


def plot(rows: Sequence[Row], options: Options, title: str) -> None:
    """Time to the first token against the number of tokens to catch up."""
    line_plot(
        rows,
        options.plot,
        x=("backlog", "tokens that the other model has written"),
        y=("p50_ms", "milliseconds from the boundary to the first token, median"),
        series=lambda r: (
            f"to {r['to']} at {r['context']}, "
            + (f"reads along from {r['eager']}" if r["eager"] else "lazy")
        ),
        title=title,
        log="xy",
    )


def command_line() -> Options:
    """The flags."""
    options = Options("handoff", __doc__, OWN)
    options.add("--backlog", "tokens to catch up")
    options.add("--context", "tokens that the model knows already")
    options.add("--eager", "lag in tokens from which it reads along; 0: never, the lazy handoff")
    return options


def run(arguments: Sequence[str] | None, shared: Shared | None = None) -> int:
    """Measure, write rows, print the table."""
    options = command_line()
    options.parse(arguments)
    backlogs, contexts = options.each("backlog"), options.each("context")
    eager = options.each("eager", lambda text: whole("--eager", text, 0))
    repeats = options.whole("repeats", 2)
    setup = options.setup(shared)
    bench, rows = Bench(setup, repeats), []
    count = 2 * len(eager) * len(contexts) * len(backlogs)
    with (
        RowWriter(options.json, options.append) as writer,
        tqdm(desc="bench.handoff", total=count) as bar,
    ):
        for each in eager:
            for row in bench.rows(each, contexts, backlogs):
                writer.write(row)
                rows.append(row)
                bar.update()
    print(f"{setup.head}\n\n{show(rows)}")
    if options.plot:
        plot(rows, options, setup.head)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
