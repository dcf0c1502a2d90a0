"""The flags of time and money, and what they say."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench.prices.money import PROMPT_PRICE
from bench.simulation.cards import CARDS
from bench.simulation.grid import each, real, whole
from bench.simulation.options import EFFICIENCY, OVERHEAD_US, PAIRS
from bench.simulation.table import TableTimes, read_table
from engine.config import ModelConfig
from engine.config.expert_mixtures import refuse_mixtures
from engine.config.pairs import Pair
from engine.errors import SteerError

CARD, LOADS = "h100", "1,64"
_MOST = 4096  # requests at once
NAMES = ("card", "tick_times", "load", "prompt_price", "cached_price", "small_price", "priced_as")


def add_flags(group: argparse._ActionsContainer) -> None:
    """Numbers stay text here, so that a wrong one is refused in one line."""
    add = group.add_argument
    add(
        "--card",
        metavar="NAME",
        help=f"whose roofline gives the time: {', '.join(CARDS)} (default: {CARD}); bf16 weights, "
        f"at {EFFICIENCY:g} of the roofline and {OVERHEAD_US:g} us a tick, as in bench.simulate",
    )
    add(
        "--tick-times",
        type=Path,
        metavar="FILE",
        help="measured times instead, as for bench.simulate --table (bench.pair --save-table)",
    )
    add(
        "--load",
        default=LOADS,
        metavar="LIST",
        help="requests at once, comma-separated (default: %(default)s)",
    )
    add(
        "--prompt-price",
        default=str(PROMPT_PRICE),
        metavar="X",
        help="of a token that is read, over a generated one (default: %(default)s)",
    )
    add(
        "--cached-price",
        metavar="X",
        help="likewise of a token that a stateless server has read before (default: the prompt's)",
    )
    add(
        "--small-price",
        metavar="X",
        help="of a token of the small model, over one of the large model (default: the ratio of "
        "their parameters)",
    )
    add(
        "--priced-as",
        metavar="PAIR",
        help="take the shapes of this pair for time and money: " + ", ".join(PAIRS),
    )


@dataclass(frozen=True)
class PriceFlags:
    """What the flags say. ``small``: None for the ratio of parameters; ``table``: measured tick
    times, None for the card's roofline; ``shapes``: None for the pair's own."""

    card: str
    loads: tuple[int, ...]
    prompt: float
    cached: float
    small: float | None
    table: TableTimes | None = None
    table_name: str | None = None
    priced_as: str | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> PriceFlags:
        """SteerError on the first thing that is wrong."""
        table, card = options.tick_times, options.card
        if table and card:
            raise SteerError("--card is a roofline, --tick-times are measured: pass one of them")
        if card is not None and card not in CARDS:
            raise SteerError(f"--card: unknown card {card!r}; known: {', '.join(CARDS)}")
        prompt = real("--prompt-price", options.prompt_price, 0, 100)
        cached, small = options.cached_price, options.small_price
        named = options.priced_as
        if named is not None:
            refuse_mixtures(named)
            if named not in PAIRS:
                raise SteerError(f"--priced-as: unknown pair {named!r}; known: {', '.join(PAIRS)}")
        return cls(
            card or CARD,
            tuple(each(options.load, lambda text: whole("--load", text, 1, _MOST))),
            prompt,
            prompt if cached is None else real("--cached-price", cached, 0, 100),
            None if small is None else real("--small-price", small, 0, 100),
            read_table(table) if table else None,
            table.name if table else None,
            named,
        )

    def shapes(self, own: tuple[ModelConfig, ModelConfig]) -> tuple[ModelConfig, ModelConfig]:
        """The shapes that are priced; ``own``: those of the pair at hand."""
        return Pair.named(self.priced_as).shapes if self.priced_as else own
