"""Intervals for shares and for paired differences of shares; percentiles of times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, quantiles

Z95 = NormalDist().inv_cdf(0.975)


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th of two values or more."""
    tenths = quantiles(values, n=10)
    return tenths[1], tenths[4], tenths[7]


def wilson(hits: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval for a share; honest at 0 and 1 too."""
    if count == 0:
        return 0.0, 1.0
    share, spread = hits / count, z * z / count
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return min(low, share), max(high, share)  # rounding must not exclude the share


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """``mean(first) - mean(second)`` on the same problems, with a 95% interval.

    Newcombe's square-and-add of Wilson limits with a correlation (Statistics in Medicine 17,
    1998, method 10): unlike the plain normal interval it has width where no pair differs.
    """
    if len(first) != len(second) or not first:
        raise ValueError("paired samples must be equally long and not empty")
    count = len(first)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    hits, others = sum(first), sum(second)
    neither = count - hits - others + both
    shares = hits / count, others / count
    (low1, high1), (low2, high2) = wilson(hits, count), wilson(others, count)
    margins = hits * (count - hits) * others * (count - others)
    lean: float = both * neither - (hits - both) * (others - both)
    if lean > 0:
        lean = max(lean - count / 2, 0)  # the method's continuity correction
    phi = lean / math.sqrt(margins) if margins else 0
    difference = shares[0] - shares[1]

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return (
        difference,
        difference - reach(shares[0] - low1, high2 - shares[1]),
        difference + reach(high1 - shares[0], shares[1] - low2),
    )
