"""From the command line's text to the simulations; the first wrong option is refused."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

from bench.alone import read_names
from bench.plot import check_plot
from bench.simulation.beside import Beside
from bench.simulation.cards import CARDS, GIB, WEIGHTS, arena_bytes, resident_bytes
from bench.simulation.options import EFFICIENCY, OVERHEAD_US, PAIRS
from bench.simulation.setting import Case, Setting, arena_fields, arena_of, check_fits, check_lanes
from bench.simulation.table import read_table
from bench.simulation.ticktimes import Roofline, TickTimes
from bench.simulation.workload import Means, Workload
from engine.config import ModelConfig
from engine.config.expert_mixtures import refuse_mixtures
from engine.config.pairs import Pair
from engine.device.kv_arena import ArenaGeometry
from engine.errors import SteerError
from engine.files import check_output

_T = TypeVar("_T")
Shapes = tuple[ModelConfig, ModelConfig]


def real(flag: str, text: str, low: float, high: float = math.inf, above: bool = False) -> float:
    """A number from ``low`` (or ``above`` it) up to ``high``. SteerError otherwise."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if low <= value <= high and value < math.inf and not (above and value == low):
        return value
    upper = f" up to {high:g}" if high < math.inf else ""
    lower = f"above {low:g}" if above else f"from {low:g}"
    raise SteerError(f"{flag}: expected a number {lower}{upper}, got {text!r}")


def whole(flag: str, text: str, low: int = 1, high: int | None = None) -> int:
    """A whole number from ``low`` up to ``high``. SteerError otherwise."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        upper = "on" if high is None else f"up to {high}"
        raise SteerError(f"{flag}: expected a whole number from {low} {upper}, got {text!r}")
    return value


def each(text: str, read: Callable[[str], _T]) -> list[_T]:
    """The parts of a comma-separated list, each once."""
    return list(dict.fromkeys(read(part.strip()) for part in text.split(",")))


@dataclass(frozen=True)
class Grid:
    """The simulations that a command line asks for. ``fields``: common to all rows.

    beside: single models that are simulated at the same loads.
    """

    setting: Setting
    workload: Workload
    cases: list[Case]
    fields: dict[str, Any]
    beside: list[Beside]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Grid:
        """Check and read all options. SteerError says what is wrong and what would be right."""
        _check_outputs(options)
        shapes = _shapes(options)
        card = _card(options)
        setting = _setting(options, shapes, card)
        requests = whole("--requests", options.requests, 1, 10**7)
        cases = _cases(options, requests)
        means = _means(options)
        seed = whole("--seed", options.seed, 0)
        check_fits(setting, means.prompt, means.answer)
        workload = Workload(requests, means, seed, setting.most, _max_tokens(options))
        check_fits(setting, max(workload.prompts), 1)
        fields = {
            "pair": options.model_pair,
            "weights": options.weights if card else None,
            "weights_gib": resident_bytes(shapes, options.weights) / GIB if card else None,
            **_times_fields(options, card),
            **_setting_fields(setting),
            "requests": requests,
            **vars(means),
            "max_tokens": max(workload.limits),
            "seed": seed,
        }
        beside = _beside(options, setting, cases, fields)
        return cls(setting, workload, cases, fields, beside)


def _beside(
    options: argparse.Namespace, setting: Setting, cases: list[Case], fields: dict[str, Any]
) -> list[Beside]:
    models = read_names(options.beside)
    if models and fields["times"] != "roofline":
        raise SteerError("--beside goes with the roofline, not with --table")
    wanted = None if options.memory is None else float(options.memory)
    asked = _max_tokens(options)
    return [Beside.of(model, setting, cases, fields, wanted, asked) for model in models]


def _check_outputs(options: argparse.Namespace) -> None:
    check_output(options.json, "--json")
    check_output(options.save_table, "--save-table")
    if options.plot:
        check_plot(options.plot)


def _shapes(options: argparse.Namespace) -> Shapes:
    refuse_mixtures(options.model_pair)
    if options.model_pair not in PAIRS:
        known = ", ".join(PAIRS)
        raise SteerError(f"--model-pair: no shapes for {options.model_pair!r}; known: {known}")
    return Pair.named(options.model_pair).shapes


def _card(options: argparse.Namespace) -> str | None:
    """The card's name; None if a table gives the times and --memory gives the memory."""
    if options.weights not in WEIGHTS:
        raise SteerError(f"--weights: expected {' or '.join(WEIGHTS)}, got {options.weights!r}")
    if options.card is None:
        return None if options.table and options.memory is not None else "h100"
    if options.card not in CARDS:
        raise SteerError(f"--card: unknown card {options.card!r}; known: {', '.join(CARDS)}")
    return str(options.card)


