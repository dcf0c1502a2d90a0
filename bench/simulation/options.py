"""The command line of ``python -m bench.simulate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from bench import alone
from bench.simulation.cards import CARDS, RESERVE_GIB, WEIGHTS
from bench.simulation.table import COLUMNS
from bench.simulation.workload import LONGEST
from engine.config import LANE_POLICIES, EngineConfig
from engine.config.pairs import NAMED_PAIRS
from engine.errors import SteerError

EFFICIENCY = 0.7  # assumed, as is the overhead
OVERHEAD_US = 200.0
PAIRS = tuple(name for name in NAMED_PAIRS if "/" in name)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SteerError(message)


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line. Numbers stay text here, so that a wrong one is refused in one line."""
    parser = _Parser(
        prog="python -m bench.simulate",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_card(parser.add_argument_group("the card"))
    _add_times(parser.add_argument_group("how long a tick takes"))
    load = parser.add_argument_group("the load; a LIST is comma-separated and makes a grid")
    _add_load(load)
    _add_lanes(load)
    _add_texts(parser.add_argument_group("the texts"))
    _add_run(parser.add_argument_group("the run"))
    return parser


def _add_card(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--model-pair",
        default="qwen-1.5b/qwen-32b",
        metavar="PAIR",
        help="one of: " + ", ".join(PAIRS) + " (default: %(default)s)",
    )
    add("--card", help="one of: " + ", ".join(CARDS) + " (default: h100)")
    add(
        "--weights",
        default="bf16",
        help=" or ".join(WEIGHTS) + ", of both models; keys and "
        "values stay in bf16 (default: bf16)",
    )
    add(
        "--memory",
        metavar="GIB",
        help="of the arena (default: what the card has left after both "
        f"models' weights and a reserve of {RESERVE_GIB:g} GiB)",
    )
    add(
        "--beside",
        metavar="LIST",
        help="simulate these models alone as well, each with a card to itself, at every load: "
        f"{alone.HELP}",
    )
    add(
        "--max-sequences",
        default=str(EngineConfig.max_sequences),
        metavar="N",
        help="requests that run at once, the rest waits (default: %(default)s)",
    )
    add(
        "--max-tick-tokens",
        default=str(EngineConfig.max_tick_tokens),
        metavar="N",
        help="rows of a tick; longer prefills are cut (default: %(default)s)",
    )


def _add_times(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--efficiency",
        metavar="SHARE",
        help="of the roofline that a tick reaches, up to 1 "
        f"(default: {EFFICIENCY:g}, an assumption)",
    )
    add(
        "--overhead-us",
        metavar="US",
        help="microseconds that a tick takes on top, for the host "
        f"and its launches (default: {OVERHEAD_US:g}, an assumption)",
    )
    add(
        "--together",
        default="1",
        metavar="X",
        help="how much two ticks in flight at once get "
        "done, compared with one alone: 1 shares one bandwidth, 2 is free (default: %(default)s)",
    )
    add(
        "--table",
        type=Path,
        metavar="FILE",
        help="measured tick times instead of the roofline: "
        f"CSV with the header {','.join(COLUMNS)}: small or large, sequences in the tick, mean "
        "keys that a sequence sees, mean rows that it computes, microseconds. A full grid for each "
        "model; linear in between, constant below, prolonged above",
    )
    add("--save-table", type=Path, metavar="FILE", help="write the roofline as such a table")


def _add_load(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--concurrency",
        metavar="LIST",
        help="requests at once: the end of one starts the next (default: 1,8,64)",
    )
    add("--rate", metavar="LIST", help="arrivals a second instead, at random moments (Poisson)")
    add(
        "--requests",
        default="256",
        metavar="N",
        help="in all; take many times the load, as the last of them have the card to themselves "
        "(default: %(default)s)",
    )
    add(
        "--handoff",
        default="0,0.1,0.2,0.4,1",
        metavar="LIST",
        help="share of boundaries that go "
        "to the large model; the small model reads each, but at 1 the large one writes alone "
        "(default: %(default)s)",
    )


def _add_lanes(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--lanes",
        default="latency",
        metavar="LIST",
        help="lane policies: " + ", ".join(LANE_POLICIES) + " (default: %(default)s)",
    )
    add(
        "--gather",
        default=str(EngineConfig.gather),
        metavar="N",
        help="sequences that are worth a large tick under throughput; 0: worked out from the load "
        "(default: %(default)s)",
    )
    add(
        "--hold-ticks",
        default=str(EngineConfig.hold_ticks),
        metavar="N",
        help="ticks of the other lane that one with work is held at most (default: %(default)s)",
    )
    add(
        "--eager-admission",
        action="store_true",
        help="admit requests as soon as their prompt fits, without a forecast of their needs",
    )
    add(
        "--eager-backlog",
        default=str(EngineConfig.eager_backlog),
        metavar="N",
        help="the large model reads along once it lags N tokens; 0: at the handoff only "
        "(default: %(default)s)",
    )
    add(
        "--read-along",
        default=str(EngineConfig.read_along),
        metavar="N",
        help="likewise the small model while the large one writes (default: %(default)s)",
    )


def _add_texts(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--prompt", default="256", metavar="N", help="mean tokens (default: %(default)s)")
    add("--answer", default="512", metavar="N", help="mean tokens (default: %(default)s)")
    add(
        "--step",
        default="32",
        metavar="N",
        help="mean tokens of a step; each token ends one with "
        "probability 1/N (default: %(default)s)",
    )
    add(
        "--spread",
        default="0.5",
        metavar="X",
        help="standard deviation of prompts and answers, "
        f"in means: they are log-normal, cut at {LONGEST} means; 0: all alike "
        "(default: %(default)s)",
    )
    add(
        "--shift",
        default="1",
        metavar="X",
        help="answers of the second half of the requests are X times as long "
        "(default: %(default)s)",
    )
    add(
        "--max-tokens",
        metavar="N",
        help="limit of each request's answer: all that the scheduler knows of its length "
        f"before it ends; longer answers are cut (default: {LONGEST} mean answers, or what the "
        "context and the arena leave)",
    )
    add("--seed", default="0", metavar="N", help="of everything drawn (default: 0)")


def _add_run(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--ticks",
        default="0",
        metavar="N",
        help="end each simulation after N ticks of both lanes "
        "(default: 0, when all requests are finished)",
    )
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="write latency against throughput, and the arena's owners over time, as a picture",
    )
