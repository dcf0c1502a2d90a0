"""The runs of ``python -m bench.pair``: routed, the large model alone, and the ideal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from bench.lanes.ideal import bound_seconds, ideal_seconds, walks
from bench.lanes.options import Setup
from bench.lanes.recorded import Recorded
from bench.lanes.replay import Replay
from bench.lanes.routed import Ran, run_jobs
from bench.lanes.schedule import Load, large_share
from bench.lanes.scripted_engine import ScriptedEngine
from bench.lanes.switches import OF_DRAWS, flipped, turned
from bench.lanes.ticktable import clipped, measure_table, powers, spread
from bench.rows import RowWriter
from bench.simulation.table import TableTimes
from bench.simulation.ticktimes import TickTimes
from engine import Engine
from engine._core import RowKind

Row = dict[str, Any]
FIRST = "latency"  # the lane policy that splits the time equally; ticks are measured under it
_DRAWN_AT = 0.8  # temperature


@dataclass(frozen=True)
class Cell:
    """One combination. ``share`` of the tokens is the large model's."""

    share: float
    concurrency: int


@dataclass(frozen=True)
class Contest:
    """The runs' settings.

    load: of one request; the number of requests follows from ``rounds``.
    rounds: requests per concurrent request.
    together: see :class:`bench.lanes.replay.Replay`.
    """

    setup: Setup
    load: Load
    rounds: int
    repeats: int
    together: float | None

    def table(self, engine: Engine, most: int) -> tuple[TableTimes, list[Row]]:
        """Tick times up to ``most`` sequences, and their rows."""
        load, rows = self.load, self.setup.config.max_tick_tokens
        longest = load.prompt + load.answer
        spans = {1, 4, load.step, load.step + 1, 4 * load.step, load.prompt, longest}
        return measure_table(
            ScriptedEngine(engine, self.setup.device),
            batches=powers(most),
            contexts=spread(load.prompt, longest, 3),
            spans=clipped(sorted(spans), min(rows, longest)),
            repeats=self.repeats,
        )

    def warm(self, engine: Engine, concurrency: int) -> None:
        """Run both models at this concurrency, untimed: kernels that spans compile, first touches.

        Graphs of all decodes were recorded when the engine was built.
        """
        load = replace(self.load, requests=concurrency, answer=2 * self.load.step)
        run_jobs(engine, self.setup.device, load.jobs(0.5), concurrency, seed=1)

    def run(self, engine: Engine, times: TickTimes, cell: Cell) -> Row:
        """One row, without the fields that need other rows."""
        jobs = replace(self.load, requests=self.rounds * cell.concurrency).jobs(cell.share)
        recorded = Recorded(engine)
        ran = run_jobs(engine, self.setup.device, jobs, cell.concurrency)
        ticks = walks(jobs, self.setup.config.max_tick_tokens)
        replayed = Replay(engine, times, self.together).run(jobs, cell.share, cell.concurrency)
        ideal = ideal_seconds(ticks, times) if cell.concurrency == 1 else None
        return {
            "bench": "pair",
            "kind": "run",
            "lanes": engine.config.lane_policy,
            **vars(cell),
            "scheduled_share": large_share(jobs),
            **self._figures(ran),
            **recorded.fields,
            "ideal_seconds": ideal,
            "over_ideal": ran.seconds / ideal if ideal else None,
            "replay_seconds": replayed["simulated_seconds"],
            "over_replay": ran.seconds / replayed["simulated_seconds"],
            "replay_ticks": [replayed["small_ticks"], replayed["large_ticks"]],
            "bound_seconds": bound_seconds(ticks, times, cell.concurrency),
            **self.fields,
        }

    def ablations(self, cell: Cell) -> Iterator[Row]:
        """The cell as it is, then with each switch of the engine the other way.

        Switches of how tokens are drawn are turned in runs that draw, with a baseline that draws.
        """
        switches = flipped(self.setup.config, self.setup.device.on_gpu, self.load.step)
        if self.setup.device.cards > 1:  # host memory serves one card's arena
            switches.pop("host_kv_tokens")
        of_draws = {name: switches.pop(name) for name in OF_DRAWS if name in switches}
        yield from self.ablated(cell, switches, 0.0)
        if of_draws:
            yield from self.ablated(cell, of_draws, _DRAWN_AT)

    def ablated(self, cell: Cell, switches: Row, temperature: float) -> Iterator[Row]:
        """The cell as it is, then with each of ``switches`` turned alone."""
        default: float | None = None
        load = replace(self.load, temperature=temperature)
        drawn = replace(self, load=replace(load, requests=self.rounds * cell.concurrency))
        for name, value in [("none", None), *switches.items()]:
            # For these sequences only: with more, some switches do not fit a card of 80 GB.
            changes = {"max_sequences": min(cell.concurrency, self.setup.config.max_sequences)}
            changes |= {} if name == "none" else turned(name, value)
            engine = self.setup.engine(cell.concurrency, **changes)
            drawn.warm(engine, cell.concurrency)
            recorded, jobs = Recorded(engine), drawn.load.jobs(cell.share)
            ran = run_jobs(engine, self.setup.device, jobs, cell.concurrency)
            default = default or ran.seconds
            del engine
            yield {
                "bench": "pair",
                "kind": "ablation",
                "switch": name,
                "value": value,
                "temperature": temperature,
                "lanes": self.setup.config.lane_policy,
                **vars(cell),
                **self._figures(ran),
                **recorded.fields,
                "over_default": ran.seconds / default,
                **self.fields,
            }

    @property
    def fields(self) -> Row:
        """The fields of every row."""
        load = {name: getattr(self.load, name) for name in ("prompt", "answer", "step", "runs")}
        return {**load, "seed": self.load.seed, "together": self.together, **self.setup.fields}

    def _figures(self, ran: Ran) -> Row:
        catch_up = ran.usage.rows[:, RowKind.catchup, 0].tolist()
        return {
            "seconds": ran.seconds,
            "requests": ran.requests,
            "tokens": ran.tokens,
            "tokens_per_second": ran.tokens / ran.seconds,
            "large_token_share": ran.large_tokens / ran.tokens,
            "ticks": list(ran.ticks),
            "catchup_rows": catch_up,
            "restored_rows": ran.usage.restored,
        }


