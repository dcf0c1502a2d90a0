"""Time and money of answers: what a result row says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.alone import Alone
from bench.prices.card_time import CardTime, Floats
from bench.prices.fields import MONEY, time_field
from bench.prices.money import WAYS, Tariff, small_price
from bench.prices.options import PriceFlags
from bench.simulation.cards import CARDS, free_gib, resident_bytes
from bench.simulation.options import EFFICIENCY, OVERHEAD_US
from bench.simulation.ticktimes import AloneRoofline, Roofline, TickTimes
from engine.accounting.ledger import Usage
from engine.config import ModelConfig

_WEIGHTS = "bf16"
_ROOFLINE = EFFICIENCY, OVERHEAD_US / 1e6


@dataclass(frozen=True)
class PriceList:
    """Prices of time and money at the shapes of one pair."""

    flags: PriceFlags
    tariff: Tariff
    times: TickTimes
    fits: bool  # do the weights of both models fit on the card?

    @classmethod
    def of(cls, flags: PriceFlags, own: tuple[ModelConfig, ModelConfig]) -> PriceList:
        """``own``: the shapes of the pair that answered."""
        shapes = flags.shapes(own)
        small = small_price(shapes) if flags.small is None else flags.small
        times = flags.table or Roofline(shapes, CARDS[flags.card], _WEIGHTS, *_ROOFLINE)
        fits = free_gib(flags.card, resident_bytes(shapes, _WEIGHTS)) > 0
        return cls(flags, Tariff(small, flags.prompt, flags.cached), times, fits)

    def costs(self, usages: Sequence[Usage]) -> dict[str, Floats]:
        """Seconds by load and bills by way, by field: float64 [requests] each."""
        return self._seconds(self.times, usages) | {
            MONEY[way]: np.array([self.tariff.bill(usage, way) for usage in usages]) for way in WAYS
        }

    def _seconds(self, times: TickTimes, usages: Sequence[Usage]) -> dict[str, Floats]:
        return {time_field(load): CardTime(times, load).each(usages) for load in self.flags.loads}

    def fields(self, usages: Sequence[Usage], base: Sequence[Usage]) -> dict[str, Any]:
        """Fields of a row: relative to ``base``, the large model alone; absolute, an answer; and
        the settings."""
        return self._fields(self.costs(usages), self.costs(base))

    def fields_beside(
        self, model: Alone, usages: Sequence[Usage], base: Sequence[Usage]
    ) -> dict[str, Any]:
        """The same for another model with the card to itself, which does what ``usages`` say of the
        large one. Its money is None: no price follows from its parameters. So is its time if tick
        times were measured."""
        unknown = dict.fromkeys(self.names)
        if self.flags.table:
            return unknown | {"an_answer": unknown, "prices": self.settings}
        times = AloneRoofline(model, CARDS[self.flags.card], _WEIGHTS, *_ROOFLINE)
        found = self._fields(self._seconds(times, usages), self.costs(base))
        return unknown | found | {"an_answer": unknown | found["an_answer"]}

    def _fields(self, costs: dict[str, Floats], base: dict[str, Floats]) -> dict[str, Any]:
        return {
            **{name: float(cost.sum() / base[name].sum()) for name, cost in costs.items()},
            "an_answer": {name: float(cost.mean()) for name, cost in costs.items()},
            "prices": self.settings,
        }

    @property
    def names(self) -> list[str]:
        """The fields of costs."""
        return [*map(time_field, self.flags.loads), *MONEY.values()]

    @property
    def settings(self) -> dict[str, Any]:
        """What the costs assume."""
        flags, measured = self.flags, self.flags.table is not None
        return {
            "card": None if measured else flags.card,
            "fits_card": None if measured else self.fits,
            "tick_times": flags.table_name,
            "efficiency": None if measured else EFFICIENCY,
            "overhead_us": None if measured else OVERHEAD_US,
            "loads": list(flags.loads),
            "small_price": self.tariff.small,
            "prompt_price": self.tariff.prompt,
            "cached_price": self.tariff.cached,
            "priced_as": flags.priced_as,
        }
