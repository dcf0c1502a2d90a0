"""Accuracy against cost of whole families, with intervals from resampled problems.

Between two settings of a policy lies their random mixture, problem by problem: so each family
stands for its upper concave hull, with the small and the large model alone as its ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.report.point import Floats, Point

RESAMPLES = 1000


def hull(costs: Floats, accuracies: Floats) -> tuple[Floats, Floats]:
    """The upper concave hull, by rising cost; it ends at its highest accuracy."""
    order = np.lexsort((-accuracies, costs))
    kept: list[tuple[float, float]] = []
    for x, y in zip(costs[order].tolist(), accuracies[order].tolist(), strict=True):
        if kept and y <= kept[-1][1]:
            continue
        while len(kept) > 1 and _below(kept[-2], kept[-1], (x, y)):
            kept.pop()
        kept.append((x, y))
    xs, ys = zip(*kept, strict=True)
    return np.array(xs), np.array(ys)


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


@dataclass(frozen=True)
class Difference:
    """A number and its 95% interval over resampled problems."""

    value: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Frontiers:
    """The families of one domain at one kind of cost, on the same resampled problems."""

    def __init__(self, points: Sequence[Point], cost: str, seed: int = 0) -> None:
        ends = {p.family: i for i, p in enumerate(points) if p.family in ("small", "large")}
        self._members = {
            family: sorted(
                {*ends.values(), *(i for i, p in enumerate(points) if p.family == family)}
            )
            for family in dict.fromkeys(p.family for p in points)
        }
        count = points[0].correct.size
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
        # The sample itself comes first, then its resamples.
        weights = np.concatenate([np.ones((1, count)), draws])
        spent = weights @ np.stack([p.costs[cost] for p in points]).T
        self.costs = spent / spent[:, [ends["large"]]]
        self.accuracies = weights @ np.stack([p.correct for p in points]).T / count

    def accuracy_at(self, family: str, cost: float) -> Floats:
        """Accuracy of a family at a cost, [1 + resamples]."""
        return self._of(family, lambda x, y: float(np.interp(cost, x, y)))

    def cost_at(self, family: str, accuracy: float) -> Floats:
        """Cost of a family at an accuracy; that of its highest one if it does not reach it."""
        return self._of(family, lambda x, y: float(np.interp(accuracy, y, x)))

    def mean_accuracy(self, family: str, low: float, high: float) -> Floats:
        """Mean accuracy over a range of costs."""
        grid = np.linspace(low, high, 101)
        return self._of(family, lambda x, y: float(np.interp(grid, x, y).mean()))

    def _of(self, family: str, value: Callable[[Floats, Floats], float]) -> Floats:
        members = self._members[family]
        return np.array(
            [
                value(*hull(cost[members], accuracy[members]))
                for cost, accuracy in zip(self.costs, self.accuracies, strict=True)
            ]
        )


def difference(first: Floats, second: Floats) -> Difference:
    """``first - second``: that of the sample, and the middle 95% of its resamples."""
    differences = first - second
    low, high = np.quantile(differences[1:], [0.025, 0.975])
    return Difference(float(differences[0]), float(low), float(high))
