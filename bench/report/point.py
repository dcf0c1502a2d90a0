"""One setting of one policy on a test set: its answers and their cost, by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.evaluate import Evaluation
from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, pair_flops
from engine.config import ModelConfig

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """Arrays are in the order of the problems.

    family: the policy; parameter: its setting, None where it has none.
    flops: of both models, by accounting.
    chosen: the setting that the calibration problems gave.
    composed: put together from the two models alone, with the usage that the engine would report.
    """

    family: str
    parameter: float | None
    correct: Floats
    flops: dict[str, Floats]
    large_step_share: float
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

    def cost(self, large: Point, accounting: str) -> float:
        """FLOPs relative to the large model alone."""
        return float(self.flops[accounting].sum() / large.flops[accounting].sum())


def flops_of(usages: Sequence[Usage], shapes: tuple[ModelConfig, ModelConfig]) -> dict[str, Floats]:
    """FLOPs of both models, by accounting, one for each usage."""
    return {
        a: np.array([pair_flops(usage, shapes, a) for usage in usages], np.float64)
        for a in ACCOUNTINGS
    }


def point_of(
    family: str,
    parameter: float | None,
    done: Evaluation,
    shapes: tuple[ModelConfig, ModelConfig],
    chosen: bool = False,
    extra: dict[str, Any] | None = None,
) -> Point:
    """The point of a run of the engine."""
    return Point(
        family,
        parameter,
        np.array(done.correct, np.float64),
        flops_of([c.usage for c in done.completions], shapes),
        done.large_step_share,
        done.seconds,
        chosen,
        recomputed_share=done.usage.recomputed_share,
        extra=extra or {},
    )
