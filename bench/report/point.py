"""One setting of one policy on a test set: its answers and their cost, by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.evaluate import Evaluation
from bench.prices.fields import time_field
from bench.prices.price_list import PriceList
from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, pair_flops
from engine.config import ModelConfig

Floats = npt.NDArray[np.float64]


def counted(prices: dict[str, Any]) -> dict[str, str]:
    """The costs of plots and frontiers, with words for them; ``prices``: settings of a price list.

    Time is that at the first load.
    """
    load = prices["loads"][0]
    flops = {"decode": "FLOPs decode only", "catchup": "FLOPs with catch-up"}
    return {**flops, time_field(load): f"time at load {load}", "money": "money"}


@dataclass(frozen=True)
class Point:
    """Arrays are in the order of the problems.

    family: the policy; parameter: its setting, None where it has none.
    costs: of both models: FLOPs by accounting, and the fields of a price list.
    chosen: the setting that the calibration problems gave.
    composed: put together from the two models alone, with the usage that the engine would report.
    """

    family: str
    parameter: float | None
    correct: Floats
    costs: dict[str, Floats]
    large_step_share: float
    large_token_share: float
    seconds: float = 0.0
    chosen: bool = False
    composed: bool = False
    recomputed_share: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The setting's name in tables."""
        return self.family if self.parameter is None else f"{self.family}:{self.parameter:.4g}"

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(self.correct.mean())

    def cost(self, other: Point, name: str) -> float:
        """A cost relative to another point's, the large model alone as a rule."""
        return float(self.costs[name].sum() / other.costs[name].sum())


@dataclass(frozen=True)
class Costing:
    """How counts become costs: the pair's shapes, and prices of time and money."""

    shapes: tuple[ModelConfig, ModelConfig]
    prices: PriceList

    def costs(self, usages: Sequence[Usage]) -> dict[str, Floats]:
        """Costs of both models by name, one for each usage."""
        flops = {
            a: np.array([pair_flops(usage, self.shapes, a) for usage in usages], np.float64)
            for a in ACCOUNTINGS
        }
        return flops | self.prices.costs(usages)


def point_of(
    family: str,
    parameter: float | None,
    done: Evaluation,
    costing: Costing,
    chosen: bool = False,
    extra: dict[str, Any] | None = None,
) -> Point:
    """The point of a run of the engine."""
    return Point(
        family,
        parameter,
        np.array(done.correct, np.float64),
        costing.costs(done.usages),
        done.large_step_share,
        done.large_token_share,
        done.seconds,
        chosen,
        recomputed_share=done.usage.recomputed_share,
        extra=extra or {},
    )
