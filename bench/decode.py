"""How close does each model alone come to the memory's bandwidth while it decodes?

    python -m bench.decode                  a CUDA card: 1.5B and 32B with made-up weights;
                                            a CPU: a pair that was scaled down
    python -m bench.decode --quick          a few seconds, to see that it works
    python -m bench.decode --pair qwen-1.5b/qwen-7b --batch 1,4,16 --context 1024
    python -m bench.decode --load-format safetensors --small PATH --large PATH

A tick gives each of BATCH sequences one token at CONTEXT keys: it is planned, run and committed by
the engine's own lane, ahead: planned and launched while the tick before it runs. Its time is the
wall clock between two commits. "in turn" is the time of a tick that is planned only when the one
before it is over, as on a lane that does not plan ahead: the device then waits for the host.

The bytes that a tick must move are the weights, once, and the keys and values that it reads and
writes. The time that they would take at the bandwidth measured in the same run, as a copy and as a
read, over the time of the tick is the fraction reached.

In the same run: transformers with a static cache, where it is installed, and gpt-fast, where
--gpt-fast names a checkout of it. Both have random weights of the same shapes; on a GPU their step
is compiled into graphs, anew for each batch and context. If one fails, its row says why. Nothing is
downloaded. Cells that do not fit are skipped, and named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from statistics import fmean, median
from typing import Any

from tqdm import tqdm

from bench.lanes.options import Defaults, Options, Setup, guarded
from bench.lanes.peers import Peer, check_gpt_fast, peers_of, said, time_step
from bench.lanes.plots import line_plot
from bench.lanes.recorded import Recorded
from bench.lanes.scripted_engine import NoRoomError, ScriptedEngine
from bench.lanes.shared import Shared
from bench.lanes.traffic import tick_bytes
from bench.rows import RowWriter, versions
from bench.stats import percentiles
from bench.table import render
from engine._core import LARGE, SMALL
from engine.config import ROLES, ModelConfig
from engine.device.devices import DTYPES

Row = dict[str, Any]
Cell = tuple[int, int]
OWN: Defaults = {
    "batch": {"quick": "1,4", "cpu": "1,8,64", "cuda": "1,8,64"},
    "context": {"quick": "64,256", "cpu": "512,4096,16384", "cuda": "512,4096,16384"},
}
_FIGURES = ("p20_ms", "p50_ms", "p80_ms", "tokens_per_second", "bytes", "of_copy", "of_read")
_NOT_OF_PEERS: Row = dict.fromkeys(
    ("busy_share", "in_turn_p50_ms", "engine_plans_ahead", "captures", "misses")
)
_KEYS = 2**20  # most keys of a CPU's cell: its memory is not its bandwidth


class Bench:
    """Every cell of both models, for the engine and its peers."""

    def __init__(self, setup: Setup, cells: Sequence[Cell], repeats: int) -> None:
        self.rows: list[Row] = []
        self._setup = setup
        self._cells = cells
        self._repeats = repeats

    def engine_rows(self) -> Iterator[Row]:
        """Rows of the engine."""
        engine = self._setup.engine(max(batch for batch, _ in self._cells))
        scripted = ScriptedEngine(engine, self._setup.device)
        for model, (batch, context) in product((SMALL, LARGE), self._cells):
            recorded = Recorded(engine)
            try:
                ticks = scripted.decode_ahead(model, batch, context, self._repeats)
                in_turn = scripted.decode(model, batch, context, self._repeats)
            except NoRoomError as error:
                scripted.clear()
                tqdm.write(f"skipped: {ROLES[model]}, {batch} x {context}: {error}", sys.stderr)
                continue
            keys = batch * fmean(tick.context for tick in ticks)
            busy = None
            if batch == 1 and self._setup.device.on_gpu:
                busy = scripted.busy_share(model, context, self._repeats)
            row = self._row(
                model, engine.shapes[model], (batch, context), keys, [t.seconds for t in ticks]
            )
            steer = {"provider": "steer", "provider_version": versions()["steer-engine"]}
            own = {
                "compiled": None,
                "busy_share": busy,
                "in_turn_p50_ms": 1e3 * median(tick.seconds for tick in in_turn),
                "engine_plans_ahead": scripted.plans_ahead(model),
                **recorded.fields,
            }
            yield {**row, **steer, **own}

    def peer_rows(self, shapes: tuple[ModelConfig, ModelConfig], gpt_fast: Any) -> Iterator[Row]:
        """Rows of the other implementations that are installed, one model in memory at a time.

        One that fails gives a row without times that says why; the next one goes on.
        """
        device, dtype = self._setup.device, DTYPES[self._setup.dtype]
        for model, shape in enumerate(shapes):
            cells = [cell for cell in self._cells if self._fits(shape, *cell)]
            for name, build in peers_of(shape, dtype, device, gpt_fast).items():
                try:
                    peer = build()
                except Exception as error:
                    for cell in cells:
                        yield self._failed(model, cell, name, None, error)
                    continue
                for cell in cells:
                    yield self._peer_row(model, shape, peer, cell)
                del peer

    def _peer_row(self, model: int, shape: ModelConfig, peer: Peer, cell: Cell) -> Row:
        batch, context = cell
        try:
            step = peer.step(batch, context)
            seconds = time_step(step, self._setup.device, self._repeats)
        except Exception as error:
            return self._failed(model, cell, peer.name, peer, error)
        row = self._row(model, shape, cell, batch * (context + 1), seconds)
        named = {"provider": peer.name, "provider_version": peer.version}
        return {**row, **named, "compiled": peer.compiled, **_NOT_OF_PEERS}

    def _failed(
        self, model: int, cell: Cell, name: str, peer: Peer | None, error: Exception
    ) -> Row:
        """A row of a peer that failed."""
        reason = said(error)
        place = f"{name}, {ROLES[model]}, {cell[0]} x {cell[1]}"
        tqdm.write(f"failed: {place}: {reason}", sys.stderr)
        return {
            **dict.fromkeys(_FIGURES),
            "bench": "decode",
            "model": ROLES[model],
            "batch": cell[0],
            "context": cell[1],
            "error": reason,
            **self._setup.fields,
            "provider": name,
            "provider_version": peer.version if peer else None,
            "compiled": peer.compiled if peer else None,
            **_NOT_OF_PEERS,
        }

    def _fits(self, shape: ModelConfig, batch: int, context: int) -> bool:
        """Whether a cell fits the arena's bytes: a peer gets no more memory than the engine."""
        size = self._setup.config.arena_tokens * self._setup.shapes[LARGE].kv_bytes_per_token(1)
        return batch * (context + 1) * shape.kv_bytes_per_token(1) <= size

    def _row(
        self, model: int, shape: ModelConfig, cell: Cell, keys: float, seconds: list[float]
    ) -> Row:
        p20, p50, p80 = percentiles(seconds)
        batch, context = cell
        moved = tick_bytes(shape, self._setup.element_bytes, keys, batch)
        return {
            "bench": "decode",
            "model": ROLES[model],
            "batch": batch,
            "context": context,
            "error": None,
            "p20_ms": 1e3 * p20,
            "p50_ms": 1e3 * p50,
            "p80_ms": 1e3 * p80,
            "tokens_per_second": batch / p50,
            "bytes": moved,
            "of_copy": moved / (p50 * self._setup.bandwidth.copy),
            "of_read": moved / (p50 * self._setup.bandwidth.read),
            **self._setup.fields,
        }


