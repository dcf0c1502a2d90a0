"""Measured tick times: a CSV file on a grid of batch, context and span for each model.

    model,batch,context,span,us      small or large, sequences in the tick, keys that a sequence
    large,64,1024,1,31250.5          sees and rows that it computes, on average, microseconds

Inside the grid times are interpolated linearly in each direction. Below the grid they stay those of
its edge; above it the last two points are prolonged, but no time falls below the table's least.
"""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from itertools import product
from pathlib import Path

from bench.simulation.ticktimes import TickTimes
from engine.config import ROLES
from engine.errors import SteerError
from engine.files import read_text

AXES = ("batch", "context", "span")
COLUMNS = ("model", *AXES, "us")
Point = tuple[float, float, float]

# Where a roofline is sampled for a table: finer where it bends, at the rows of a tick.
_FINE = [step * 2.0**k for k in range(12) for step in (1, 1.5)]
_SAMPLED = (
    [n for n in _FINE if n != 1.5 and n <= 256],
    [4.0**k for k in range(1, 8)] + [32768.0],
    [n for n in _FINE if n <= 2048],
)


class _Grid:
    """Times of one model in microseconds, as nested lists by batch, context and span."""

    def __init__(self, times: dict[Point, float], where: str) -> None:
        self._axes = [sorted({point[i] for point in times}) for i in range(3)]
        for point in product(*self._axes):
            if point not in times:
                place = ", ".join(f"{n} {v:g}" for n, v in zip(AXES, point, strict=True))
                raise SteerError(f"{where}, {place}: missing; expected a full grid")
        batches, contexts, spans = self._axes
        self._times = [[[times[b, c, s] for s in spans] for c in contexts] for b in batches]
        self._least = min(times.values())

    def at(self, batch: float, context: float, span: float) -> float:
        b, next_b, share_b = _place(self._axes[0], batch)
        c, next_c, share_c = _place(self._axes[1], context)
        s, next_s, share_s = _place(self._axes[2], span)

        def along_span(line: list[float]) -> float:
            return line[s] + share_s * (line[next_s] - line[s])

        def along_context(plane: list[list[float]]) -> float:
            low = along_span(plane[c])
            return low + share_c * (along_span(plane[next_c]) - low)

        low = along_context(self._times[b])
        time = low + share_b * (along_context(self._times[next_b]) - low)
        return max(time, self._least)


def _place(axis: list[float], value: float) -> tuple[int, int, float]:
    """The two points to interpolate between, and how far; above 1 past the last point."""
    if value <= axis[0] or len(axis) == 1:
        return 0, 0, 0.0
    low = min(bisect_right(axis, value), len(axis) - 1) - 1
    return low, low + 1, (value - axis[low]) / (axis[low + 1] - axis[low])


class TableTimes:
    """Tick times from a table; see :class:`bench.simulation.ticktimes.TickTimes`."""

    def __init__(self, times: list[dict[Point, float]], where: str) -> None:
        """``times``: microseconds by model and (batch, context, span)."""
        for role, points in zip(ROLES, times, strict=True):
            if not points:
                raise SteerError(f"{where}: no row for model {role}; both models need theirs")
        self._grids = [
            _Grid(points, f"{where}: model {role}")
            for role, points in zip(ROLES, times, strict=True)
        ]

    def seconds(self, model: int, batch: float, context: float, span: float) -> float:
        """Seconds of a tick that has the card to itself."""
        return self._grids[model].at(batch, context, span) / 1e6


def read_table(path: Path) -> TableTimes:
    """Read a CSV file with the header ``model,batch,context,span,us``; other columns are ignored.

    SteerError that names file and line for the first thing that is wrong.
    """
    text = io.StringIO(read_text(path, "table"), newline="")
    reader = csv.DictReader(text, skipinitialspace=True)
    try:
        return _collect(reader, path)
    except csv.Error as error:
        raise SteerError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from None


def _collect(reader: csv.DictReader[str], path: Path) -> TableTimes:
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise SteerError(
            f"{path}: no column {', '.join(missing)}; expected the header {','.join(COLUMNS)}"
        )
    times: list[dict[Point, float]] = [{}, {}]
    for row in reader:
        where = f"{path}:{reader.line_num}"
        if reader.restkey in row:
            raise SteerError(f"{where}: more fields than the header names; is a comma too many?")
        if row["model"] not in ROLES:
            raise SteerError(f"{where}: model must be {' or '.join(ROLES)}, found {row['model']!r}")
        points = times[ROLES.index(row["model"])]
        batch, context, span, us = (_positive(row[name], name, where) for name in COLUMNS[1:])
        point = batch, context, span
        if point in points:
            raise SteerError(f"{where}: a second time for the same model, batch, context and span")
        points[point] = us
    return TableTimes(times, str(path))


def _positive(text: str | None, name: str, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise SteerError(f"{where}: {name} must be a number above 0, found {text!r}")
    return value


def write_table(path: Path, times: TickTimes) -> None:
    """Sample tick times on a grid and write them as a table.

    Where a roofline bends from bytes to FLOPs the table lies a little above it.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for model, role in enumerate(ROLES):
            for point in product(*_SAMPLED):
                us = 1e6 * times.seconds(model, *point)
                writer.writerow([role, *(f"{value:g}" for value in point), f"{us:.3f}"])
