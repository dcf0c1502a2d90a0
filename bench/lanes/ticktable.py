"""Tick times of this engine on this device, as a table for the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from statistics import median
from typing import Any

from tqdm import tqdm

from bench.lanes.recorded import Recorded
from bench.lanes.scripted_engine import ScriptedEngine
from bench.simulation.table import Point, TableTimes
from engine._core import LARGE, SMALL
from engine.config import ROLES
from engine.errors import SteerError

_MICRO = 1e6


def powers(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself."""
    return [*(2**k for k in range((most - 1).bit_length())), most]


def measure_table(
    scripted: ScriptedEngine,
    batches: Sequence[int],
    contexts: Sequence[int],
    spans: Sequence[int],
    repeats: int,
) -> tuple[TableTimes, list[dict[str, Any]]]:
    """Median times of both models on the full grid, and its rows.

    Decodes are timed as the engine's lanes run them, ahead where they plan ahead. Longer spans are
    timed from plan to commit: they begin after a decision, with nothing in flight.

    A batch of spans that is too large for one tick gets the time of the largest one that fits,
    scaled by rows: no such tick is ever planned, but the table has to be full. Its rows say so.
    """
    times: list[dict[Point, float]] = [{}, {}]
    rows = []
    cells = list(product((SMALL, LARGE), spans, contexts, batches))
    for model, span, context, batch in tqdm(cells, "tick times"):
        held = max((b for b in batches if b * span <= scripted.most_rows), default=0)
        if not held:
            raise SteerError(f"a span of {span} rows exceeds a tick: raise --max-tick-tokens")
        extended, recorded = batch > held, Recorded(scripted.engine)
        if extended:
            us = times[model][held, context, span] * batch / held
        else:
            us = _MICRO * _time(scripted, model, batch, context, span, repeats)
        times[model][batch, context, span] = us
        place = {"model": ROLES[model], "batch": batch, "context": context, "span": span}
        ahead = span == 1 and scripted.plans_ahead(model)
        rows.append({**place, "us": us, "extended": extended, "ahead": ahead, **recorded.fields})
    return TableTimes(times, "measured in this run"), rows


def _time(
    scripted: ScriptedEngine, model: int, batch: int, context: int, span: int, repeats: int
) -> float:
    if span == 1:
        ticks = scripted.decode_as_engine(model, batch, context, repeats)
    else:
        ticks = scripted.catch_up(model, batch, context, span, repeats)
    return median(tick.seconds for tick in ticks)


def spread(low: int, high: int, count: int) -> list[int]:
    """``count`` whole numbers from ``low`` to ``high``, evenly in ratio, each once."""
    ratio = (high / low) ** (1 / max(1, count - 1))
    return sorted({low, high, *(round(low * ratio**k) for k in range(1, count - 1))})


def clipped(values: Iterable[int], most: int) -> list[int]:
    """The values up to ``most``."""
    return [value for value in values if value <= most]