def show(rows: Sequence[Row]) -> str:
    """The table."""
    header = (
        "model",
        "provider",
        "batch",
        "context",
        "p20 ms",
        "p50 ms",
        "p80 ms",
        "tokens/s",
        "of copy",
        "of read",
        "in turn ms",
        "busy",
    )
    forms = {
        "p20_ms": ".3f",
        "p50_ms": ".3f",
        "p80_ms": ".3f",
        "tokens_per_second": ".1f",
        "of_copy": ".1%",
        "of_read": ".1%",
        "in_turn_p50_ms": ".3f",
        "busy_share": ".1%",
    }
    return render(
        header,
        [
            (
                r["model"],
                f"{r['provider']} {r['provider_version'] or ''}".strip(),
                str(r["batch"]),
                str(r["context"]),
                *("-" if r[name] is None else format(r[name], f) for name, f in forms.items()),
            )
            for r in rows
        ],
    )


def plot(rows: Sequence[Row], options: Options, title: str) -> None:
    """Fraction of the bandwidth against the context."""
    line_plot(
        rows,
        options.plot,
        x=("context", "keys that each sequence sees"),
        y=("of_copy", "bytes moved, fraction of the copy bandwidth"),
        series=lambda r: f"{r['model']}, {r['provider']}, {r['batch']} at once",
        title=title,
        log="x",
    )


def command_line() -> Options:
    """The flags."""
    options = Options("decode", __doc__, OWN)
    options.add("--batch", "sequences in a tick")
    options.add("--context", "keys that each of them sees")
    options.add_path("--gpt-fast", "a checkout of gpt-fast, to measure beside it", "DIR")
    options.add_switch("--no-peers", "measure the engine alone")
    return options


def run(arguments: Sequence[str] | None, shared: Shared | None = None) -> int:
    """Measure, write rows, print the table."""
    options = command_line()
    options.parse(arguments)
    cells = list(product(options.each("batch"), options.each("context")))
    repeats = options.whole("repeats", 2)
    check_gpt_fast(options.gpt_fast)
    setup = options.setup(shared)
    if not setup.device.on_gpu:
        cells = [cell for cell in cells if cell[0] * cell[1] <= _KEYS]
    bench = Bench(setup, cells, repeats)
    with (
        RowWriter(options.json, options.append) as writer,
        tqdm(desc="bench.decode", unit=" cells") as bar,
    ):

        def keep(rows: Iterator[Row]) -> None:
            for row in rows:
                writer.write(row)
                bench.rows.append(row)
                bar.update()

        keep(bench.engine_rows())
        if not options.no_peers:
            keep(bench.peer_rows(setup.shapes, options.gpt_fast))
    print(f"{setup.head}\n\n{show(bench.rows)}")
    if options.plot:
        plot(bench.rows, options, setup.head)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    return guarded(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