def compare(row: Row, earlier: Sequence[Row]) -> Row:
    """A row with two more fields, None where the other row is missing.

    speedup: over the large model alone, at the same concurrency under the equal split.
    over_equal: throughput over that of the equal split in the same cell.
    """
    rate = {
        (r["concurrency"], r["share"]): r["tokens_per_second"]
        for r in (*earlier, row)
        if r["lanes"] == FIRST
    }
    alone = rate.get((row["concurrency"], 1.0))
    same = rate.get((row["concurrency"], row["share"]))
    own = row["tokens_per_second"]
    return {
        **row,
        "speedup": own / alone if alone else None,
        "over_equal": own / same if same else None,
    }


class Runs:
    """Runs a contest; rows are written as they come."""

    def __init__(self, contest: Contest, writer: RowWriter) -> None:
        self._contest = contest
        self._writer = writer
        self.ticks: list[Row] = []
        self.rows: list[Row] = []

    def grid(self, lanes: Sequence[str], cells: Sequence[Cell], alone_once: bool = False) -> None:
        """Run all cells under all lane policies; those that others are compared with come first.

        ``alone_once``: run cells that the large model writes alone under the first policy only.
        """
        contest = self._contest
        most = max(cell.concurrency for cell in cells)
        order = sorted(cells, key=lambda cell: cell.share < 1)
        with tqdm(desc="bench.pair", total=len(lanes) * len(cells)) as bar:
            for name in [FIRST, *(name for name in lanes if name != FIRST)]:
                engine = contest.setup.engine(most, lane_policy=name)
                if name == FIRST:
                    times, self.ticks = contest.table(engine, most)
                    for tick in self.ticks:
                        row = {"bench": "pair", "kind": "tick", **tick, **contest.setup.fields}
                        self._writer.write(row)
                if name in lanes:
                    least = name != FIRST and alone_once
                    self._cells(engine, times, [c for c in order if not least or c.share < 1], bar)
                del engine

    def _cells(self, engine: Engine, times: TickTimes, cells: Sequence[Cell], bar: Any) -> None:
        for concurrency in dict.fromkeys(cell.concurrency for cell in cells):
            self._contest.warm(engine, concurrency)
            for cell in cells:
                if cell.concurrency == concurrency:
                    row = compare(self._contest.run(engine, times, cell), self.rows)
                    self._writer.write(row)
                    self.rows.append(row)
                    bar.update()

    def ablations(self, cell: Cell) -> list[Row]:
        """Run a cell with every switch the other way, one at a time."""
        rows = []
        for row in tqdm(self._contest.ablations(cell), "ablations"):
            self._writer.write(row)
            rows.append(row)
        return rows