def _times(options: argparse.Namespace, shapes: Shapes, card: str | None) -> TickTimes:
    if options.table:
        for name in ("efficiency", "overhead_us", "save_table"):
            if getattr(options, name) is not None:
                flag = name.replace("_", "-")
                raise SteerError(f"--{flag} goes with the roofline, not with --table")
        return read_table(options.table)
    efficiency = real("--efficiency", _or(options.efficiency, EFFICIENCY), 0.01, 1)
    overhead = real("--overhead-us", _or(options.overhead_us, OVERHEAD_US), 0, 1e6) / 1e6
    return Roofline(shapes, CARDS[card or "h100"], options.weights, efficiency, overhead)


def _or(text: str | None, default: object) -> str:
    return str(default) if text is None else text


def _geometry(options: argparse.Namespace, shapes: Shapes, card: str | None) -> ArenaGeometry:
    wanted = options.memory
    gib = None if wanted is None else real("--memory", wanted, 0, 10000, above=True)
    room = arena_bytes(card, shapes, options.weights, gib) if card else int((gib or 0) * GIB)
    return arena_of(shapes, room)


def _setting(options: argparse.Namespace, shapes: Shapes, card: str | None) -> Setting:
    geometry = _geometry(options, shapes, card)
    sequences = whole("--max-sequences", options.max_sequences, 1, 2**16)
    rows = whole("--max-tick-tokens", options.max_tick_tokens, 2, 2**20)
    if rows <= sequences:
        raise SteerError(f"--max-tick-tokens: {rows} is not above the {sequences} --max-sequences")
    return Setting(
        shapes=shapes,
        geometry=geometry,
        times=_times(options, shapes, card),
        together=real("--together", options.together, 0.01, 2),
        max_sequences=sequences,
        max_tick_tokens=rows,
        gather=whole("--gather", options.gather, 0, 2**20),
        hold_ticks=whole("--hold-ticks", options.hold_ticks, 1, 2**30),
        eager_backlog=whole("--eager-backlog", options.eager_backlog, 0, 2**30),
        read_along=whole("--read-along", options.read_along, 0, 2**30),
        eager_admission=options.eager_admission,
        ticks=whole("--ticks", options.ticks, 0),
    )


def _means(options: argparse.Namespace) -> Means:
    return Means(
        prompt=real("--prompt", options.prompt, 1, 10**6),
        answer=real("--answer", options.answer, 1, 10**6),
        step=real("--step", options.step, 1, 10**6),
        spread=real("--spread", options.spread, 0, 100),
        shift=real("--shift", options.shift, 0.01, 100),
    )


def _max_tokens(options: argparse.Namespace) -> int | None:
    asked = options.max_tokens
    return None if asked is None else whole("--max-tokens", asked, 1, 10**7)


def _cases(options: argparse.Namespace, requests: int) -> list[Case]:
    """All combinations: lane policies outermost, then loads, then shares of handoffs."""
    lanes = each(options.lanes, str)
    for name in lanes:
        check_lanes(name)
    shares = each(options.handoff, lambda text: real("--handoff", text, 0, 1))
    if options.rate is not None:
        if options.concurrency is not None:
            raise SteerError("--concurrency is a closed loop, --rate an open one: pass one of them")
        rates = each(options.rate, lambda text: real("--rate", text, 1e-6, 1e6))
        return [Case(n, s, rate=r) for n, r, s in product(lanes, rates, shares)]
    loads = each(_or(options.concurrency, "1,8,64"), lambda text: whole("--concurrency", text))
    if max(loads) > requests:
        raise SteerError(f"--concurrency: {max(loads)} is more than the {requests} --requests")
    return [Case(n, s, concurrency=c) for n, c, s in product(lanes, loads, shares)]


def _times_fields(options: argparse.Namespace, card: str | None) -> dict[str, Any]:
    roofline = options.table is None
    return {
        "card": card,
        "times": "roofline" if roofline else options.table.name,
        "efficiency": float(_or(options.efficiency, EFFICIENCY)) if roofline else None,
        "overhead_us": float(_or(options.overhead_us, OVERHEAD_US)) if roofline else None,
    }


def _setting_fields(setting: Setting) -> dict[str, Any]:
    return {
        "together": setting.together,
        **arena_fields(setting.geometry),
        "max_sequences": setting.max_sequences,
        "max_tick_tokens": setting.max_tick_tokens,
        "gather": setting.gather,
        "hold_ticks": setting.hold_ticks,
        "eager_backlog": setting.eager_backlog,
        "read_along": setting.read_along,
        "eager_admission": setting.eager_admission,
        "ticks_limit": setting.ticks,
    }
